"""MAD-X through the whole way: settings -> language and task adapters -> stacks -> scores -> report; and `train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import adamergex
from adamergex.adapters.formats.adapterhub import read_adapter
from adamergex.cli.main import main
from adamergex.config.train import parse_training
from adamergex.config.transfer import load, parse
from adamergex.errors import ConfigError
from adamergex.evaluation import evaluate
from adamergex.files import lineage
from adamergex.graph.steps import Store
from adamergex.merging import merge
from adamergex.report.results_file import as_dict
from adamergex.report.results_file import parse as parse_results
from adamergex.tables.demo import CORPUS
from adamergex.tables.plan import Plan, absolute, facts
from adamergex.tables.transfer import summary, transfer
from test_pipeline import Counting, counted, settings, silent

__all__ = ["counted"]  # a fixture

QUICK = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2}
MAD_X = {"language": {"reduction": 4, "segment": 16, "optimisation": QUICK}, "task": {"reduction": 8}}
METHODS = ["mad_x", "mad_x_no_invertible", "mad_x_task_only"]


@pytest.fixture(scope="module")
def bases(tiny_encoder: Path, tiny_decoder: Path, families: dict[str, str]) -> dict[str, Path]:
    """T5 learns a language by span corruption, BART by continuing texts."""
    found = {name: Path(folder) for name, folder in families.items() if name in ("t5", "bart")}
    return {"encoder": tiny_encoder, "decoder": tiny_decoder, **found}


def stacked(base: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return settings(base, data, output, **{"methods": METHODS, "mad_x": MAD_X, "proxy": None, **changes})


@pytest.mark.parametrize("family", ["encoder", "decoder", "t5", "bart"])
def test_the_whole_way(
    bases: dict[str, Path], small_data: Path, tmp_path: Path, counted: Counting, family: str
) -> None:
    base = bases[family]
    config = parse(stacked(base, small_data, tmp_path / "run", methods=["english_tuning", *METHODS]))
    results = as_dict(transfer(config, say=silent))
    # Language adapters of en, sw, tr, with and without their invertible part; four task adapters: LoRA, one on each
    # kind of source language adapter, and one alone.
    assert counted.runs["train"] == 6 + 4 and counted.runs["merge"] == counted.runs["tune"] == 0
    assert {(cell["method"], cell["language"]) for cell in results["cells"]} == {
        (method, language) for method in config.methods for language in config.targets
    }
    for cell in results["cells"]:
        lines = (tmp_path / "run" / cell["predictions"]).read_text(encoding="utf-8").splitlines()
        assert cell["n"] == len(lines) == 24
        alone = cell["method"] in ("english_tuning", "mad_x_task_only")
        assert cell["adapter"].startswith("store/train/" if alone else "adapters/")
    folder = tmp_path / "run" / "adapters" / "mad_x-sw-seed0"
    language, task = read_adapter(folder / "language"), read_adapter(folder / "task")
    assert (language.name, language.config.invertible) == ("sw", True)
    assert (task.name, task.config.invertible) == ("classification-en", False)
    assert task.lineage is not None and task.lineage.parents["base_adapter"]["language"] == "en"
    without = tmp_path / "run" / "adapters" / "mad_x_no_invertible-sw-seed0"
    assert not read_adapter(without / "language").config.invertible
    table = summary(parse_results(results), tmp_path / "run")
    assert "MAD-X −INV" in table and "MAD-X −LAD −INV" in table
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "MAD-X task on language" in page
    names = {adapter["name"] for adapter in results["adapters"]}
    assert {"language · sw · seed 0", "language −INV · en · seed 0", "MAD-X task · en · seed 0"} <= names

    counted.runs.clear()
    assert as_dict(transfer(config, say=silent))["cells"] == results["cells"]
    assert sum(counted.runs.values()) == 0


def test_a_language_adapter_serves_every_task_and_target(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting
) -> None:
    shared = {"store": str(tmp_path / "store"), "methods": ["mad_x"], "targets": ["sw"]}
    transfer(parse(stacked(tiny_encoder, small_data, tmp_path / "a", **shared)), say=silent)
    assert counted.runs["train"] == 3
    counted.runs.clear()
    transfer(
        parse(stacked(tiny_encoder, small_data, tmp_path / "b", **{**shared, "targets": ["sw", "tr"]})), say=silent
    )
    assert counted.runs["train"] == 1  # the language tr
    counted.runs.clear()
    other = stacked(tiny_encoder, small_data, tmp_path / "c", **shared)
    other["task"]["max_length"] = 20
    transfer(parse(other), say=silent)
    assert counted.runs["train"] == 1  # the task, on the language adapters that are there
    counted.runs.clear()
    other["structure"] = {"kind": "ia3"}  # is for the other methods
    other["output"] = str(tmp_path / "d")
    transfer(parse(other), say=silent)
    assert counted.runs["train"] == 0


def test_the_stack_is_part_of_the_key_and_its_place_is_not(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    def steps(**changes: Any) -> dict[str, str]:
        config = absolute(parse(stacked(tiny_encoder, small_data, tmp_path, **changes)))
        return {step.label: step.key for step in Plan(config, facts(config)).trainings}

    first = steps()
    longer = {**MAD_X, "language": {**MAD_X["language"], "optimisation": {**QUICK, "steps": 4}}}
    second = steps(mad_x=longer)
    changed = {label for label in first if first[label] != second[label]}
    assert changed == set(first) - {"MAD-X task · en · seed 0"}  # the task adapter on another language is another one
    assert steps(store=str(tmp_path / "store")) == first


def test_english_tuning_and_plain_structures_keep_their_keys(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    """Stores of before there were stacks stay good: an identity holds what it held."""
    config = absolute(parse(settings(tiny_encoder, small_data, tmp_path, methods=["english_tuning"])))
    plan = Plan(config, facts(config))
    (step,) = plan.trainings
    assert set(step.identity) == {"base", "structure", "task", "language", "rows", "optimisation", "seed"}
    assert set(step.identity["structure"]) == {"kind", "rank", "alpha", "dropout", "modules"}
    assert {tuple(step.inputs) for step in plan.evaluations.values()} == {("adapter",)}


def test_a_bottleneck_is_a_structure_like_any_other(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting
) -> None:
    shape = {"kind": "bottleneck", "reduction": 4, "leave_out": [1]}
    wanted = settings(tiny_encoder, small_data, tmp_path / "run", structure=shape, methods=["english_tuning"])
    results = as_dict(transfer(parse(wanted), say=silent))
    assert counted.runs["train"] == 1 and len(results["cells"]) == 2 and results["structure"] == "bottleneck"
    config = absolute(parse(wanted))
    (step,) = Plan(config, facts(config)).trainings
    found = read_adapter(Store(tmp_path / "run" / "store").path(step))
    assert found.config.leave_out == (1,) and found.head is not None


def test_settings_say_what_is_wrong() -> None:
    given = settings(Path("b"), Path("d"), Path("o"), methods=["mad_x", "madx"], mad_x={"language": {"reducton": 2}})
    with pytest.raises(ConfigError) as caught:
        parse(given)
    assert "mad_x.language.reducton: no such setting; did you mean 'reduction'?" in str(caught.value)
    assert "'madx' is not one of" in str(caught.value) and "did you mean 'mad_x'" in str(caught.value)
    with pytest.raises(ConfigError, match="structure: rank: not a setting of kind 'bottleneck'"):
        parse(settings(Path("b"), Path("d"), Path("o"), structure={"kind": "bottleneck", "rank": 2}))
    defaults = parse(settings(Path("b"), Path("d"), Path("o"))).mad_x
    assert (defaults.language.reduction, defaults.task.reduction, defaults.language.invertible) == (2, 16, True)
    partial = parse(settings(Path("b"), Path("d"), Path("o"), mad_x={"language": {"optimisation": {"steps": 7}}})).mad_x
    assert (partial.language.optimisation.steps, partial.language.optimisation.learning_rate) == (7, 1e-4)


@pytest.mark.parametrize("base", ["nano", "nano-causal"])
def test_the_demo_has_a_row_for_mad_x(base: str) -> None:
    assert "mad_x" in load(CORPUS / f"{base}.yaml").methods


def written(folder: Path, name: str, /, **contents: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(contents), encoding="utf-8")
    return str(path)


def test_train_a_language_then_a_task_then_evaluate_in_another_language(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny_encoder)
    for code in ("en", "sw"):
        file = written(
            tmp_path, code, kind="language", base=base, language=code, text=str(small_data / "{language}.txt"),
            segment=16, optimisation=QUICK, output=f"adapters/{code}",
        )  # fmt: skip
        assert main(["train", file]) == 0
    assert f"written: {tmp_path / 'adapters' / 'sw'}" in capsys.readouterr().out
    found = read_adapter(tmp_path / "adapters" / "sw")
    assert (found.config.reduction, found.config.invertible, found.name) == (2, True, "sw")
    train = {"path": str(small_data / "en.train.tsv")}
    learned = {"train": train, "optimisation": QUICK, "name": "topics"}
    shared = {"kind": "task", "base": base, "language": "en", "task": learned}
    task = written(tmp_path, "task", **shared, base_adapters="adapters/en", output="adapters/topics")
    assert main(["train", task]) == 0
    assert "parameters, 24 examples, 3 steps: loss" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "adapters" / "topics")]) == 0
    text = capsys.readouterr().out
    assert "bottleneck" in text and base in text and "base_adapter" in text
    given = ["--base", base, "--test", str(small_data / "sw.test.tsv"), "--language", "sw"]
    stack = ["--adapter", str(tmp_path / "adapters" / "sw"), "--adapter", str(tmp_path / "adapters" / "topics")]
    assert main(["evaluate", *given, *stack, "--output", str(tmp_path / "scores")]) == 0
    assert "on 24 items" in capsys.readouterr().out
    # ``below`` is the former name of ``base_adapters``.
    former = written(tmp_path, "former", **shared, below="adapters/en", output="adapters/former")
    assert main(["train", former]) == 0
    files = [tmp_path / "adapters" / name / "adapter_model.safetensors" for name in ("topics", "former")]
    assert files[0].read_bytes() == files[1].read_bytes()
    # A LoRA task adapter, alone.
    lora = written(tmp_path, "lora", **shared, structure={"kind": "lora", "rank": 2}, output="lora")
    assert main(["train", lora, "--output", str(tmp_path / "elsewhere")]) == 0
    assert json.loads((tmp_path / "elsewhere" / "adapter_config.json").read_text())["r"] == 2
    assert not list(tmp_path.glob(".*")) and not list((tmp_path / "adapters").glob(".*"))


def test_what_is_wrong_with_a_training_is_said_at_the_command_line(
    tiny_encoder: Path, tiny_decoder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def message(**contents: Any) -> str:
        assert main(["train", written(tmp_path, "wrong", **contents)]) == 2
        return capsys.readouterr().err

    known = "language, task, masked-lm-head"
    assert f"kind: 'langauge' is not one of {known}; did you mean 'language'?" in message(kind="langauge")
    several = message(kind="language", base="nano", language="sw", text="sw.txt", segmnt=3, optimisation={"steps": 0})
    assert "segmnt: no such setting; did you mean 'segment'?" in several and "output: missing" in several
    assert "optimisation.steps" in several and "3 problems" in several
    text = str(small_data / "sw.txt")
    language = {"kind": "language", "base": str(tiny_encoder), "language": "sw", "text": text, "segment": 16}
    assert main(["train", written(tmp_path, "sw", **language, optimisation=QUICK, output="sw")]) == 0
    capsys.readouterr()
    assert "exists already" in message(**language, optimisation=QUICK, output="sw")
    learned = {"train": str(small_data / "en.train.tsv"), "optimisation": QUICK}
    task = {"kind": "task", "language": "en", "task": learned, "base_adapters": "sw", "output": "task"}
    assert "trained on another base" in message(**task, base=str(tiny_decoder))
    assert "no such directory" in message(**{**task, "base_adapters": "nowhere"}, base=str(tiny_encoder))
    assert "only a bottleneck adapter can have them" in message(**task, base="nano", structure={"kind": "lora"})
    unlabelled = message(**{**task, "task": {"train": text}}, base=str(tiny_encoder))
    assert "label" in unlabelled and text in unlabelled
    one = tmp_path / "one.tsv"
    one.write_text("label\ttext\nsports\tthe match was won\n", encoding="utf-8")
    assert "fewer than two labels" in message(**{**task, "task": {"train": str(one)}}, base=str(tiny_encoder))
    untagged = tmp_path / "untagged.jsonl"
    untagged.write_text('{"tokens": ["the", "river"], "tags": ["O", "O"]}\n', encoding="utf-8")
    tagging = {"kind": "tagging", "train": str(untagged)}
    assert "the training rows have no entity" in message(**{**task, "task": tagging}, base=str(tiny_encoder))
    assert not (tmp_path / "task").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": {"kind": "taging", "train": "a.jsonl"}}, ["task.kind: 'taging' is not one of", "'tagging'?"]),
        ({"task": {"kind": "tagging"}}, ["task.train: missing"]),
        ({"task": {"train": {"pth": "a.tsv"}}}, ["task.train.pth: no such setting; did you mean 'path'?"]),
        ({"task": {"train": "a.tsv", "lables": ["a", "b"]}}, ["task.lables: no such setting; did you mean 'labels'?"]),
        ({"task": {"train": "a.tsv", "optimisation": {"steps": 0}}}, ["task.optimisation.steps: "]),
        ({"task": None}, ["task: "]),
        ({}, ["task: missing"]),
        (
            {"task": {"train": "a.tsv"}, "optimisation": {"steps": 3}, "labels": ["a", "b"]},
            ["optimisation: belongs under 'task'", "labels: belongs under 'task'"],
        ),
        ({"train": "a.tsv"}, ["task: missing", "train: belongs under 'task'"]),
        ({"task": {"name": "xcopa", "data": "data", "settings": {"max_lenth": 3}}}, ["did you mean 'max_length'?"]),
        ({"task": {"name": "xcoppa", "data": "data"}}, ["task.name: ", "perhaps 'xcopa'"]),
        ({"kind": ["task"]}, ["kind: ['task'] is not one of language, task"]),
    ],
)
def test_a_training_task_is_said_as_in_transfer(changes: dict[str, Any], said: list[str]) -> None:
    """Nothing is said of test rows, which a training has none of."""
    with pytest.raises(ConfigError) as caught:
        parse_training({"kind": "task", "base": "nano", "language": "en", "output": "o", **changes})
    assert all(text in str(caught.value) for text in said) and "task.test" not in str(caught.value)


def test_train_from_python(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = {
        "kind": "language", "base": str(tiny_encoder), "language": "tr", "text": str(small_data / "tr.txt"),
        "segment": 16, "optimisation": QUICK, "output": str(tmp_path / "ignored"),
    }  # fmt: skip
    assert adamergex.train(wanted, output=tmp_path / "tr") == tmp_path / "tr"
    assert read_adapter(tmp_path / "tr").name == "tr" and not (tmp_path / "ignored").exists()
    assert parse_training(wanted).optimisation.schedule == "linear"


SHAPES: dict[str, dict[str, Any]] = {
    "bottleneck": {"kind": "bottleneck", "reduction": 4, "layout": "houlsby"},
    "prefix": {"kind": "prefix", "virtual_tokens": 3},
}


@pytest.mark.parametrize(
    ("kind", "family"),
    [("bottleneck", "encoder"), ("bottleneck", "decoder"), ("bottleneck", "t5"), ("bottleneck", "bart"),
     ("prefix", "t5"), ("prefix", "bart")],
)  # fmt: skip
def test_adapters_are_merged_and_their_weight_is_tuned(
    bases: dict[str, Path], small_data: Path, tmp_path: Path, kind: str, family: str
) -> None:
    shape, quick = SHAPES[kind], {**QUICK, "steps": 20}
    wanted = settings(
        bases[family], small_data, tmp_path / "run", structure=shape, targets=["sw"],
        methods=["english_tuning", "average", "adamergex"],
    )  # fmt: skip
    for part in ("task", "reference"):
        wanted[part]["optimisation"] = quick
    results = as_dict(transfer(parse(wanted), say=silent))
    (curve,) = results["tuning"]
    assert [point["weight"] for point in curve["curve"]] == [0.0, 0.5, 1.0]
    merged = tmp_path / "run" / "adapters" / "average-sw-seed0"
    found = lineage.read(merged)
    assert found is not None and found.language == "sw"
    assert (merged / "model_head.safetensors").exists() == (family == "encoder")
    # The search scored what a merge writes: the same weight gives the same accuracy on the proxy's set.
    config = absolute(parse(wanted))
    plan, store = Plan(config, facts(config)), Store(tmp_path / "run" / "store")
    (search,) = plan.tunings.values()
    inputs = {role: store.path(step) for role, step in search.inputs.items()}
    job = search.job.evaluate
    for point in curve["curve"]:
        output = tmp_path / f"merged-{point['weight']}"
        merge(**inputs, weight=point["weight"], output=output)
        assert evaluate(job, output).score == point["score"]
