"""Reports of real runs: tiny transfers of two structures, read together, whole and broken."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from test_report_page import Reader

from adamergex.cli.main import main
from adamergex.config.transfer import parse
from adamergex.errors import AdamergexError, DataError
from adamergex.merging import similarity
from adamergex.report import load, report
from adamergex.report.evidence import Ancestor, gather
from adamergex.tables import actions
from adamergex.tables.transfer import transfer
from test_pipeline import settings, silent

METHODS = ["vanilla", "english_tuning", "average", "adamergex"]


def test_two_runs_on_one_page(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "report"
    assert main(["report", *map(str, runs), "--output", str(output)]) == 0
    assert str(output / "report.html") in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "report.html", "report.md", "scores.csv", "scores.tex", "summary.csv",
    ]  # fmt: skip
    page = Reader((output / "report.html").read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids)) and set(page.references) <= set(page.ids)
    inside = {target[1:] for target in page.links if target.startswith("#")}
    assert inside <= set(page.ids) and "run1-cell-3-0" in inside and "run2-cell-0-1" in inside
    beside = [target for target in page.links if not target.startswith("#")]
    assert len(beside) > 50 and all((output / unquote(target)).exists() for target in beside)
    results = [load(run / "results.json") for run in runs]
    means = {row[0].strip(): row[1:] for row in page.tables[0][1:]}
    for column, table in enumerate(results):
        for method in table.methods:
            own = [cell.score for cell in table.cells if cell.method == method.name]
            shown = means[method.label][column].strip("*").split(" ")[0].strip("*")
            assert float(shown) == pytest.approx(sum(own) / len(own), abs=0.051)
    assert means["AdaMergeX (delta)"][1] == "–"
    with (output / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["table"] for row in rows] == [table.title for table in results for _ in table.cells]
    assert {row["structure"] for row in rows} == {"lora", "ia3"}
    assert all((output / row["predictions"]).is_file() for row in rows)
    latex = (output / "scores.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3


def test_similarity_is_that_of_the_stored_adapters(runs: list[Path]) -> None:
    for run, rule in zip(runs, ("additive", "multiplicative"), strict=True):
        results = load(run / "results.json")
        found = gather(results, run).similarity
        assert found is not None and found.rule == rule and found.languages == ("sw", "tr", "fr")
        wanted = []
        for seed in results.seeds:
            places = {
                item.language: run / str(item.path)
                for item in results.adapters
                if item.name == f"reference · {item.language} · seed {seed}"
            }
            wanted.append(similarity(places.pop("en"), {name: places[name] for name in found.languages}).cosines)
        for i in range(3):
            for j in range(3):
                values = [float(cosines[i][j] or 0) for cosines in wanted]
                assert found.cosines[i][j] == pytest.approx(sum(values) / len(values), abs=1e-12)
        page = (run / "report.html").read_text(encoding="utf-8")
        assert "Cosine between the divergences of languages" in page
        assert ("D − 1 with D" in page) == (rule == "multiplicative")


def names(item: Ancestor) -> list[Any]:
    return [item.role, item.title, [names(parent) for parent in item.parents]]


def test_every_cell_leads_to_its_adapters_and_answers(runs: list[Path]) -> None:
    results = load(runs[0] / "results.json")
    found = {(x.cell.method, x.cell.language, x.cell.seed): x for x in gather(results, runs[0]).behind}
    assert len(found) == 5 * 2 * 2
    made = {method: found[method, "tr", 1].made for method in METHODS}
    assert made["vanilla"] is None
    task = ["", "task · en · seed 1", []]
    assert made["english_tuning"] is not None and names(made["english_tuning"]) == task
    merged = made["adamergex"]
    assert merged is not None and names(merged)[1:] == ["merged", [
        ["task", *task[1:]],
        ["source reference", "reference · en · seed 1", []],
        ["target reference", "reference · tr · seed 1", []],
    ]]  # fmt: skip
    assert "rule additive, factors space" in merged.detail and "λ = " in merged.detail
    for behind in found.values():
        lines = (runs[0] / str(behind.cell.predictions)).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        wrong = [row for row in rows if row["gold"] != row["predicted"]][:3]
        right = [row for row in rows if row["gold"] == row["predicted"]][:2]
        shown = [(item.name, item.gold, item.predicted, item.right) for item in behind.items]
        assert shown == [(str(r["id"]), r["gold"], r["predicted"], r["gold"] == r["predicted"]) for r in wrong + right]
        assert behind.items


def test_answers_of_other_metrics_and_broken_files(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[1], tmp_path / "run")
    results = load(tmp_path / "run" / "results.json")
    one, other = results.cells[0], results.cells[1]
    rows = [{"id": 1, "gold": ["a " * 80, "b"], "predicted": "a", "tally": [0.5, 1.0]},
            {"id": 2, "gold": [], "predicted": [], "tally": [0, 0]}]  # fmt: skip
    (tmp_path / "run" / str(one.predictions)).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "run" / str(other.predictions)).write_text('{"id": 1}\n', encoding="utf-8")
    found = gather(results, tmp_path / "run")
    half, whole = found.behind[0].items
    assert (half.share, half.right, whole.right) == (0.5, False, True) and len(half.gold) == 90
    assert found.behind[1].items == () and str(other.predictions) in found.notes[0]
    page = report([tmp_path / "run"], tmp_path / "out").read_text(encoding="utf-8")
    assert "<td>50 %</td>" in page and str(other.predictions) in page


def test_a_moved_run_without_its_store_keeps_what_is_recorded(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[1], tmp_path / "a" / "b" / "run")
    text = (tmp_path / "a" / "b" / "run" / "results.json").read_text(encoding="utf-8")
    (tmp_path / "a" / "b" / "run" / "results.json").write_text(text.replace("../store", "../gone"), encoding="utf-8")
    for path in (tmp_path / "a" / "b" / "run" / "adapters").glob("*/lineage.json"):
        path.write_text(path.read_text(encoding="utf-8").replace("/store/", "/gone/"), encoding="utf-8")
    found = gather(load(tmp_path / "a" / "b" / "run" / "results.json"), tmp_path / "a" / "b" / "run")
    assert found.similarity is None
    made = next(item.made for item in found.behind if item.cell.method == "adamergex")
    assert made is not None and [parent.path for parent in made.parents] == [None] * 3
    assert all("SHA-256" in parent.detail for parent in made.parents)


def test_failed_cells_show_as_such_and_are_filled_later(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = actions.ACTIONS["train"]

    def without_turkish(job: Any, *others: Any) -> None:
        if job.language == "tr":
            raise DataError("no Turkish today", where="tr.txt")
        real(job, *others)

    wanted = settings(tiny_encoder, small_data, tmp_path / "run", methods=METHODS)
    monkeypatch.setattr("adamergex.tables.transfer.ACTIONS", {**actions.ACTIONS, "train": without_turkish})
    with pytest.raises(AdamergexError, match="no Turkish today"):
        transfer(parse(wanted), say=silent)
    results = load(tmp_path / "run" / "results.json")
    missing = [(item.method, item.language, item.reason) for item in results.missing]
    reason = "train reference · tr · seed 0 is not done"
    assert missing == [("average", "tr", reason), ("adamergex", "tr", reason)]
    assert len(results.cells) == 6 and len(results.tuning) == 1
    path = report([tmp_path / "run"], tmp_path / "report")
    page = path.read_text(encoding="utf-8")
    assert "2 of 8 cells are not done." in page and reason in page
    rows = {row[0]: row for row in Reader(page).tables[0][1:]}
    assert rows["AriMerge"][2:] == ["– not done", "– 1 of 2"] and "not done" not in " ".join(rows["Eng-FT"])
    assert reason in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    monkeypatch.setattr("adamergex.tables.transfer.ACTIONS", actions.ACTIONS)
    transfer(parse(wanted), say=silent)
    assert load(tmp_path / "run" / "results.json").missing == ()


def test_nothing_is_written_when_nothing_was_measured(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise DataError("no data", where="here")

    monkeypatch.setattr("adamergex.tables.transfer.ACTIONS", dict.fromkeys(actions.ACTIONS, fails))
    with pytest.raises(AdamergexError):
        transfer(parse(settings(tiny_encoder, small_data, tmp_path / "run", methods=METHODS)), say=silent)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.fixture
def study(runs: list[Path], tmp_path: Path) -> Path:
    """A study's folder: one table where the study says, one that was moved with it, one that is not there."""
    folder = tmp_path / "study"
    shutil.copytree(runs[1], folder / "ia3")
    tables = {"lora": {"output": str(runs[0]), "complete": True}, "ia3": {"output": "/was/ia3", "complete": True},
              "ner": {"output": "/was/ner", "complete": False}}  # fmt: skip
    study = {"title": "All", "tables": tables, "missing": ["train task · en · seed 0 (for ner)"]}
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    return folder


def test_a_study_is_read_table_by_table(study: Path, runs: list[Path], tmp_path: Path) -> None:
    page = report([study, runs[0]], tmp_path / "out").read_text(encoding="utf-8")
    assert page.count('<h2 class="run"') == 2  # the first run is the study's own table: shown once
    assert "All: the table ner is not there." in page and "Not done: train task · en · seed 0 (for ner)" in page
    assert "Not everything is there" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tables": 3}', "tables: Input"),
        ("{", "file of the study is not valid"),
        ('{"tables": {}}', "nothing to report"),
    ],
)
def test_what_is_no_run_is_one_message(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str], sample: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "study.json").write_text(text, encoding="utf-8")
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert main(["report", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps({**sample(), "cells": 3}), encoding="utf-8")
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "results are not valid" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "results.json").write_text(json.dumps(sample()), encoding="utf-8")
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "study.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err
