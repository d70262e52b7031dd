"""A kind of task that another package brings: two files, nothing else edited, through the command line and back."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Literal

import pytest
import yaml

from adamergex.errors import ConfigError
from adamergex.files.registry import Registry
from adamergex.jobs.kinds import KINDS
from adamergex.jobs.settings import Classification, LabelledTask, TrainJob
from adamergex.tasks.kinds import TaskKind, kind_of, labelled_kinds, register
from commands import command
from extensions import entry_point, example, installed

ROWS = [
    ("the river is deep", "la rivière est profonde", 5),
    ("the river is deep", "le match est gagné", 0),
    ("a kind doctor helps", "un bon médecin aide", 5),
    ("our train is late", "mto ni wenye kina", 0),
]


def package(folder: Path, name: str, code: str) -> Path:
    return installed(folder, name, code, "adamergex.task_kinds", f"{name} = {name}:KIND")


def run(folder: Path, *arguments: object) -> CompletedProcess[str]:
    return command(*arguments, paths=(folder,))


@pytest.fixture(scope="module")
def similarity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's own example, installed."""
    assert entry_point("adamergex.task_kinds") == 'similarity = "similarity:KIND"'
    return package(tmp_path_factory.mktemp("site"), "similarity", example("similarity"))


def test_a_kind_of_another_package_trains_evaluates_and_merges(
    similarity: Path, tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    rows = [
        {"id": str(place), **dict(zip(("first", "second", "score"), row, strict=True))}
        for place, row in enumerate(ROWS)
    ]
    for language in ("en", "sw"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{language}.jsonl").write_text(lines, encoding="utf-8")
    long, quick = ({"steps": steps, "batch_size": 4, "learning_rate": 1e-2} for steps in (150, 2))
    files = str(tmp_path / "{language}.jsonl")
    wanted = {
        "title": "Similarity",
        "base": str(tiny_encoder),
        "structure": {"kind": "lora", "rank": 2, "alpha": 4},
        "targets": ["sw"],
        "methods": ["english_tuning", "adamergex"],
        "task": {"kind": "similarity", "train": files, "test": files, "optimisation": long},
        "reference": {"text": f"{small_data}/{{language}}.txt", "segment": 16, "optimisation": quick},
        "merge": {"weight": 0.0},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(wanted), encoding="utf-8")
    done = run(similarity, "transfer", str(tmp_path / "settings.yaml"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    tuned, merged = results["cells"]
    assert results["metric"] == "closeness" and tuned["n"] == len(ROWS)
    assert tuned["score"] > 80  # the same number for all rows gives 50 at most
    assert merged["score"] == pytest.approx(tuned["score"], abs=1e-4)  # λ = 0
    assert tuned["interval"][0] <= tuned["score"] <= tuned["interval"][1]

    scores = tmp_path / "scores"
    adapter, test = str(tmp_path / "run" / tuned["adapter"]), str(tmp_path / "sw.jsonl")
    told = ("--base", str(tiny_encoder), "--adapter", adapter, "--test", test, "--language", "sw")
    again = run(similarity, "evaluate", *told, "--output", str(scores))
    assert again.returncode == 0, again.stderr  # another process: the lineage names the kind, the entry point brings it
    assert json.loads((scores / "scores.json").read_text())["closeness"] == pytest.approx(tuned["score"], abs=1e-4)

    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({**wanted, "task": {**wanted["task"], "first": 1}}))
    wrong = run(similarity, "transfer", str(tmp_path / "settings.yaml"))
    assert wrong.returncode == 2 and "task.first: no such setting" in wrong.stderr
    without = run(tmp_path, "transfer", str(tmp_path / "settings.yaml"))
    assert without.returncode == 2 and "task.kind: 'similarity' is not one of" in without.stderr


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package(tmp_path, "broken_kind", "import nothing_of_this_name"))
    importlib.invalidate_caches()
    monkeypatch.setitem(vars(KINDS), "_offered", Registry(KINDS.group, ())._offered)  # others may have asked before
    job = {"base": "x", "structure": {"kind": "lora"}, "language": "en", "rows": {"path": "x"}, "optimisation": {}}
    with pytest.raises(ConfigError, match=r"cannot be used\s+where: .*adamergex\.task_kinds\.broken_kind") as caught:
        TrainJob.model_validate({**job, "task": {"kind": "broken_kind"}})
    assert "nothing_of_this_name" in str(caught.value)


class Impostor(LabelledTask):
    kind: Literal["classification"] = "classification"


def test_a_kinds_name_is_its_own() -> None:
    before = kind_of("classification")
    with pytest.raises(ConfigError, match="this name is taken"):
        register(TaskKind(settings=Impostor, columns=lambda task: ("text",), answering={}))
    assert kind_of("classification") is before and before.settings is Classification


def test_every_shipped_kind_has_what_it_needs() -> None:
    for name, kind in labelled_kinds().items():
        assert kind.name == name and kind.rows and kind.settings.__doc__
        written = {"causal-lm", "sequence-to-sequence"} & kind.answering.keys()
        assert name == "classification" or bool(kind.writing) == bool(written)
