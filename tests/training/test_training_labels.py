"""Labels of a head in another order are refused under every structure, wherever the head is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adamergex import attach, evaluation
from adamergex.adapters.labels import stored_labels
from adamergex.backbones import loading
from adamergex.errors import AdapterFileError, IncompatibleAdaptersError
from adamergex.jobs.settings import (
    Classification,
    EvaluateJob,
    LanguageModeling,
    Optimisation,
    Rows,
    Structure,
    Tagging,
    TrainJob,
)
from adamergex.search import tuning
from adamergex.training import train

LABELS = ("food", "sports", "travel")
STRUCTURES = {
    "lora": Structure(rank=2),
    "ia3": Structure(kind="ia3"),
    "prefix": Structure(kind="prefix", virtual_tokens=2),
    "bottleneck": Structure(kind="bottleneck", reduction=4),
    "full": Structure(kind="full"),
    "sparse": Structure(kind="sparse", entries=0.01),
}


def trained(base: str, rows: Path, structure: Structure, task: Any, output: Path, language: str = "en") -> Path:
    job = TrainJob(
        base=base, structure=structure, task=task, language=language, rows=Rows(path=str(rows)),
        optimisation=Optimisation(steps=2, batch_size=4),
    )  # fmt: skip
    train.train(job, output)
    return output


def scored(base: str, rows: Path, labels: tuple[str, ...], *adapters: Path) -> Any:
    task = Classification(labels=labels)
    job = EvaluateJob(base=base, task=task, language="en", rows=Rows(path=str(rows), limit=3))
    return evaluation.evaluate(job, adapters)


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_another_order_is_refused(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, structure: Structure
) -> None:
    base = checkpoints["xlm-r"]
    adapter = trained(base, labelled, structure, Classification(labels=LABELS), tmp_path / "a")
    assert stored_labels(adapter) == list(LABELS)
    with pytest.raises(IncompatibleAdaptersError, match=r"another order[\s\S]*food, sports, travel[\s\S]*sports, food"):
        scored(base, labelled, ("sports", "food", "travel"), adapter)
    with pytest.raises(IncompatibleAdaptersError, match="other labels"):
        scored(base, labelled, ("food", "sports", "weather"), adapter)
    assert scored(base, labelled, LABELS, adapter).n == 3


@pytest.mark.parametrize("kind", ["bottleneck", "sparse"])
def test_another_order_is_refused_on_top_of_a_stack(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, kind: str
) -> None:
    base, structure = checkpoints["xlm-r"], STRUCTURES[kind]
    below = trained(base, plain, structure, LanguageModeling(segment=16, segments=8), tmp_path / "below")
    top = trained(base, labelled, structure, Classification(labels=LABELS), tmp_path / "top")
    with pytest.raises(IncompatibleAdaptersError, match="another order"):
        scored(base, labelled, LABELS[::-1], below, top)
    assert scored(base, labelled, LABELS, below, top).n == 3


@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix"])
def test_another_order_is_refused_where_lambda_is_searched(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, kind: str
) -> None:
    base, structure = checkpoints["xlm-r"], STRUCTURES[kind]
    task = trained(base, labelled, structure, Classification(labels=LABELS), tmp_path / "task")
    references = [
        trained(base, plain, structure, LanguageModeling(segment=16, segments=8), tmp_path / language, language)
        for language in ("sw", "en")
    ]
    job = EvaluateJob(
        base=base, task=Classification(labels=LABELS[::-1]), language="sw", rows=Rows(path=str(labelled), limit=3)
    )
    with pytest.raises(IncompatibleAdaptersError, match="another order"):
        tuning.tune(task=task, target_reference=references[0], source_reference=references[1], job=job, grid=[0.5])


def test_a_head_that_peft_stored_is_asked_too(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    base = checkpoints["xlm-r"]
    adapter = trained(base, labelled, STRUCTURES["lora"], Classification(labels=LABELS), tmp_path / "a")
    with pytest.raises(IncompatibleAdaptersError, match="another order"):
        attach(loading.load(base, "sequence-classification", LABELS[::-1]).model, adapter)
    attach(loading.load(base, "sequence-classification", LABELS).model, adapter)
    attach(loading.load(base, "sequence-classification", ("x", "y", "z")).model, adapter)  # names of one's own


def test_tags_have_an_order_too(checkpoints: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "tags.jsonl"
    row = {"tokens": ["The", "cook", "won"], "tags": ["O", "B-PER", "O"]}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    base = checkpoints["xlm-r"]
    adapter = trained(base, path, STRUCTURES["lora"], Tagging(types=("PER", "LOC")), tmp_path / "a")
    assert stored_labels(adapter) == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    job = EvaluateJob(base=base, task=Tagging(types=("LOC", "PER")), language="en", rows=Rows(path=str(path)))
    with pytest.raises(IncompatibleAdaptersError, match="another order"):
        evaluation.evaluate(job, adapter)


def test_a_decoder_has_no_order(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    adapter = trained(checkpoints["llama"], labelled, STRUCTURES["lora"], Classification(labels=LABELS), tmp_path / "a")
    assert scored(checkpoints["llama"], labelled, LABELS[::-1], adapter).n == 3


@pytest.mark.parametrize("found", [{"a": "x"}, ["a"], {"a": None}, {"a": True}])
def test_labels_without_numbers_are_refused(tmp_path: Path, found: Any) -> None:
    (tmp_path / "head_config.json").write_text(json.dumps({"label2id": found}))
    with pytest.raises(AdapterFileError, match="labels have no numbers"):
        stored_labels(tmp_path)
