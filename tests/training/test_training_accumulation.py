"""Batches in parts and activations computed again train what the plain run trains, with less memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training_processes import CASES, CONTRAST, TEXT, TOPIC, job, losses, steady, tensors
from test_training_tasks_all import TASKS, rows_of

from adamergex.adapters.loaded_adapter import tensors_path
from adamergex.backbones import loading
from adamergex.config.transfer import parse
from adamergex.errors import ConfigError, ModelError
from adamergex.jobs.settings import Optimisation, TrainJob
from adamergex.training import accumulation, loop, train
from adamergex.training.preflight import require_job
from adamergex.training.processes import Team

DIVIDED = [{"accumulation": 3}, {"accumulation": 100}, {"batch_tokens": 60}]
ALONE = [case for case in CASES if case[1] is not CONTRAST and case[2]["kind"] != "sparse"]
AGAIN = [number for number, case in enumerate(ALONE) if case[2]["kind"] != "prefix"]


UNSEEN = {
    "": ("key.bias",),
    "multiple-choice": ("key.bias", "classifier.bias"),
    "span": ("key.bias", "qa_outputs.bias"),
}
"""Tensors whose gradients are rounding alone, by kind of task: a softmax does not see what all its inputs share."""


def require_same(one: Path, two: Path, kind: str = "") -> None:
    """As of two processes: Adam divides by gradients that may be near zero."""
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)
    ours, theirs = tensors(one), tensors(two)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if not name.endswith(UNSEEN.get(kind, UNSEEN[""])):
            torch.testing.assert_close(
                theirs[name], tensor, rtol=1e-5, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("case", range(len(ALONE)), ids=lambda n: f"{ALONE[n][0]}-{ALONE[n][2]['kind']}-{n}")
def test_a_divided_batch_is_the_whole_one(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, case: int
) -> None:
    base, task, structure = ALONE[case]
    rows = plain if task is TEXT else labelled
    given = (steady(checkpoints[base], tmp_path), task, structure, rows)
    train.train(job(*given, steps=12), tmp_path / "whole")
    settings = DIVIDED[case % len(DIVIDED)]
    train.train(job(*given, steps=12, **settings), tmp_path / "divided")
    require_same(tmp_path / "whole", tmp_path / "divided")


@pytest.mark.parametrize("kind", ["span", "tagging", "multiple-choice", "generation"])
@pytest.mark.parametrize("settings", DIVIDED[1:], ids=str)
def test_tasks_of_every_form_are_divided_alike(
    checkpoints: dict[str, str], tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind)), encoding="utf-8")
    base = checkpoints["t5" if kind == "generation" else "xlm-r"]
    given = (steady(base, tmp_path), TASKS[kind], {"kind": "lora", "rank": 4, "dropout": 0}, path)
    train.train(job(*given, steps=8), tmp_path / "whole")
    train.train(job(*given, steps=8, **settings), tmp_path / "divided")
    require_same(tmp_path / "whole", tmp_path / "divided", kind)


def test_a_mean_of_the_parts_means_would_be_another_training(
    checkpoints: dict[str, str], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison sees what it is for: parts of unequal numbers of masked tokens, each weighing the same."""
    given = (steady(checkpoints["xlm-r"], tmp_path), TEXT, CASES[0][2], plain)
    train.train(job(*given, steps=12), tmp_path / "whole")
    monkeypatch.setattr("adamergex.tasks.language_modeling.Segments.labelled", lambda self, batch: len(batch["labels"]))
    train.train(job(*given, steps=12, accumulation=3), tmp_path / "wrong")
    with pytest.raises(AssertionError):
        require_same(tmp_path / "whole", tmp_path / "wrong")


