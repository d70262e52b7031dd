"""Training: it learns, changes nothing but the adapter, repeats itself bitwise, and goes on where it was stopped."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixed_batch import loss_of
from stopping import StopAfter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, logging

from adamergex.backbones import loading
from adamergex.errors import AdapterFileError, ModelError
from adamergex.files import lineage, tensor_files
from adamergex.jobs.settings import (
    Classification,
    LanguageModeling,
    Optimisation,
    Rows,
    Structure,
    TrainJob,
)
from adamergex.training import loop, train

TASK = Classification(labels=("food", "sports", "travel"))
REFERENCE = LanguageModeling(segment=24, segments=60)


def job(base: str, rows: Path, task: Any = TASK, kind: str = "lora", **changes: Any) -> TrainJob:
    fast = {"learning_rate": 1e-2 if kind == "lora" else 5e-2, "batch_size": 8, "max_grad_norm": 1.0, "steps": 25}
    return TrainJob(
        base=base,
        structure=Structure(kind=kind, rank=4),
        task=task,
        language="en",
        rows=Rows(path=str(rows)),
        optimisation=Optimisation(**(fast | changes)),
        seed=1,
    )


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def outcome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "lineage.json").read_text())["settings"]["training"]


@pytest.mark.parametrize(
    ("name", "labelled_task", "kind"),
    [(name, task, kind) for name in ("xlm-r", "llama") for task in (True, False) for kind in ("lora", "ia3")]
    + [("bert", True, "lora"), ("bert", False, "ia3")],
)
def test_training_lowers_the_loss_and_changes_the_adapter_alone(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, name: str, labelled_task: bool, kind: str
) -> None:
    wanted = job(checkpoints[name], labelled if labelled_task else plain, TASK if labelled_task else REFERENCE, kind)
    backbone = train.load_for(wanted)
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    at_first = loss_of(backbone, wanted, None)
    train.train(wanted, tmp_path / "out", backbone=backbone)
    assert loss_of(backbone, wanted, tmp_path / "out") < at_first
    after = backbone.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    done = outcome(tmp_path / "out")
    assert done["steps"] == 25 and done["tokens"] > 0 and done["parameters"] > 0
    trained = tensor_files.read_directory(tmp_path / "out")
    moved = [key for key, tensor in trained.items() if "lora_B" in key and bool(tensor.abs().sum() > 0)]
    moved += [key for key, tensor in trained.items() if "ia3" in key and not bool((tensor == 1).all())]
    assert len(moved) == sum("lora_B" in key or "ia3" in key for key in trained)


def test_the_directory_is_complete(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    train.train(job(checkpoints["xlm-r"], labelled), tmp_path / "out")
    found = lineage.read(tmp_path / "out")
    assert found is not None
    assert found.base == {"name": checkpoints["xlm-r"], "sha256": loading.base_sha256(checkpoints["xlm-r"])}
    assert found.language == "en" and found.task is not None and found.task["labels"] == list(TASK.labels)
    assert found.structure == {"kind": "lora", "rank": 4, "alpha": 16.0, "dropout": 0.05, "modules": "paper"}
    assert found.data["rows"] == 72 and len(found.data["sha256"]) == 64 and found.start is not None
    assert {"torch", "transformers", "peft"} <= set(found.versions)
    assert "AutoModelForSequenceClassification" in (tmp_path / "out" / "README.md").read_text()
    events = EventAccumulator(str(tmp_path / "out" / "logs")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [20, 25]
    with pytest.raises(AdapterFileError, match="exists already"):
        train.train(job(checkpoints["xlm-r"], labelled), tmp_path / "out")


@pytest.mark.parametrize("labelled_task", [True, False])
@pytest.mark.parametrize("name", ["xlm-r", "llama"])
def test_two_runs_are_bitwise_equal_and_so_is_a_resumed_one(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, name: str, labelled_task: bool
) -> None:
    wanted = job(
        checkpoints[name], labelled if labelled_task else plain, TASK if labelled_task else REFERENCE,
        steps=None, epochs=2.5, checkpoint_every=7,
    )  # fmt: skip
    torch.manual_seed(1)
    train.train(wanted, tmp_path / "one", workdir=tmp_path / "work-one")
    torch.manual_seed(2)
    train.train(wanted, tmp_path / "two")
    work = tmp_path / "work"
    steps: list[int] = []
    for stop in (5, 9, 16):  # before the first checkpoint, after it, after the second
        with pytest.raises(KeyboardInterrupt):
            train.train(wanted, tmp_path / "three", workdir=work, callbacks=[StopAfter(stop)])
        assert not (tmp_path / "three").exists()
        steps += [int(path.name.split("-")[1]) for path in sorted(work.glob("run-*/checkpoint-*"))]
    assert steps == [7, 14, 7]
    train.train(wanted, tmp_path / "three", workdir=work)
    for other in ("two", "three"):
        for file in ("adapter_model.safetensors", "adapter_config.json", "lineage.json", "README.md"):
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / other / file).read_bytes(), file
    assert not list(work.glob("run-*"))  # nothing is left to resume


@pytest.mark.parametrize("harm", ["cut", "unmarked", "changed"])
def test_a_broken_checkpoint_is_passed_over(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, harm: str
) -> None:
    wanted = job(checkpoints["xlm-r"], labelled, steps=20, checkpoint_every=5)
    train.train(wanted, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.train(wanted, tmp_path / "out", workdir=tmp_path / "work", callbacks=[StopAfter(12)])
    last = next((tmp_path / "work").glob("run-*/checkpoint-10"))
    if harm == "cut":
        (last / "optimizer.pt").write_bytes(b"")
    elif harm == "unmarked":
        (last / "complete.json").unlink()
    else:
        tensors = bytearray((last / "adapter_model.safetensors").read_bytes())
        tensors[-1] ^= 1
        (last / "adapter_model.safetensors").write_bytes(tensors)
    began: list[int] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            began.append(state.global_step)

    train.train(wanted, tmp_path / "out", workdir=tmp_path / "work", callbacks=[Watch()])
    assert began == [5]
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_another_job_does_not_resume_this_one(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    wanted = job(checkpoints["xlm-r"], labelled, steps=20, checkpoint_every=5)
    with pytest.raises(KeyboardInterrupt):
        train.train(wanted, tmp_path / "one", workdir=tmp_path / "work", callbacks=[StopAfter(12)])
    other = wanted.model_copy(update={"seed": 2})
    train.train(other, tmp_path / "two", workdir=tmp_path / "work")
    train.train(other, tmp_path / "three")
    assert weights(tmp_path / "two") == weights(tmp_path / "three")


def test_nothing_global_is_left_changed(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state(), torch.get_num_threads()
    verbosity = logging.get_verbosity()
    wanted = job(checkpoints["llama"], labelled, steps=3)
    backbone = train.load_for(wanted)
    train.train(wanted, tmp_path / "out", backbone=backbone)
    assert states[0] == random.getstate() and states[1] == str(np.random.get_state())
    assert torch.equal(states[2], torch.get_rng_state()) and states[3] == torch.get_num_threads()
    assert verbosity == logging.get_verbosity()
    assert backbone.model.config.use_cache is True


def test_the_backbone_given_must_fit(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    backbone = loading.load(checkpoints["xlm-r"], "masked-lm")
    with pytest.raises(ModelError, match="not the one that the job needs"):
        train.train(job(checkpoints["xlm-r"], labelled), tmp_path / "out", backbone=backbone)
    with pytest.raises(ModelError, match="not the one that the job needs"):
        train.train(job(checkpoints["t5"], labelled), tmp_path / "out", backbone=backbone)
    assert not list(tmp_path.iterdir())


def test_batches_hold_every_example_once_an_epoch_in_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(3, 90, 333).tolist()
    plan = loop.batches(lengths, 8, 84, seed=3)
    first, second = plan[:42], plan[42:]
    for epoch in (first, second):
        assert sorted(index for batch in epoch for index in batch) == list(range(333))
    assert first != second and plan == loop.batches(lengths, 8, 84, seed=3)
    assert plan != loop.batches(lengths, 8, 84, seed=4)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in plan)
    assert padded < 1.25 * 2 * sum(lengths)  # in a random order: about 1.8


def test_progress_tells_steps_loss_and_time_left(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.train(job(checkpoints["xlm-r"], labelled, steps=4), tmp_path / "out", progress=True)
    assert "classification en: 4/4, loss 1." in capsys.readouterr().err
