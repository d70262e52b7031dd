"""The shipped settings of the papers' tasks: they validate, and run (on real data, cut to a few rows) to a report."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from adamergex.config.task import BuiltinTask
from adamergex.config.transfer import load, parse
from adamergex.errors import ConfigError
from adamergex.report.results_file import as_dict
from adamergex.tables.plan import Plan, absolute, facts
from adamergex.tables.transfer import transfer
from adamergex.tasks import catalogue

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "tasks").glob("*.yaml"))
REAL = os.environ.get("ADAMERGEX_DATA")


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_tasks_are_valid(path: Path) -> None:
    config = load(path)
    assert isinstance(config.task, BuiltinTask) and config.task.name == path.stem and len(config.targets) >= 3
    assert config.task.task().name == path.stem


def small(path: Path, output: Path, data: str) -> dict[str, Any]:
    """The example on a few rows and steps: two targets, λ of three, the shipped backbone."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8").replace("../../data", data))
    task, quick = settings["task"], {"steps": 2, "batch_size": 2, "learning_rate": 1e-3}
    for role in ("train", "validation", "test"):
        task[role] = {**task.get(role, {}), "limit": 6}
    task["optimisation"], task["data"] = quick, data
    if "max_new_tokens" in task.get("settings", {}):
        task["settings"]["max_new_tokens"] = 4
    reference = {**settings["reference"], "segments": 4, "segment": 32, "optimisation": quick}
    reference["text"] = {"path": settings["reference"]["text"], "limit": 40}
    merge = {**settings["merge"], **({"grid": [0.5]} if settings["merge"]["weight"] == "tuned" else {})}
    return {
        **settings,
        "targets": settings["targets"][:2],
        "reference": reference,
        "merge": merge,
        "output": str(output),
    }


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_tasks_run(path: Path, tmp_path: Path) -> None:
    results = as_dict(transfer(parse(small(path, tmp_path / "run", str(REAL))), say=silent))
    task = catalogue.task_file(path.stem).TASK
    assert results["metric"] == task.metric
    for cell in results["cells"]:
        assert cell["n"] == 6 and cell["interval"][0] <= cell["score"] <= cell["interval"][1]
        lines = (tmp_path / "run" / cell["predictions"]).read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        own = catalogue.task_file(path.stem).score(
            [item["predicted"] for item in found], [item["gold"] for item in found], cell["language"]
        )
        assert cell["scores"] == pytest.approx(own)  # the number of the report is the task's own
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
    again = as_dict(transfer(parse(small(path, tmp_path / "run", str(REAL))), say=silent))
    assert again["cells"] == results["cells"] and all(item["reused"] for item in again["adapters"])


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize(
    ("name", "base"),
    [
        *((name, "nano-causal") for name in ("xcopa", "xnli", "xquad", "ner")),
        *((name, "T5") for name in ("sib200", "xcopa", "xnli", "xquad", "ner", "mgsm", "tata")),
    ],
)
def test_every_task_runs_on_models_that_write_too(name: str, base: str, roomy_t5: str, tmp_path: Path) -> None:
    settings = small(ROOT / "examples" / "tasks" / f"{name}.yaml", tmp_path / "run", str(REAL))
    settings |= {"base": base, "methods": ["vanilla", "english_tuning"], "targets": settings["targets"][:1]}
    settings["task"]["settings"] = {"max_length": 512}
    if base == "T5":  # it knows few words, so that its inputs have many pieces
        settings |= {"base": roomy_t5}
        settings["task"]["settings"] = {
            "max_length": 1600,
            **({"max_new_tokens": 4} if name in ("mgsm", "tata") else {}),
        }
    results = as_dict(transfer(parse(settings), say=silent))
    assert [cell["n"] for cell in results["cells"]] == [6, 6]


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize("language", ["ar", "hi", "th", "vi", "zh"])
def test_real_answers_are_found_again_through_pieces_and_windows(language: str) -> None:
    """Contexts of up to 1,000 tokens: the gold span of some window is the gold answer, character for character."""
    from adamergex.backbones.loading import tokenizer
    from adamergex.tasks.spans import span_examples

    task: Any = catalogue.task_file("xquad")
    rows = task.rows(str(REAL), language, "held-out")
    made = span_examples(task.TASK.model_copy(update={"stride": 64}), rows, tokenizer("nano"), 256)
    assert made.truncated > 0
    right = set()
    for window, (first, last) in zip(made.windows, made.answer_spans, strict=True):
        if first:
            row = rows[window.row]
            start, end = window.offsets[first - window.begin][0], window.offsets[last - window.begin][1]
            assert start <= row["starts"][0] and end >= row["starts"][0] + len(row["answers"][0])
            if row["context"][start:end] == row["answers"][0]:
                right.add(window.row)
    assert len(right) / len(rows) > 0.9  # a piece may be wider than the answer, in scripts without spaces


