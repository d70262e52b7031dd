"""How λ is chosen: several proxies, the other targets, one standard error; and the oracle, which is no method."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from adamergex import statistics
from adamergex.config.study import Assumed
from adamergex.config.transfer import parse
from adamergex.errors import AdamergexError, ConfigError, DataError
from adamergex.files import records
from adamergex.graph.steps import Store
from adamergex.report import weight_losses
from adamergex.report.results_file import as_dict
from adamergex.report.results_file import parse as parse_results
from adamergex.report.summary import headline, score_table, subject
from adamergex.report.tables import scores_csv, summary_csv
from adamergex.search import weight_choice
from adamergex.statistics import Sample, standard_error
from adamergex.tables.estimate import estimate
from adamergex.tables.plan import Plan, absolute, facts
from adamergex.tables.transfer import summary, transfer
from adamergex.tables.weight_losses import ORACLE_LABEL
from test_pipeline import Counting, counted, settings, silent  # noqa: F401  (counted is a fixture)

THREE = {"targets": ["fr", "sw", "tr"], "proxy": None, "methods": ["english_tuning", "adamergex"]}


def plan_of(base: Path, data: Path, output: Path, **changes: Any) -> Plan:
    config = absolute(parse(settings(base, data, output, **changes)))
    return Plan(config, facts(config))


def table(base: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return as_dict(transfer(parse(settings(base, data, output, **changes)), say=silent))


def searched(folder: Path, right: dict[float, list[int]], **more: Any) -> Path:
    """A search as ``tune`` writes it: λ -> which items are right."""
    folder.mkdir(parents=True)
    predictions = [
        (weight, [{"id": i, "gold": 1, "predicted": hit, **({"group": more["groups"][i]} if "groups" in more else {})}
                  for i, hit in enumerate(hits)])
        for weight, hits in sorted(right.items())
    ]  # fmt: skip
    curve = [{"weight": w, "score": 100 * fmean(i["predicted"] for i in items), "interval": [0.0, 100.0]}
             for w, items in predictions]  # fmt: skip
    found = {"chosen": 0.0, "curve": curve, "metric": more.get("metric", "accuracy"), "n": len(predictions[0][1])}
    (folder / records.TUNING).write_text(json.dumps(found), encoding="utf-8")
    answers = weight_choice.answers_of(predictions)
    (folder / records.ANSWERS).write_text(json.dumps(answers), encoding="utf-8")
    return folder


def hits(count: int, of: int) -> list[int]:
    return [1] * count + [0] * (of - count)


def test_every_language_weighs_the_same(tmp_path: Path) -> None:
    """A set of 10 items counts as much as one of 100."""
    small = searched(tmp_path / "small", {0.0: hits(2, 10), 0.5: hits(6, 10), 1.0: hits(3, 10)})
    large = searched(tmp_path / "large", {0.0: hits(80, 100), 0.5: hits(50, 100), 1.0: hits(70, 100)})
    found = weight_choice.choose({"sw": small, "fr": large}, output=tmp_path / "out")
    assert [point.score for point in found.curve] == pytest.approx([50.0, 55.0, 50.0])
    assert (found.chosen, found.best, found.n) == (0.5, 0.5, 110)
    assert json.loads((tmp_path / "out" / "tuning.json").read_text())["languages"] == ["sw", "fr"]
    for point in found.curve:
        assert point.interval[0] < point.score < point.interval[1]


def test_of_equal_means_the_smallest_is_taken(tmp_path: Path) -> None:
    one = searched(tmp_path / "one", {0.0: hits(1, 3), 0.5: hits(2, 3), 1.0: hits(1, 3)})
    two = searched(tmp_path / "two", {0.0: hits(1, 7), 0.5: hits(3, 7), 1.0: hits(3, 7)})
    three = searched(tmp_path / "three", {0.0: hits(0, 9), 0.5: hits(0, 9), 1.0: hits(3, 9)})
    assert weight_choice.choose({"a": one, "b": two, "c": three}).chosen == 0.5  # 1/3 lost, 1/3 won
    assert (
        weight_choice.best([records.Point(weight=w, score=40.0, interval=[0.0, 100.0]) for w in (1.0, -0.5, 0.0)])
        == -0.5
    )


def test_the_standard_error_is_that_of_clusters() -> None:
    items = [{"id": i, "gold": 1, "predicted": int(i < 30)} for i in range(100)]
    assert standard_error([Sample.read(items)]) == pytest.approx(100 * np.sqrt(0.3 * 0.7 / 99))
    grouped = [{**item, "group": item["id"] // 5} for item in items]  # five of one answer: 20 clusters, not 100
    assert standard_error([Sample.read(grouped)]) == pytest.approx(100 * np.sqrt(0.3 * 0.7 / 19))
    # The same items in two languages are no further evidence; other items are.
    other = [{**item, "id": f"other {item['id']}"} for item in items]
    same, twice = ([Sample.read(items), Sample.read(second)] for second in (items, other))
    assert standard_error(same) == pytest.approx(100 * np.sqrt(0.3 * 0.7 / 99))
    assert standard_error(twice) == pytest.approx(100 * np.sqrt(0.3 * 0.7 / 199), rel=1e-6)
    assert standard_error([Sample.read(items[:1])]) == 100.0


def test_one_standard_error_takes_the_smallest_that_is_as_good(tmp_path: Path) -> None:
    """The best is 60 of 100 with a standard error of 4.92 points: 55 is not within it, 56 is."""
    right = {-0.5: hits(57, 100), 0.0: hits(55, 100), 0.25: hits(54, 100), 0.5: hits(56, 100), 1.0: hits(60, 100)}
    found = weight_choice.choose({"sw": searched(tmp_path / "sw", right)}, one_standard_error=True)
    assert found.error == pytest.approx(100 * np.sqrt(0.6 * 0.4 / 99))
    assert (found.best, found.chosen) == (1.0, -0.5)  # |−0.5| = |0.5|, and −0.5 scores higher
    assert weight_choice.choose({"sw": tmp_path / "sw"}).chosen == 1.0
    groups = [i // 10 for i in range(100)]  # ten clusters: 15 points, so that λ = 0 is as good
    wide = searched(tmp_path / "wide", right, groups=groups)
    found = weight_choice.choose({"sw": wide}, one_standard_error=True)
    assert found.chosen == 0.0 and found.error > 15


def test_searches_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one = searched(tmp_path / "one", {0.0: hits(1, 3), 0.5: hits(2, 3)})
    grid = searched(tmp_path / "grid", {0.0: hits(1, 3), 0.6: hits(2, 3)})
    metric = searched(tmp_path / "metric", {0.0: hits(1, 3), 0.5: hits(2, 3)}, metric="f1")
    for other in (grid, metric):
        with pytest.raises(ConfigError, match="not of the same kind"):
            weight_choice.choose({"a": one, "b": other}, output=tmp_path / "out")
    with pytest.raises(ConfigError, match="no search to choose from"):
        weight_choice.choose({})
    (one / records.ANSWERS).unlink()
    with pytest.raises(DataError, match=r"answers\.json"):
        weight_choice.choose({"a": one}, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_proxy_is_what_it_was(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    def keys(**changes: Any) -> set[str]:
        return {step.key for step in plan_of(tiny_encoder, small_data, tmp_path, **changes).wanted}

    assert keys(proxy="fr") == keys(proxy=["fr"]) == keys(proxy="fr", merge={"grid": [0.5, 1.0], "oracle": False})
    steps = plan_of(tiny_encoder, small_data, tmp_path, proxy="fr").tunings.values()
    assert {step.kind for step in steps} == {"tune"}
    assert all(set(step.identity) == {"merge", "grid", "evaluate"} for step in steps)
    chosen = plan_of(tiny_encoder, small_data, tmp_path, merge={"one_standard_error": True}).tunings.values()
    assert {step.kind for step in chosen} == {"choose"}


def test_several_proxies_are_averaged(tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting) -> None:  # noqa: F811
    changes: dict[str, Any] = {"proxy": ["fr", "tr"], "targets": ["sw"], "methods": ["english_tuning", "adamergex"]}
    results = table(tiny_encoder, small_data, tmp_path / "run", **changes)
    assert counted.runs["tune"] == 2 and counted.runs["choose"] == 1
    [tuning] = results["tuning"]
    plan = plan_of(tiny_encoder, small_data, tmp_path / "run", **changes)
    store = Store(tmp_path / "run" / "store")
    [search] = plan.tunings.values()
    curves = [
        json.loads((store.path(search.inputs[name]) / "tuning.json").read_text())["curve"] for name in ("fr", "tr")
    ]
    assert [point["score"] for point in tuning["curve"]] == pytest.approx(
        [fmean([one["score"], two["score"]]) for one, two in zip(*curves, strict=True)]
    )
    assert (
        tuning["chosen"] == weight_choice.best(list(map(records.Point.model_validate, tuning["curve"])))
        and tuning["proxy"] == "fr, tr"
    )
    assert results["cells"][-1]["weight"] == tuning["chosen"]
    assert "tuned on fr, tr: adamergex" in summary(parse_results(results), tmp_path)
    assert "The weight λ on other languages" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    counted.runs.clear()
    table(
        tiny_encoder,
        small_data,
        tmp_path / "run",
        **{**changes, "merge": {"grid": [0.5, 1.0], "one_standard_error": True}},
    )
    assert "tune" not in counted.runs and counted.runs["choose"] == 1  # the searches are the same


def test_each_target_is_tuned_on_the_others(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting  # noqa: F811
) -> None:  # fmt: skip
    changes = {**THREE, "merge": {"grid": [0.5, 1.0], "leave_one_out": True}}
    results = table(tiny_encoder, small_data, tmp_path / "run", **changes)
    assert counted.runs["tune"] == counted.runs["choose"] == 3  # one search a language, used twice
    assert {item["proxy"]: item["languages"] for item in results["tuning"]} == {
        "all targets but fr": ["sw", "tr"], "all targets but sw": ["fr", "tr"], "all targets but tr": ["fr", "sw"],
    }  # fmt: skip
    weights = {cell["language"]: cell["weight"] for cell in results["cells"] if cell["method"] == "adamergex"}
    assert weights == {item["proxy"][-2:]: item["chosen"] for item in results["tuning"]}
    plan = plan_of(tiny_encoder, small_data, tmp_path / "run", **changes)
    assert len(plan.trainings) == 5  # a task, and references of en, fr, sw, tr
    for (_, language, _), (merge,) in plan.adapters.items():
        if merge.kind == "merge":
            read = {step.job.evaluate.language for step in merge.inputs["weight"].inputs.values()}
            assert read == set(THREE["targets"]) - {language}
    costs = estimate(plan.wanted, Store(tmp_path / "empty"), Assumed()).kinds
    assert costs["choose"].steps == 3 and costs["choose"].flops == 0 < costs["tune"].flops
    assert "all targets but sw λ=" in summary(parse_results(results), tmp_path)


def test_a_validation_set_that_is_missing_is_told_before_anything_is_trained(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    for file in small_data.iterdir():
        if file.name != "tr.validation.tsv":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    several = {"proxy": ["fr", "tr"], "targets": ["sw"]}
    left_out = {**THREE, "merge": {"leave_one_out": True}}
    shown = {"proxy": "fr", "targets": ["sw", "tr"], "merge": {"oracle": True, "compare": ["leave_one_out"]}}
    for changes in (several, left_out, shown):
        with pytest.raises(DataError, match=r"tr\.validation\.tsv"):
            table(tiny_encoder, tmp_path, tmp_path / "run", **{"methods": ["adamergex"], **changes})
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proxy": ["fr", "fr"]}, r"proxy: 'fr' is listed twice"),
        ({"proxy": ["fr", "en"]}, r"proxy: 'en' is the source"),
        ({"proxy": ["../fr"]}, r"proxy[\s\S]*cannot be part of a file name"),
        ({"proxy": []}, r"proxy: missing"),
        ({"proxy": 3}, r"proxy"),
        ({"merge": {"leave_one_out": True}}, r"proxy: not used, merge\.leave_one_out tunes λ on the other targets"),
        ({"proxy": None, "targets": ["sw"], "merge": {"leave_one_out": True}}, r"targets: merge\.leave_one_out"),
        ({"proxy": None, "merge": {"leave_one_out": True, "weight": 0.5}}, r"leave_one_out: applies only to a tuned λ"),
        ({"merge": {"one_standard_error": True, "weight": "entropy"}}, r"merge\.one_standard_error: applies only"),
        ({"merge": {"leave_one_out": 1}}, r"merge\.leave_one_out"),
        ({"merge": {"oracle": True}, "methods": ["english_tuning", "average"]}, r"merge\.oracle: no method"),
        ({"merge": {"compare": ["entropy"]}}, r"merge\.compare: is shown against the oracle"),
        ({"merge": {"oracle": True, "compare": ["proxy"]}}, r"merge\.compare: 'proxy' is already how the table"),
        ({"merge": {"oracle": True, "compare": ["oracle"]}}, r"merge\.compare[\s\S]*'oracle' is not one of"),
        ({"proxy": None, "merge": {"leave_one_out": True, "oracle": True, "compare": ["proxy"]}}, r"proxy: missing"),
        ({"merge": {"oracle": True, "compare": ["entropy"], "grid": [2.0]}}, r"merge\.grid: entropy is minimised"),
        ({"methods": ["adamergex", "x.py:adamergex_oracle"], "merge": {"oracle": True}}, r"the name of another"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(AdamergexError, match=said):
        parse(settings(Path("nano"), tmp_path, tmp_path / "run", **changes))


def test_without_validation_rows_there_is_no_leaving_out(tmp_path: Path) -> None:
    made = settings(Path("nano"), tmp_path, tmp_path / "run", **{**THREE, "merge": {"leave_one_out": True}})
    del made["task"]["validation"]
    with pytest.raises(ConfigError, match=r"task\.validation: missing; λ is tuned on it in the other targets"):
        parse(made)


@pytest.fixture(scope="module")
def with_oracle(
    tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A table with an oracle and all ways of choosing λ, and the same without it (in "plain")."""
    folder = tmp_path_factory.mktemp("oracle")
    shared: dict[str, Any] = {"proxy": ["fr", "tr"], "targets": ["sw", "tr"], "store": str(folder / "store")}
    shared["methods"] = ["vanilla", "english_tuning", "average", "adamergex"]
    table(tiny_encoder, small_data, folder / "plain", **shared, merge={"grid": [0.5, 1.0]})
    merge = {"grid": [0.5, 1.0], "oracle": True, "compare": ["leave_one_out", "entropy"]}
    return folder, table(tiny_encoder, small_data, folder / "run", **shared, merge=merge)


