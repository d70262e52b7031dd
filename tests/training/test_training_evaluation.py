"""Predictions, scores and comparisons; the search of λ against merges that were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from topic_sentences import sentences

from adamergex import evaluation
from adamergex.adapters import peft_backed
from adamergex.backbones import loading
from adamergex.errors import (
    AdapterFileError,
    ConfigError,
    DataError,
    IncompatibleAdaptersError,
    ModelError,
)
from adamergex.jobs.settings import (
    Classification,
    EvaluateJob,
    LanguageModeling,
    Optimisation,
    Rows,
    Structure,
    TrainJob,
)
from adamergex.merging import merge
from adamergex.merging.prepare import MergeSpec
from adamergex.search import tuning
from adamergex.statistics import Sample
from adamergex.statistics.samples import clusters
from adamergex.training import train

TASK = Classification(labels=("food", "sports", "travel"))
REFERENCE = LanguageModeling(segment=24, segments=20)


def evaluation_of(base: str, rows: Path, **changes: Any) -> EvaluateJob:
    return EvaluateJob(base=base, task=TASK, language="en", rows=Rows(path=str(rows)), **changes)


@pytest.fixture(scope="module")
def trained(checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(base, kind) -> the three adapters of a merge, trained once."""
    root, made = tmp_path_factory.mktemp("trained"), {}
    foreign = root / "fr.txt"
    foreign.write_text("\n".join(text[::-1] for text in sentences()), encoding="utf-8")

    def get(name: str, kind: str) -> dict[str, Path]:
        if (name, kind) in made:
            return made[name, kind]
        sources = {"task": (TASK, "en", labelled), "target_reference": (REFERENCE, "fr", foreign)}
        sources["source_reference"] = (REFERENCE, "en", plain)
        for role, (task, language, rows) in sources.items():
            train_job = TrainJob(
                base=checkpoints[name],
                structure=Structure(kind=kind, rank=4),
                task=task,
                language=language,
                rows=Rows(path=str(rows)),
                optimisation=Optimisation(
                    steps=100 if role == "task" and kind == "lora" else 20,
                    learning_rate=5e-3 if kind == "lora" else 5e-2,
                    batch_size=8,
                    max_grad_norm=1.0,
                ),
            )
            train.train(train_job, root / f"{name}-{kind}-{role}")
        made[name, kind] = {role: root / f"{name}-{kind}-{role}" for role in sources}
        return made[name, kind]

    return get