def settings_with(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"base": "nano", "proxy": "vi", "targets": ["sw"], "reference": {"text": "{language}.txt"}, "task": task,
            **changes}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "messages"),
    [
        ({"name": "xcpoa", "data": "x"}, ["task.name", "there is no task 'xcpoa'", "perhaps 'xcopa'"]),
        ({"name": "xcopa"}, ["task.data: missing"]),
        (
            {"name": "xquad", "data": "x", "settings": {"strde": 3, "max_length": 0}, "tets": {}},
            ["task.tets: no such setting; did you mean 'test'?"],
        ),
        (
            {"name": "xquad", "data": "x", "settings": {"strde": 3, "max_length": 0}},
            ["task.settings.strde: no such setting; did you mean 'stride'?", "task.settings.max_length: Input should"],
        ),
        ({"kind": "tagging", "train": "a"}, ["task.test: missing"]),
        (
            {"kind": "taging", "train": "a", "test": "b"},
            ["task.kind: 'taging' is not one of", "did you mean 'tagging'?"],
        ),
        (
            {"kind": "span", "train": "a", "test": "b", "strid": 1},
            ["task.strid: no such setting; did you mean 'stride'?"],
        ),
        ({"name": "./none.py", "data": "x"}, ["there is no such task file"]),
    ],
)
def test_problems_of_tasks_are_named(task: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(settings_with(task))
    for message in messages:
        assert message in str(caught.value)


def own_task(folder: Path) -> dict[str, Any]:
    """Tagged sentences of two languages, a few of them."""
    for language in ("en", "fr", "sw"):
        rows = [{"tokens": ["Amina", "lives", "in", place], "tags": ["B-PER", "O", "O", "B-LOC"]} for place in
                ("Kisumu", "Paris", "Lyon", "Ibadan")]  # fmt: skip
        (folder / f"{language}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / f"{language}.txt").write_text("Amina lives in Kisumu .\n" * 40, encoding="utf-8")
    quick = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3}
    files = "{language}.jsonl"
    return settings_with(
        {"kind": "tagging", "train": "en.jsonl", "validation": files, "test": files, "optimisation": quick},
        proxy="fr", methods=["english_tuning", "average", "adamergex"], folder=str(folder), output=str(folder / "run"),
        reference={"text": "{language}.txt", "segment": 16, "segments": 4, "optimisation": quick},
        merge={"grid": [0.5]},
    )  # fmt: skip


def test_a_users_own_tags_run_to_a_report(tmp_path: Path, tiny_encoder: Path) -> None:
    results = as_dict(transfer(parse({**own_task(tmp_path), "base": str(tiny_encoder)}), say=silent))
    assert results["metric"] == "f1" and {cell["n"] for cell in results["cells"]} == {4}
    assert "F1 in percent" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    compared = [cell["against"] for cell in results["cells"] if cell["against"]]
    assert compared and all(0 < pair["p"] <= 1 for pair in compared)


def test_keys_hold_the_rows_and_the_metric(tmp_path: Path, tiny_encoder: Path) -> None:
    def keys(**changes: Any) -> set[str]:
        settings = {**own_task(tmp_path), "base": str(tiny_encoder)}
        config = absolute(parse({**settings, "task": {**settings["task"], **changes}}))
        return {step.key for step in Plan(config, facts(config)).evaluations.values()}

    first = keys()
    assert keys() == first
    assert not keys(max_length=100) & first and not keys(types=["LOC", "ORG", "PER"]) & first
    assert not keys(train={"path": "en.jsonl", "limit": 3}) & first
    assert not keys(measured_as="xquad") & first


def test_the_task_that_the_documentation_adds_runs(tmp_path: Path, tiny_encoder: Path) -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(block.splitlines()) <= 30
    (tmp_path / "plausible.py").write_text(block, encoding="utf-8")
    lines = ["story,first,second,label", *(f"The ice was thin {n}.,It broke.,It sang.,{n % 2}" for n in range(6))]
    for language in ("en", "fr", "sw"):
        for split in ("train", "validation", "test"):
            (tmp_path / f"{language}.{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (tmp_path / f"{language}.txt").write_text("The ice was thin. It broke.\n" * 40, encoding="utf-8")
    quick = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3}
    config = settings_with(
        {"name": "./plausible.py", "data": ".", "optimisation": quick, "test": {"limit": 5}},
        base=str(tiny_encoder), proxy="fr", methods=["english_tuning", "adamergex"], folder=str(tmp_path),
        reference={"text": "{language}.txt", "segment": 16, "segments": 4, "optimisation": quick},
        merge={"grid": [0.5]}, output=str(tmp_path / "run"),
    )  # fmt: skip
    results = as_dict(transfer(parse(config), say=silent))
    assert results["metric"] == "accuracy" and {cell["n"] for cell in results["cells"]} == {5}
    (moved := tmp_path / "moved").mkdir()
    for path in [*tmp_path.glob("*.csv"), *tmp_path.glob("*.txt"), tmp_path / "plausible.py"]:
        (moved / path.name).write_bytes(path.read_bytes())

    def keys(folder: Path) -> set[str]:
        made = absolute(parse({**config, "folder": str(folder)}))
        return {step.key for step in Plan(made, facts(made)).evaluations.values()}

    assert keys(moved) == keys(tmp_path)  # the same file elsewhere is the same task
    (moved / "plausible.py").write_text(block.replace("Share of", "The share of"), encoding="utf-8")
    assert not keys(moved) & keys(tmp_path)