def test_the_oracle_is_the_best_of_the_test_set(with_oracle: tuple[Path, dict[str, Any]]) -> None:
    folder, results = with_oracle
    cells = {(cell["method"], cell["language"]): cell for cell in results["cells"]}
    assert {item["language"] for item in results["weights"]} == {"sw", "tr"}
    for item in results["weights"]:
        bound, own = (cells[name, item["language"]] for name in ("adamergex_oracle", "adamergex"))
        assert (bound["weight"], bound["score"]) == (item["oracle"]["weight"], pytest.approx(item["oracle"]["score"]))
        found = {way["way"]: way for way in item["ways"]}
        assert set(found) == {
            "mean of fr, tr", "mean of fr, tr, one standard error", "fr", "tr", "leave one out", "entropy",
            "λ = 0 (Eng-FT)",
        }  # fmt: skip
        assert (found["mean of fr, tr"]["weight"], found["mean of fr, tr"]["score"]) == (own["weight"], own["score"])
        assert [way["way"] for way in item["ways"] if way.get("own")] == ["mean of fr, tr"]
        zero = cells["english_tuning", item["language"]]["score"]
        assert found["λ = 0 (Eng-FT)"]["score"] == pytest.approx(zero)
        assert all(item["oracle"]["score"] >= way["score"] - 1e-9 for way in item["ways"])
    assert (folder / "run" / "adapters" / "adamergex_oracle-sw-seed0" / "lineage.json").is_file()