@pytest.mark.parametrize("case", AGAIN, ids=lambda n: f"{ALONE[n][0]}-{ALONE[n][2]['kind']}-{n}")
def test_what_is_computed_again_is_the_same_to_the_bit(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, case: int
) -> None:
    """With dropout too: the generators are set back. The lent backbone is given back as it was."""
    base, task, structure = ALONE[case]
    made = job(checkpoints[base], task, {**structure, **({"dropout": 0.3} if "dropout" in structure else {})},
               plain if task is TEXT else labelled, steps=4)  # fmt: skip
    backbone = train.load_for(made)
    kept = []
    for name in ("off", "on"):
        changed = made.model_copy(update={"optimisation": made.optimisation.model_copy(update={"checkpointing": name})})
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            train.train(changed, tmp_path / name, backbone=backbone)
        kept.append(saved)
        assert not backbone.model.is_gradient_checkpointing
    assert tensors_path(tmp_path / "off").read_bytes() == tensors_path(tmp_path / "on").read_bytes()
    assert losses(tmp_path / "off") == losses(tmp_path / "on")
    assert kept[1] < kept[0]


def test_what_cannot_be_divided_or_computed_again_is_refused_before_training(
    checkpoints: dict[str, str], plain: Path, labelled: Path
) -> None:
    lora = {"kind": "lora", "rank": 4}
    for settings in ({"accumulation": 2}, {"batch_tokens": 64}):
        with pytest.raises(ConfigError, match=f"cannot be divided[\\s\\S]*optimisation.{next(iter(settings))}"):
            require_job(job(checkpoints["xlm-r"], CONTRAST, lora, plain, **settings))
    with pytest.raises(ValueError, match="a layer that is computed again does not see a prefix"):
        job(checkpoints["llama"], TOPIC, {"kind": "prefix", "virtual_tokens": 3}, labelled, checkpointing="on")
    with pytest.raises(ValueError, match="batch_tokens says how a batch is divided"):
        Optimisation(accumulation=2, batch_tokens=64)


def test_settings_that_are_left_out_leave_keys_as_they_were() -> None:
    assert not {"accumulation", "batch_tokens", "checkpointing"} & Optimisation().model_dump().keys()
    chosen = Optimisation(batch_tokens=64, checkpointing="off").model_dump()
    assert (chosen["batch_tokens"], chosen["checkpointing"]) == (64, "off")


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=40).map(lambda found: sorted(found, reverse=True))


@given(lengths, st.integers(1, 50), st.one_of(st.none(), st.integers(1, 200)), st.integers(1, 4))
def test_every_row_is_in_one_part_and_parts_keep_the_budget(
    found: list[int], parts: int, budget: int | None, processes: int
) -> None:
    settings = Optimisation(accumulation=parts) if budget is None else Optimisation(batch_tokens=budget)
    divided = accumulation.divided(found, settings, processes)
    assert [row for part in divided for row in range(part.start, part.stop)] == list(range(len(found)))
    sizes = [part.stop - part.start for part in divided]
    if budget is None:
        assert len(sizes) == min(parts, len(found)) and max(sizes) - min(sizes) <= 1
        return
    for part, size in zip(divided, sizes, strict=True):
        rows = -(-size // processes)  # of the process that has most
        assert rows * max(found[part]) <= budget or size == 1
    for part, later in zip(divided, divided[1:], strict=False):  # no part could take the next row too
        rows = -(-(part.stop + 1 - part.start) // processes)
        assert rows * max(found[part.start : later.start + 1]) > budget


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6), st.data())
def test_rows_lose_padding_alone(found: list[tuple[int, int]], data: st.DataObject) -> None:
    width = max(max(pair) for pair in found)
    read, said = (torch.tensor([[1] * pair[side] + [0] * (width - pair[side]) for pair in found]) for side in (0, 1))
    batch = {"input_ids": read * 7, "attention_mask": read, "labels": torch.where(said > 0, 5, -100)}
    start = data.draw(st.integers(0, len(found) - 1))
    rows = slice(start, None, data.draw(st.integers(1, 3)))
    taken = accumulation.rows_of(batch, rows)
    kept = max(max(pair) for pair in found[rows])
    for name, tensor in taken.items():
        padding = {"labels": -100}.get(name, 0)
        assert torch.equal(tensor, batch[name][rows, :kept]) and (batch[name][rows, kept:] == padding).all()


