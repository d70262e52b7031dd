"""Settings mean what is written: types, bounds, names and lists; every problem before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from adamergex.cli.main import main
from adamergex.config import methods, references, task, train
from adamergex.config.changes import parse_change
from adamergex.config.study import parse_study
from adamergex.config.train import parse_training
from adamergex.config.transfer import parse
from adamergex.errors import AdamergexError, ConfigError
from adamergex.files.strict import Settings
from adamergex.jobs import settings
from adamergex.jobs.settings import Optimisation, Structure, TrainJob
from adamergex.tables.transfer import run_training, run_transfer
from adamergex.training import loop

TASK = {"train": "en.tsv", "validation": "{language}.tsv", "test": "{language}.tsv", "labels": ["a", "b"]}


def table(**changes: Any) -> dict[str, Any]:
    return {
        "base": "nano",
        "proxy": "fr",
        "targets": ["sw"],
        "task": TASK,
        "reference": {"text": "{language}.txt"},
        **changes,
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    wanted: dict[str, Any] = json.loads(json.dumps(table()))
    *above, last = path.split(".")
    place = wanted
    for name in above:
        place = place.setdefault(name, {})
    place[last] = value
    return wanted


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("task.optimisation.steps", True),
        ("task.optimisation.steps", 4.0),
        ("task.optimisation.steps", "4"),
        ("task.optimisation.steps", 10**30),
        ("task.optimisation.epochs", "3"),
        ("task.optimisation.epochs", float("inf")),
        ("task.optimisation.epochs", 1e308),
        ("task.optimisation.learning_rate", "5e-4"),
        ("task.optimisation.learning_rate", float("nan")),
        ("task.optimisation.weight_decay", float("inf")),
        ("structure.rank", 4.9),
        ("structure.rank", False),
        ("structure.rank", 10**30),
        ("structure.alpha", 10**400),
        ("structure.modules", ["q_proj", "q_proj"]),
        ("structure.modules", [True]),
        ("merge.weight", True),
        ("merge.weight", "0.5"),
        ("merge.weight", float("nan")),
        ("merge.grid", [0, float("inf")]),
        ("merge.grid", ["0.5"]),
        ("merge.modules", "("),
        ("merge.swap.bottom", -1),
        ("seeds", [0, 0]),
        ("seeds", [True]),
        ("seeds", [2**64]),
        ("seeds", []),
        ("seeds", 0),
        ("targets", ["sw", "sw"]),
        ("targets", ["x/../../../victim/sw"]),
        ("targets", [False]),
        ("targets", "sw"),
        ("targets", ["con"]),
        ("source", "../en"),
        ("proxy", "fr fr"),
        ("title", 5),
        ("title", "a\0b"),
        ("base", " "),
        ("output", ""),
        ("output", "a\0b"),
        ("store", "\n"),
        ("task.labels", ["a", "a"]),
        ("task.labels", ["a"]),
        ("task.labels", ["a", " "]),
        ("task.words", {"c": "x"}),
        ("task.words", {"a": "x", "b": "x"}),
        ("task.words", {"a": "b"}),
        ("task.words", {"a": " "}),
        ("task.words", {"a": 1}),
        ("task.metric", "zz"),
        ("task.measured_as", "zz"),
        ("task.max_length", 12.5),
        ("task.train", {"path": "a.tsv", "limit": True}),
        ("task.train", {"path": "a.tsv", "columns": {"text": 1}}),
        ("task.train", 5),
        ("mad_x.leave_out", [1, 1]),
        ("mad_x.arithmetic", True),
        ("papers.table", [True]),
        ("papers.table", {"a": 1}),
        ("methods", ["adamergex", "adamergex"]),
        ("methods", ["x.py:../y"]),
    ],
)
def test_what_is_not_meant_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(path, value))
    said = str(caught.value)
    assert said.count("\n  - ") <= 2 and path.partition(".")[0] in said and len(said) < 2000


def test_whole_numbers_serve_as_numbers_and_lists_as_tuples() -> None:
    config = parse(changed("task.optimisation", {"epochs": 3, "warmup": 0}))
    assert config.task.optimisation.epochs == 3.0 and config.targets == ("sw",)
    assert parse(changed("targets", ["no", "zh-Hans", "pt_BR"])).targets == ("no", "zh-Hans", "pt_BR")


def models() -> list[type[BaseModel]]:
    rooms = (settings, methods, references, task, train)
    return [
        item for room in rooms for item in vars(room).values() if isinstance(item, type) and issubclass(item, BaseModel)
    ]


@pytest.mark.parametrize(
    "model", sorted({*models()}, key=lambda model: model.__name__), ids=lambda model: model.__name__
)
def test_every_model_of_settings_is_strict(model: type[BaseModel]) -> None:
    assert issubclass(model, Settings)
    assert model.model_config["strict"] and model.model_config["extra"] == "forbid"


def test_records_of_jobs_are_read_as_they_were_written() -> None:
    task = {"kind": "classification", "labels": ["a", "b"]}
    given = {"base": "nano", "task": task, "language": "no", "rows": {"path": "a.csv"}, "base_adapters": []}
    shape, length = Structure(modules=("q_proj",)), Optimisation(epochs=2)
    job = TrainJob.model_validate({**given, "structure": shape, "optimisation": length})
    assert TrainJob.model_validate(job.model_dump(mode="json")) == job
    assert TrainJob.model_validate_json(job.model_dump_json()) == job


def test_long_problems_stay_readable() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(table(**{f"name{number}": 0 for number in range(5000)}, title=["x" * 10_000_000]))
    assert len(str(caught.value)) < 20_000 and "and 4,9" in str(caught.value)


def study(**changes: Any) -> dict[str, Any]:
    shared = {name: value for name, value in table().items() if name != "task"}
    return {**shared, "tasks": {"a": {"task": TASK}}, "output": "out", **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {"../a": {"task": TASK}}}, "cannot be part of a file name"),
        ({"tasks": {"a": {"task": TASK}}, "variants": {"x/y": {}}}, "cannot be part of a file name"),
        (
            {"tasks": {"a": {"task": TASK}, "a-b": {"task": TASK}}, "variants": {"b": {"only": ["a"]}}},
            "have the name 'a-b'",
        ),
        ({"tasks": {"aa": {"task": TASK}}, "variants": {"v": {"only": "a"}}}, "no task 'a'"),
        ({"variants": {"v": {"only": [{"a": 1}]}}}, "there is no task"),
        ({"tasks": {"a": 5}}, "tasks.a"),
        ({"tasks": {}}, "tasks"),
        ({"assumed": {"rows": True}}, "assumed.rows"),
    ],
)
def test_studies_are_checked_as_tables_are(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_study(study(**changes))


def test_a_variant_for_one_task_is_for_no_task_within_its_name() -> None:
    found = parse_study(study(tasks={"xnli": {"task": TASK}, "nli": {"task": TASK}}, variants={"v": {"only": "xnli"}}))
    assert list(found.tables) == ["xnli", "xnli-v", "nli"]


@pytest.mark.parametrize(
    "text", ["a=[", "a=!!python/name:os.system x", "a=&a [*a]", "a=" + "[" * 999, "a={b: 1, b: 2}", "a=.nan"]
)
def test_changes_from_the_command_line_are_strict_yaml(text: str) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_change(text)
    assert parse_change("source=no").value == "no" and parse_change("a=5e-4").value == 5e-4


@pytest.fixture
def world(tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A table on a tiny model, and a trainer that nothing may call."""
    import adamergex.training.train

    def fit(*_: Any, **__: Any) -> None:
        pytest.fail("something was trained")

    assert adamergex.training.train.fit is loop.fit
    monkeypatch.setattr(adamergex.training.train, "fit", fit)
    data, few = f"{small_data}/{{language}}", {"steps": 2, "batch_size": 4}
    return {
        "base": str(tiny_encoder), "structure": {"kind": "lora", "rank": 2}, "proxy": "fr", "targets": ["sw"],
        "methods": ["english_tuning", "adamergex"], "output": str(tmp_path / "out"),
        "task": {"name": "t", "train": f"{data}.train.tsv", "validation": f"{data}.validation.tsv",
                 "test": f"{data}.test.tsv", "max_length": 32, "optimisation": few},
        "reference": {"text": f"{data}.txt", "segment": 16, "optimisation": few},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference.segment": 512}, "do not fit the model"),
        ({"reference.segment": 2}, "do not fit the model"),
        ({"reference.segments": 10**6}, "too little text"),
        ({"structure.modules": "nothing.*"}, "matches no module"),
        ({"structure.modules": "("}, "regular expression"),
        ({"merge.modules": "nothing"}, "no module matches"),
        ({"structure": {"kind": "prefix", "virtual_tokens": 4000}}, "no room for text"),
        ({"structure": {"kind": "bottleneck", "leave_out": [7]}}, "cannot be left out"),
        ({"methods": ["mad_x"], "mad_x.leave_out": [7]}, "cannot be left out"),
        ({"methods": ["mad_x"], "mad_x.language.segment": 512}, "do not fit the model"),
        ({"methods": ["layer_swapping"], "merge.swap": {"bottom": 2, "top": 2}}, "cannot be swapped"),
        ({"targets": ["sw", "xx"]}, "does not exist"),
        ({"task.labels": ["nature", "health"]}, "label"),
        ({"seed": 1}, "no such setting"),
        ({"base": "/nowhere/at/all"}, "no such model folder"),
    ],
)
def test_a_table_is_refused_before_any_training(
    world: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    for path, value in changes.items():
        *above, last = path.split(".")
        place = world
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    with pytest.raises(AdamergexError, match=said):
        run_transfer(world)
    assert not (tmp_path / "out").exists()


def test_a_training_is_refused_before_it_begins(world: dict[str, Any], tmp_path: Path) -> None:
    text = {"kind": "language", "base": world["base"], "language": "en", "text": world["reference"]["text"],
            "output": str(tmp_path / "out"), "segment": 512}  # fmt: skip
    with pytest.raises(ConfigError, match="do not fit the model"):
        run_training(text)
    with pytest.raises(ConfigError, match="cannot be part of a file name"):
        parse_training({**text, "language": "../en"})
    assert not (tmp_path / "out").exists()


def test_a_language_of_the_command_line_is_a_plain_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\nx\ta\n", encoding="utf-8")
    argv = ["evaluate", "--base", "nano", "--adapter", str(tmp_path), "--test", str(tmp_path / "a.tsv")]
    assert main([*argv, "--language", "../x", "--output", str(tmp_path / "out")]) == 2
    assert "cannot be part of a file name" in capsys.readouterr().err