def test_the_oracle_is_no_method(with_oracle: tuple[Path, dict[str, Any]]) -> None:
    """Neither in Holm's adjustment, nor the best, nor the headline; and labelled wherever it stands."""
    folder, results = with_oracle
    plain = json.loads((folder / "plain" / "results.json").read_text(encoding="utf-8"))
    assert results["comparisons"] == plain["comparisons"]
    assert [cell for cell in results["cells"] if cell["method"] != "adamergex_oracle"] == plain["cells"]
    assert all(cell["against"] is None for cell in results["cells"] if cell["method"] == "adamergex_oracle")
    checked, before = parse_results(results), parse_results(plain)
    assert score_table(checked).best == score_table(before).best
    assert headline(checked) == headline(before) and subject(checked) == subject(before)
    raised = {**results, "cells": [  # an oracle that is far above all others
        {**cell, "score": 99.0} if cell["method"] == "adamergex_oracle" else cell for cell in results["cells"]
    ]}  # fmt: skip
    assert score_table(parse_results(raised)).best == score_table(before).best
    name = f"AdaMergeX, {ORACLE_LABEL}"
    rows = list(csv.DictReader(scores_csv([checked]).splitlines()))
    assert {row["label"] for row in rows if row["method"] == "adamergex_oracle"} == {name}
    assert {row["p"] for row in rows if row["method"] == "adamergex_oracle"} == {""}
    sums = [row for row in csv.DictReader(summary_csv([checked]).splitlines()) if row["method"] == "adamergex_oracle"]
    assert {row["label"] for row in sums} == {name} and {row["beyond_noise"] for row in sums} == {""}
    terminal = summary(parse_results(results), folder)
    assert (
        name in terminal and "oracle of AdaMergeX: λ is chosen on the test set itself. mean of fr, tr loses" in terminal
    )
    for file in ("report.html", "report.md", "scores.tex"):
        text = (folder / "run" / file).read_text(encoding="utf-8")
        assert name in text, file
    assert "What it costs not to know λ" not in (folder / "plain" / "report.html").read_text(encoding="utf-8")


