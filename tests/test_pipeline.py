"""The whole way on a tiny real checkpoint: settings -> adapters -> merge -> scores -> report, and what is shared."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import adamergex
from adamergex import statistics
from adamergex.config.transfer import parse
from adamergex.errors import ConfigError, DataError, ModelError
from adamergex.graph.steps import Store
from adamergex.merging import merge
from adamergex.merging.prepare import MergeSpec, prepare
from adamergex.report.results_file import as_dict, load
from adamergex.search import tuning
from adamergex.tables import actions
from adamergex.tables.plan import Plan, absolute, facts
from adamergex.tables.transfer import summary, transfer


def settings(base: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    quick = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2}
    return {
        "title": "A tiny transfer",
        "base": str(base),
        "structure": {"kind": "lora", "rank": 2, "alpha": 4},
        "proxy": "fr",
        "targets": ["sw", "tr"],
        "methods": ["vanilla", "english_tuning", "average", "adamergex", "adamergex_delta", "adamergex_cross"],
        "task": {
            "train": f"{data}/{{language}}.train.tsv",
            "validation": f"{data}/{{language}}.validation.tsv",
            "test": f"{data}/{{language}}.test.tsv",
            "optimisation": quick,
        },
        "reference": {"text": f"{data}/{{language}}.txt", "segment": 16, "optimisation": quick},
        "merge": {"grid": [0.5, 1.0]},
        "output": str(output),
        **changes,
    }


class Counting(dict[str, Any]):
    """The real actions, counted."""

    def __init__(self) -> None:
        super().__init__({kind: self._counted(kind, action) for kind, action in actions.ACTIONS.items()})
        self.runs: Counter[str] = Counter()

    def _counted(self, kind: str, action: Any) -> Any:
        def run(*arguments: Any) -> None:
            self.runs[kind] += 1
            action(*arguments)

        return run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr("adamergex.tables.transfer.ACTIONS", counting)
    return counting


def silent(line: str) -> None:
    pass


def test_the_whole_way(tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting) -> None:
    config = parse(settings(tiny_encoder, small_data, tmp_path / "run"))
    measured = transfer(config, say=silent)
    results = as_dict(measured)
    # One task adapter and one reference for each of en, fr, sw, tr serve six methods and two targets.
    assert counted.runs["train"] == 5
    assert counted.runs["tune"] == 3  # adamergex, its delta space and the crossed rule
    assert {(cell["method"], cell["language"]) for cell in results["cells"]} == {
        (method, language) for method in config.methods for language in config.targets
    }
    for cell in results["cells"]:
        lines = (tmp_path / "run" / cell["predictions"]).read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        right = sum(item["gold"] == item["predicted"] for item in found)
        assert cell["n"] == len(found) == 24
        assert cell["score"] == pytest.approx(100 * right / 24)
    for curve in results["tuning"]:
        assert [point["weight"] for point in curve["curve"]] == [0.0, 0.5, 1.0]
    merged = tmp_path / "run" / "adapters" / "average-sw-seed0"
    assert {"adapter_config.json", "adapter_model.safetensors", "lineage.json", "README.md"} <= {
        path.name for path in merged.iterdir()
    }
    for name in ("report.html", "report.md", "scores.csv", "results.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    items = {}
    for cell in results["cells"]:
        text = (tmp_path / "run" / cell["predictions"]).read_text(encoding="utf-8")
        items[cell["method"], cell["language"], cell["seed"]] = [json.loads(line) for line in text.splitlines()]
    samples = {cell: statistics.Sample.read(found) for cell, found in items.items()}
    targets = tuple(results["targets"])
    assert measured.pooled == statistics.pooled(samples, targets)
    assert measured.comparisons == statistics.comparisons(samples, targets, "english_tuning")
    assert load(tmp_path / "run" / "results.json") == measured  # one writer, one reader
    assert json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8")) == results
    assert {row["language"] for row in results["comparisons"]} == {*targets, "mean"}
    table = summary(measured, tmp_path / "run")
    assert "AdaMergeX (delta)" in table and "tuned on fr" in table
    means = next(row for row in results["pooled"] if (row["method"], row["language"]) == ("average", "mean"))
    line = next(line for line in table.splitlines() if line.startswith("AriMerge"))
    assert line.rstrip(" *").endswith("{:.1f} [{:.1f}, {:.1f}]".format(means["score"], *means["interval"]))

    counted.runs.clear()
    again = as_dict(transfer(config, say=silent))
    assert sum(counted.runs.values()) == 0
    assert again["cells"] == results["cells"]
    assert all(adapter["reused"] for adapter in again["adapters"])


def test_a_changed_setting_runs_only_what_it_touches(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting
) -> None:
    shared = {"store": str(tmp_path / "store"), "methods": ["english_tuning", "adamergex"], "targets": ["sw"]}
    transfer(parse(settings(tiny_encoder, small_data, tmp_path / "a", **shared)), say=silent)
    assert counted.runs["train"] == 4
    counted.runs.clear()
    more = {**shared, "targets": ["sw", "tr"]}
    transfer(parse(settings(tiny_encoder, small_data, tmp_path / "b", **more)), say=silent)
    assert counted.runs["train"] == 1  # the reference of tr
    counted.runs.clear()
    fixed = {**shared, "merge": {"weight": 0.5}, "proxy": None}
    transfer(parse(settings(tiny_encoder, small_data, tmp_path / "c", **fixed)), say=silent)
    assert counted.runs == Counter(merge=1, evaluate=1)


def test_keys_follow_contents_not_paths(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    def keys(folder: Path) -> set[str]:
        config = absolute(parse(settings(tiny_encoder, folder, tmp_path)))
        return {step.key for step in Plan(config, facts(config)).wanted}

    moved = tmp_path / "moved"
    moved.mkdir()
    for path in small_data.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert keys(moved) == keys(small_data)
    with (moved / "sw.txt").open("a", encoding="utf-8") as file:
        file.write("mstari mpya\n")
    assert keys(moved) != keys(small_data)


@pytest.mark.parametrize(("role", "language"), [("test", "tr"), ("validation", "fr")])
def test_unknown_labels_are_told_before_anything_is_trained(
    role: str, language: str, tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    for file in small_data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / f"{language}.{role}.tsv").open("a", encoding="utf-8") as file:
        file.write("sport\tfutbol\n")
    wanted = settings(tiny_encoder, tmp_path, tmp_path / "run", methods=["adamergex"])
    said = rf"not one of the task's[\s\S]*{language}\.{role}\.tsv, row 25[\s\S]*'sport'[\s\S]*'sports'"
    with pytest.raises(DataError, match=said):
        transfer(parse(wanted), say=silent)
    assert not (tmp_path / "run").exists()
    # Inputs for the entropy of predictions need no true labels.
    wanted["merge"] = {"weight": "entropy", "unlabelled": "validation"}
    wanted["task"]["test"] = f"{small_data}/{{language}}.test.tsv"
    config = absolute(parse({**wanted, "proxy": None, "targets": ["fr"]}))
    assert Plan(config, facts(config)).tunings


def test_labels_beside_reference_text_change_nothing(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    def keys(*labels: str | None) -> set[str]:
        folder = tmp_path / str(labels)
        folder.mkdir()
        for file in small_data.glob("*.txt"):
            rows = [{"text": text} for text in file.read_text(encoding="utf-8").splitlines()]
            rows = [row | ({"label": labels[number % 2]} if labels else {}) for number, row in enumerate(rows)]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{file.stem}.jsonl").write_text(lines, encoding="utf-8")
        wanted = settings(tiny_encoder, small_data, tmp_path / "run")
        wanted["reference"]["text"] = str(folder / "{language}.jsonl")
        config = absolute(parse(wanted))
        return {step.key for step in Plan(config, facts(config)).wanted}

    assert keys() == keys(None, "a")


def test_a_prefix_is_merged_in_the_span_and_form_that_is_asked_for(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    """In the table as in the search of λ; what is usual is not written, so that keys stay what they were."""
    shared: dict[str, Any] = {"structure": {"kind": "prefix", "virtual_tokens": 3}, "targets": ["sw"]}
    shared |= {"methods": ["average", "adamergex"], "store": str(tmp_path / "store")}

    def jobs(**merge: Any) -> dict[str, dict[str, Any]]:
        wanted = settings(tiny_encoder, small_data, tmp_path, **shared, merge={"grid": [0.5], **merge})
        config = absolute(parse(wanted))
        steps = Plan(config, facts(config)).wanted
        return {step.key: step.job.model_dump(mode="json") for step in steps if step.kind in ("merge", "tune")}

    usual = jobs()
    assert usual == jobs(span="per_layer", form="left")
    assert not any({"span", "form"} & {*job, *job.get("merge", {})} for job in usual.values())
    other = jobs(span="whole", form="literal")
    assert [job["rule"] for key, job in other.items() if key in usual] == ["average"]  # which has neither
    merging = {"grid": [0.5], "span": "whole", "form": "literal"}
    results = as_dict(
        transfer(parse(settings(tiny_encoder, small_data, tmp_path / "run", **shared, merge=merging)), say=silent)
    )
    [cell] = [cell for cell in results["cells"] if cell["method"] == "adamergex"]
    lineage = json.loads((tmp_path / "run" / cell["adapter"] / "lineage.json").read_text(encoding="utf-8"))
    assert (lineage["merge"]["span"], lineage["merge"]["form"]) == ("whole", "literal")
    with pytest.raises(ConfigError, match=r"merge\.span: 'whole' is for prefix[\s\S]*merge\.form: 'literal'"):
        parse(settings(tiny_encoder, small_data, tmp_path, merge=merging))


@pytest.mark.parametrize(("span", "form"), [("whole", "left"), ("per_kv", "literal")])
def test_the_search_makes_what_a_merge_in_this_span_and_form_writes(span: str, form: str, tmp_path: Path) -> None:
    config = {"peft_type": "PREFIX_TUNING", "base_model_name_or_path": "BASE", "num_virtual_tokens": 3,
              "num_layers": 2, "token_dim": 4, "num_attention_heads": 2, "num_transformer_submodules": 1}  # fmt: skip
    roles, generator = ("task", "target_reference", "source_reference"), torch.Generator().manual_seed(0)
    for role in roles:
        (tmp_path / role).mkdir()
        (tmp_path / role / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        tensors = {"prompt_embeddings": torch.randn(3, 16, generator=generator)}
        save_file(tensors, tmp_path / role / "adapter_model.safetensors")
    merge(**{role: tmp_path / role for role in roles}, weight=0.5, span=span, form=form, output=tmp_path / "out")  # type: ignore[arg-type]
    prepared = prepare(MergeSpec(span=span, form=form), **{role: tmp_path / role for role in roles})  # type: ignore[arg-type]
    found = {candidate.weight: candidate.tensors for candidate in tuning.candidates(prepared, [0.5])}
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(found[0.5]["prompt_embeddings"], written["prompt_embeddings"])


def test_a_killed_run_goes_on(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(settings(tiny_encoder, small_data, tmp_path / "run", methods=["adamergex"], targets=["sw"]))
    real, runs = counted["train"], []

    def killed_at_the_third(*arguments: Any) -> None:
        runs.append(arguments)
        if len(runs) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setitem(counted, "train", killed_at_the_third)
        transfer(config, say=silent)
    monkeypatch.setitem(counted, "train", real)
    counted.runs.clear()
    transfer(config, say=silent)
    assert counted.runs["train"] == 2
    store = Store(tmp_path / "run" / "store")
    assert all(store.has(step) for step in Plan(absolute(config), facts(absolute(config))).trainings)


def test_python_entry_takes_a_mapping(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_encoder, small_data, tmp_path / "ignored", methods=["english_tuning"], targets=["sw"])
    results = as_dict(adamergex.transfer(wanted, output=tmp_path / "chosen"))
    assert results["cells"][0]["method"] == "english_tuning"
    assert (tmp_path / "chosen" / "report.html").exists() and not (tmp_path / "ignored").exists()


def test_what_is_wrong_is_said_before_anything_runs(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        transfer(parse(settings(tmp_path / "none", small_data, tmp_path / "run")), say=silent)
    short = settings(tiny_encoder, small_data, tmp_path / "run")
    short["reference"]["segment"] = 60
    for language in ("en", "fr", "sw", "tr"):
        (tmp_path / f"{language}.txt").write_text("a b\n", encoding="utf-8")
    short["reference"]["text"] = str(tmp_path / "{language}.txt")
    with pytest.raises(DataError, match="too little text for one segment"):
        transfer(parse(short), say=silent)
    missing = settings(tiny_encoder, tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(DataError, match="nowhere"):
        transfer(parse(missing), say=silent)
    assert not (tmp_path / "run").exists()