@pytest.mark.parametrize("name", ["xlm-r", "llama"])
@pytest.mark.parametrize("bare", [True, False])
def test_predictions_are_complete_deterministic_and_independent_of_batches(
    checkpoints: dict[str, str], labelled: Path, trained: Any, tmp_path: Path, name: str, bare: bool
) -> None:
    adapter = None if bare else trained(name, "lora")["task"]
    job = evaluation_of(checkpoints[name], labelled)
    scores = evaluation.evaluate(job, adapter, tmp_path / "one")
    evaluation.evaluate(job, adapter, tmp_path / "two")
    for file in ("predictions.jsonl", "scores.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "one" / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(72)) and scores.n == 72 and scores.truncated == 0
    assert scores.score == pytest.approx(100 * sum(row["gold"] == row["predicted"] for row in rows) / 72)
    assert scores.interval[0] <= scores.score <= scores.interval[1]
    assert all(max(row["scores"], key=row["scores"].get) == row["predicted"] for row in rows)
    evaluation.evaluate(job.model_copy(update={"batch_tokens": 1}), adapter, tmp_path / "alone")
    alone = [json.loads(line) for line in (tmp_path / "alone" / "predictions.jsonl").read_text().splitlines()]
    for row, other in zip(rows, alone, strict=True):
        assert list(row["scores"].values()) == pytest.approx(list(other["scores"].values()), abs=1e-4)


def test_training_shows_in_the_score(checkpoints: dict[str, str], labelled: Path, trained: Any) -> None:
    job = evaluation_of(checkpoints["xlm-r"], labelled)
    assert evaluation.evaluate(job, trained("xlm-r", "lora")["task"]).score > 60


def test_a_directory_is_evaluated_by_its_lineage(labelled: Path, trained: Any, tmp_path: Path) -> None:
    adapter = trained("xlm-r", "lora")["task"]
    scores = evaluation.evaluate_directory(
        base=None, adapter=adapter, test=str(labelled), language="en", output=tmp_path / "out"
    )
    assert scores.n == 72
    with pytest.raises(ModelError, match="not trained for a task with labels"):
        evaluation.evaluate_directory(
            base=None, adapter=trained("xlm-r", "lora")["source_reference"], test=str(labelled), language="en",
            output=tmp_path / "no",
        )  # fmt: skip


def test_a_missing_directory_and_an_output_in_use_are_told_first(
    labelled: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"base": None, "test": str(labelled), "language": "en", "output": tmp_path}
    with pytest.raises(AdapterFileError, match="no adapter directory here"):
        evaluation.evaluate_directory(**given, adapter=tmp_path / "none")
    (tmp_path / "there").touch()
    monkeypatch.setattr(evaluation, "predict", None)  # nothing is predicted before
    with pytest.raises(AdapterFileError, match="the output exists already"):
        evaluation.evaluate_directory(**given, adapter=trained("xlm-r", "lora")["task"])


def test_an_adapter_of_another_base_is_refused(checkpoints: dict[str, str], labelled: Path, trained: Any) -> None:
    with pytest.raises(ModelError, match="trained on another base"):
        evaluation.evaluate(evaluation_of(checkpoints["bert"], labelled), trained("xlm-r", "lora")["task"])


def test_a_reference_adapter_has_no_head(checkpoints: dict[str, str], labelled: Path, trained: Any) -> None:
    adapter = trained("xlm-r", "lora")["source_reference"]
    with pytest.raises(AdapterFileError, match="neither the adapter nor the base has a head"):
        evaluation.evaluate(evaluation_of(checkpoints["xlm-r"], labelled), adapter)


def test_rows_of_one_passage_are_one_cluster_of_the_interval(
    checkpoints: dict[str, str], labelled: Path, trained: Any, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in labelled.read_text(encoding="utf-8").splitlines()]
    grouped = tmp_path / "grouped.jsonl"
    lines = [json.dumps({**row, "group": index // 6} if index < 60 else row) for index, row in enumerate(rows)]
    grouped.write_text("\n".join(lines), encoding="utf-8")
    adapter = trained("xlm-r", "lora")["task"]
    alone = evaluation.evaluate(evaluation_of(checkpoints["xlm-r"], labelled), adapter)
    scores = evaluation.evaluate(evaluation_of(checkpoints["xlm-r"], grouped), adapter, tmp_path / "out")
    items = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [item.get("group") for item in items] == [str(index // 6) if index < 60 else None for index in range(72)]
    assert scores.score == alone.score and scores.interval == evaluation.score(items).interval
    found = clusters([Sample.read(items)])
    assert found.count == 10 + 12 and np.bincount(found.codes[0]).tolist() == [6] * 10 + [1] * 12
    again = evaluation.paired_difference(tmp_path / "out" / "predictions.jsonl", items)
    assert (again["difference"], again["p"]) == (0, 1)


def rows_of(pattern: str, right: str = "x") -> list[dict[str, Any]]:
    return [
        {"id": index, "gold": "x", "predicted": "x" if mark == right else "y"} for index, mark in enumerate(pattern)
    ]


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    found = evaluation.score(rows_of("x" * 80 + "." * 20))
    assert found.score == 80 and found.n == 100
    assert found.interval == [pytest.approx(71.11, abs=0.01), pytest.approx(86.66, abs=0.01)]
    assert evaluation.score(rows_of("xx")).interval == [pytest.approx(34.24, abs=0.01), 100]  # two items say little
    with pytest.raises(DataError, match="no predictions"):
        evaluation.score([])


def test_paired_differences_and_mcnemar() -> None:
    a, b = rows_of("x" * 60 + "." * 40), rows_of("x" * 45 + "." * 50 + "x" * 5)
    found = evaluation.paired_difference(a, b)
    assert found["difference"] == pytest.approx(10)
    assert found["interval"] == (pytest.approx(2, abs=1.1), pytest.approx(19, abs=1.5))
    assert found["p"] == pytest.approx(0.0414, abs=1e-4)  # 15 against 5
    assert evaluation.mcnemar(0, 0) == 1 and evaluation.mcnemar(0, 5) == pytest.approx(1 / 16)
    assert evaluation.mcnemar(3000, 3000) == 1
    same = evaluation.paired_difference(a, a)  # 100 items without a difference leave room for some in others
    assert (same["difference"], same["p"]) == (0, 1) and -4 < same["interval"][0] < 0 < same["interval"][1] < 4
    with pytest.raises(DataError, match="not for the same items"):
        evaluation.paired_difference(a, b[:-1])


CHOICES = [
    {},
    {"modules": "all"},
    {"space": "delta"},
    {"space": "delta", "rank": 3},
    {"rule": "average"},
    {"rule": "average", "space": "delta", "modules": "all"},
    {"rule": "multiplicative", "modules": "all"},
    {"rule": "additive", "modules": "all"},
]


@pytest.mark.parametrize(
    ("name", "kind", "choices"),
    [("xlm-r", "lora", choices) for choices in CHOICES]
    + [("xlm-r", "ia3", choices) for choices in CHOICES if "space" not in choices]
    + [("llama", "lora", {}), ("llama", "lora", {"space": "delta"}), ("llama", "ia3", {})],
)
def test_adapters_in_memory_predict_what_written_merges_predict(
    checkpoints: dict[str, str], labelled: Path, trained: Any, tmp_path: Path, name: str, kind: str, choices: Any
) -> None:
    adapters = dict(trained(name, kind))
    if choices.get("rule") == "average":
        del adapters["source_reference"]
    job = evaluation_of(checkpoints[name], labelled)
    seen: dict[float, Any] = {}

    def watch(weight: float, predictions: list[dict[str, Any]]) -> None:
        seen[weight] = predictions

    spec, output = MergeSpec(**choices), tmp_path / "tuning"
    found = tuning.tune(**adapters, spec=spec, job=job, grid=(0.5, 1.5), output=output, watch=watch)
    assert [point.weight for point in found.curve] == [0.0, 0.5, 1.5]
    assert json.loads((tmp_path / "tuning" / "tuning.json").read_text()) == found.model_dump(exclude_unset=True)
    best = max(point.score for point in found.curve)
    assert found.chosen == next(point.weight for point in found.curve if point.score == best)
    for weight, predictions in seen.items():
        merge(**adapters, **choices, weight=weight, output=tmp_path / str(weight))
        evaluation.evaluate(job, tmp_path / str(weight), tmp_path / f"evaluated-{weight}")
        lines = (tmp_path / f"evaluated-{weight}" / "predictions.jsonl").read_text().splitlines()
        assert predictions == [json.loads(line) for line in lines]
    assert seen[0.0] != seen[1.5]


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_an_average_has_no_use_for_the_source_reference(
    checkpoints: dict[str, str], labelled: Path, trained: Any, tmp_path: Path, space: str
) -> None:
    adapters = dict(trained("xlm-r", "lora"))
    without = {role: path for role, path in adapters.items() if role != "source_reference"}
    job, settings = evaluation_of(checkpoints["xlm-r"], labelled), {"rule": "average", "space": space, "modules": "all"}
    curves, written = [], []
    for number, given in enumerate((adapters, without)):
        curves.append(tuning.tune(**given, spec=MergeSpec(**settings), job=job, grid=(0.5,)).curve)
        merge(**given, **settings, weight=0.5, output=tmp_path / str(number))
        written.append((tmp_path / str(number) / "adapter_model.safetensors").read_bytes())
    assert curves[0] == curves[1] and written[0] == written[1]


def test_the_search_leaves_the_backbone_and_needs_one_start(
    checkpoints: dict[str, str], labelled: Path, trained: Any, tmp_path: Path
) -> None:
    job = evaluation_of(checkpoints["xlm-r"], labelled)
    backbone = loading.load(checkpoints["xlm-r"], "sequence-classification", TASK.labels)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    adapters = trained("xlm-r", "lora")
    tuning.tune(**adapters, job=job, grid=(1.0,), backbone=backbone)
    after = backbone.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(adapters["task"], elsewhere)
    told = json.loads((elsewhere / "lineage.json").read_text())
    (elsewhere / "lineage.json").write_text(json.dumps(told | {"start": "0" * 64}))
    with pytest.raises(IncompatibleAdaptersError, match="different random starts"):
        tuning.tune(**(adapters | {"task": elsewhere}), job=job, grid=(1.0,), backbone=backbone)
    with pytest.raises(ConfigError, match="not a finite number"):
        tuning.tune(**adapters, job=job, grid=(float("nan"),), backbone=backbone)
    assert not any("lora" in name for name, _ in backbone.model.named_modules())
    peft_backed.detach(peft_backed.load(backbone.model, adapters["task"]))