def test_the_picture_says_what_not_knowing_costs(with_oracle: tuple[Path, dict[str, Any]]) -> None:
    folder, results = with_oracle
    [(method, groups)] = weight_losses.compared(parse_results(results))
    assert [group.language for group in groups] == ["sw", "tr", "mean"]
    by_language = {item["language"]: item for item in results["weights"]}
    for group in groups[:2]:
        item = by_language[group.language]
        for way, given in zip(group.losses, item["ways"], strict=True):
            assert way.lost == pytest.approx(item["oracle"]["score"] - given["score"])
    for index, way in enumerate(groups[2].losses):
        assert way.lost == pytest.approx(fmean(group.losses[index].lost for group in groups[:2]))
    drawn = weight_losses.losses_picture("ways", method, groups)
    assert drawn.count('class="bar ours"') == 3 and drawn.count("<circle") == 21
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "What it costs not to know λ" in page and 'id="ways-0-title"' in page
    text = (folder / "run" / "report.md").read_text(encoding="utf-8")
    assert "| **mean of fr, tr** |" in text and "oracle (upper bound, not a method)" in text


def test_a_fixed_weight_and_entropy_have_an_oracle_too(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    shared = {
        "targets": ["sw"],
        "proxy": None,
        "methods": ["english_tuning", "adamergex"],
        "store": str(tmp_path / "s"),
    }
    for weight, name in ((0.3, "fixed"), ("entropy", "entropy")):
        merge = {"grid": [0.5, 1.0], "oracle": True, "weight": weight}
        results = table(tiny_encoder, small_data, tmp_path / name, **shared, merge=merge)
        [item] = results["weights"]
        own = next(way for way in item["ways"] if way.get("own"))
        assert own["way"] == name and (weight != 0.3 or own["weight"] == 0.3)


def test_pooled_of_an_oracle_is_shown_beside_the_methods(with_oracle: tuple[Path, dict[str, Any]]) -> None:
    folder, results = with_oracle
    row = next(row for row in results["pooled"] if (row["method"], row["language"]) == ("adamergex_oracle", "mean"))
    cells = [cell for cell in results["cells"] if cell["method"] == "adamergex_oracle"]
    samples = [
        Sample.read([json.loads(line) for line in (folder / "run" / cell["predictions"]).read_text().splitlines()])
        for cell in cells
    ]
    assert row["score"] == pytest.approx(fmean(cell["score"] for cell in cells))
    assert row["interval"] == list(statistics.pooled_interval([samples]))