def test_a_model_whose_layers_cannot_be_computed_again_is_named(tiny_encoder: Path, monkeypatch: Any) -> None:
    loaded = loading.load(str(tiny_encoder), "masked-lm")
    monkeypatch.setattr(type(loaded.model), "supports_gradient_checkpointing", False)
    made: TrainJob = job(str(tiny_encoder), TEXT, {"kind": "ia3"}, Path("x.txt"), checkpointing="on")
    with (
        pytest.raises(ModelError, match=rf"cannot be checkpointed[\s\S]*{type(loaded.model).__name__}"),
        accumulation.checkpointed(loaded.model, made),
    ):
        raise AssertionError("it opened")


def test_a_step_reads_the_lengths_once(checkpoints: dict[str, str], labelled: Path, monkeypatch: Any) -> None:
    """Some examples count them anew at every reading: of 400,000 rows that took seconds a step."""
    made = job(checkpoints["xlm-r"], TOPIC, {"kind": "ia3"}, labelled)
    backbone = train.load_for(made)
    examples = train.examples_of(made, backbone, train.read(made.task, made.rows, "en"))
    lengths, read = examples.lengths, []
    monkeypatch.setattr(type(examples), "lengths", property(lambda self: read.append(1) or lengths))
    for settings, count in ((Optimisation(), 0), (Optimisation(accumulation=2), 1)):
        read.clear()
        steps = loop._Steps(examples, [[0, 1, 2, 3]] * 5, Team(), settings)
        assert [len(steps[step]) for step in range(5)] == [max(1, settings.accumulation)] * 5 and len(read) == count


def test_a_model_that_was_checkpointed_before_still_is(
    checkpoints: dict[str, str], plain: Path, tmp_path: Path
) -> None:
    made = job(checkpoints["bert"], TEXT, {"kind": "ia3"}, plain, steps=1, checkpointing="on")
    backbone = train.load_for(made)
    layers = [module for module in backbone.model.modules() if hasattr(module, "gradient_checkpointing")]
    layers[-1].gradient_checkpointing = True
    train.train(made, tmp_path / "out", backbone=backbone)
    assert [layer.gradient_checkpointing for layer in layers] == [False] * (len(layers) - 1) + [True]


def test_a_table_refuses_what_its_trainings_would(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"base": "nano-causal", "proxy": "fr", "targets": ["sw"], "structure": {"kind": "prefix"}}
    task = {"train": "{language}.csv", "validation": "{language}.csv", "test": "{language}.csv"}
    reference = {"text": "{language}.txt"}
    for place in ("task", "reference"):
        changed = {"task": dict(task), "reference": dict(reference)}
        changed[place]["optimisation"] = {"checkpointing": "on"}
        with pytest.raises(ConfigError, match=f"{place}.optimisation.checkpointing: a layer that is computed again"):
            parse({**shared, **changed})
    with pytest.raises(ValueError, match="the penalty l1 would count once per part"):
        job("x", TOPIC, {"kind": "sparse", "entries": 5, "l1": 0.1}, tmp_path, accumulation=2)


def test_off_is_off_on_a_model_that_was_checkpointed_before(
    checkpoints: dict[str, str], plain: Path, tmp_path: Path
) -> None:
    made = job(checkpoints["bert"], TEXT, {"kind": "ia3"}, plain, steps=1, checkpointing="off")
    backbone = train.load_for(made)
    layers = [module for module in backbone.model.modules() if hasattr(module, "gradient_checkpointing")]
    for layer in layers:
        layer.gradient_checkpointing = True
    with accumulation.checkpointed(backbone.model, made):
        assert not any(layer.gradient_checkpointing for layer in layers)
    assert all(layer.gradient_checkpointing for layer in layers)
