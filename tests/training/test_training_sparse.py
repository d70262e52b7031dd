"""Training the weights themselves: all of them, and the few that move most (LF-SFT)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from stopping import StopAfter
from test_training_madx import TASK, TEXT, UPPER, hashes, job
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, TrainerCallback

from adamergex import evaluation
from adamergex.adapters import full_backed, loaded_adapter
from adamergex.adapters.full_backed import TunedModel
from adamergex.adapters.sparse import SparseDifference, apply_difference, most_moved, read_difference
from adamergex.backbones import loading
from adamergex.data import reader
from adamergex.errors import AdapterFileError, ConfigError, IncompatibleAdaptersError, ModelError
from adamergex.files import lineage
from adamergex.jobs.settings import Classification, EvaluateJob, Structure
from adamergex.training import train

FULL = Structure(kind="full")
GOLDENS = Path(__file__).parents[1] / "goldens"
FAMILIES = ["xlm-r", "bert", "llama", "t5"]


def sparse(**changes: Any) -> Structure:
    return Structure(kind="sparse", **({"entries": 0.05, "freeze_norms": True} | changes))


def attached(base: str, structure: Structure, kind: loading.Kind = "masked-lm") -> tuple[loading.Loaded, TunedModel]:
    loaded = loading.load(base, kind, TASK.labels if kind == "sequence-classification" else None)
    new, head = loaded.new_modules, kind in loading.HEADS
    tuned = loaded_adapter.attach(loaded.model, structure, task_head=head, base_sha256=loaded.sha256, new_modules=new)
    assert isinstance(tuned, TunedModel)
    return loaded, tuned


def test_the_choice_is_that_of_composable_sft() -> None:
    """Golden g4: K = int(0.08 · N) of ``roberta.*``, whose weights after the full fine-tuning are given."""
    expected = load_file(GOLDENS / "g4_sft" / "xlmr_tokcls" / "expected.safetensors")
    model = AutoModelForTokenClassification.from_pretrained(GOLDENS / "g1_madx" / "bases" / "xlmr" / "base_tokcls")
    own = dict(model.named_parameters())
    masks = {name.removeprefix("lang.mask."): tensor for name, tensor in expected.items() if "lang.mask." in name}
    moved = {name: (expected[f"lang.fullft.{name}"] - own[name]).abs().detach() for name in masks}
    found = most_moved(moved, int(0.08 * sum(tensor.numel() for tensor in moved.values())))
    assert sum(int(mask.sum()) for mask in found.values()) == 2416
    for name, mask in masks.items():
        assert torch.equal(found[name], mask.bool()), name


@trials(max_examples=200)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 1e-30, 0.5, 1.0, 3.0, 7e20]), min_size=1), min_size=1, max_size=4),
    st.data(),
)
def test_all_that_tie_with_the_kth_largest_are_chosen(values: list[list[float]], draw: Any) -> None:
    every = sorted((value for part in values for value in part), reverse=True)
    count = draw.draw(st.integers(1, len(every)))
    found = most_moved({str(index): torch.tensor(part) for index, part in enumerate(values)}, count)
    threshold = torch.tensor(every[count - 1])
    for index, part in enumerate(values):
        tensor = torch.tensor(part)
        assert found[str(index)].tolist() == ((tensor >= threshold) & (tensor > 0)).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_entries_are_the_bases_bits_and_have_no_optimizer_state(
    checkpoints: dict[str, str], plain: Path, tmp_path: Path, name: str
) -> None:
    class State(TrainerCallback):
        """Optimizer state and weights, by all names, after the last step of each phase."""

        def __init__(self) -> None:
            self.seen: list[tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]] = []

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            own = dict(model.named_parameters(remove_duplicate=False))
            optimizer = kwargs["optimizer"]
            state = {
                key: {part: tensor.clone() for part, tensor in optimizer.state[parameter].items() if tensor.ndim}
                for key, parameter in own.items()
                if parameter.requires_grad and parameter in optimizer.state
            }
            self.seen.append(({key: tensor.detach().clone() for key, tensor in own.items()}, state))

    wanted, watched = job(checkpoints[name], plain, TEXT, sparse(entries=500, first_steps=7, l1=0.1)), State()
    backbone = train.load_for(wanted)
    named = backbone.model.named_parameters(remove_duplicate=False)
    base, untouched = {key: p.detach().clone() for key, p in named}, hashes(backbone.model)
    train.train(wanted, tmp_path / "out", backbone=backbone, callbacks=[watched])
    assert hashes(backbone.model) == untouched
    difference = read_difference(tmp_path / "out")
    assert not difference.whole
    assert sum(len(entry.indices) for entry in difference.sparse.values()) == 500
    (_, first), (weights, second) = watched.seen
    assert sum(int((state["exp_avg"] != 0).sum()) for state in first.values()) > 5000
    # A tied parameter has one of its names in the file: the backbone's.
    names: dict[int, list[str]] = {}
    for key, parameter in backbone.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(key)
    once = {next((key for key in keys if key in difference.sparse), keys[0]) for keys in names.values()}
    assert difference.sparse.keys() <= once
    base = {key: own for key, own in base.items() if key in once}
    for key, own in base.items():
        mask = torch.zeros(own.numel(), dtype=torch.bool)
        if key in difference.sparse:
            mask[difference.sparse[key].indices] = True
        frozen = ~mask.view(own.shape)
        assert torch.equal(weights[key][frozen].view(torch.int32), own[frozen].view(torch.int32)), key
        for state in second.get(key, {}).values():
            assert bool((state[frozen] == 0).all()), key
        if key in difference.sparse:
            change = (weights[key] - own).view(-1)[mask]
            assert torch.equal(change, difference.sparse[key].values)
    moved = {key for key, own in base.items() if not torch.equal(weights[key], own)}
    norms_and_head = ("norm", "LayerNorm", "lm_head", "cls.", "final_layer_norm")
    assert moved and not any(mark in key for key in moved for mark in norms_and_head)
    found = lineage.read(tmp_path / "out")
    assert found is not None and found.structure["entries"] == 500
    outcome = found.settings["training"]
    assert (outcome["parameters"], outcome["steps"], outcome["first_phase"]["steps"]) == (500, 12, 7)


@pytest.mark.parametrize("name", FAMILIES)
def test_full_fine_tuning_is_stored_and_found_again_bit_by_bit(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, name: str
) -> None:
    class Last(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.weights = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}

    steps = 150 if name in ("llama", "t5") else 60
    wanted, last = job(checkpoints[name], labelled, TASK, FULL, steps=steps, learning_rate=2e-3), Last()
    backbone = train.load_for(wanted)
    untouched = hashes(backbone.model)
    train.train(wanted, tmp_path / "out", backbone=backbone, callbacks=[last])
    assert hashes(backbone.model) == untouched
    placed = loaded_adapter.load(backbone.model, [tmp_path / "out"], new_modules=backbone.new_modules)
    for key, tensor in placed.model.named_parameters():
        assert torch.equal(tensor, last.weights[key]), key
    placed.detach()
    assert hashes(backbone.model) == untouched
    evaluated = EvaluateJob(base=checkpoints[name], task=TASK, language="en", rows=wanted.rows)
    assert evaluation.evaluate(evaluated, tmp_path / "out", backbone=backbone).score > 60  # three topics
    assert hashes(backbone.model) == untouched


def test_language_and_task_are_added_to_the_base(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path
) -> None:
    """θ⁰ + φ_language + φ_task, computed here in float64 on a plain model, gives the logits of the stack."""
    base = checkpoints["xlm-r"]
    for code, seed in (("en", 1), ("sw", 2)):
        train.train(job(base, plain, TEXT, sparse(), language=code, seed=seed), tmp_path / code)
    task = job(base, labelled, TASK, sparse(freeze_norms=False), base_adapters=(str(tmp_path / "en"),), steps=40)
    train.train(task, tmp_path / "task")
    found = lineage.read(tmp_path / "task")
    assert found is not None and found.parents["base_adapter"]["language"] == "en"
    parts = [read_difference(tmp_path / name) for name in ("sw", "task")]
    assert set(parts[1].whole) == {key for key in parts[1].whole if key.startswith("classifier.")} != set()
    oracle = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float64).eval()
    with torch.no_grad():
        own = dict(oracle.named_parameters())
        for part in parts:
            for key, entry in part.sparse.items():
                own[key] += entry.dense().double()
            for key, tensor in part.whole.items():
                own[key].copy_(tensor)
    backbone = loading.load(base, "sequence-classification", TASK.labels)
    rows = reader.read(task.rows, "en")
    batch = backbone.tokenizer([row["text"] for row in rows[:12]], padding=True, return_tensors="pt")
    placed = loaded_adapter.load(backbone.model, [tmp_path / "sw", tmp_path / "task"], new_modules=backbone.new_modules)
    with torch.inference_mode():
        torch.testing.assert_close(placed.model(**batch).logits.double(), oracle(**batch).logits, rtol=1e-4, atol=1e-5)
    placed.detach()
    # A language is never needed to have a head, and the order of the two does not matter to the weights.
    swapped = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    for part in reversed(parts):
        apply_difference(swapped, part)
    for key, tensor in swapped.named_parameters():
        torch.testing.assert_close(tensor.double(), own[key], rtol=1e-6, atol=1e-6)


def test_a_task_starts_from_the_fully_trained_language(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path
) -> None:
    base = checkpoints["xlm-r"]
    train.train(job(base, plain, TEXT, FULL), tmp_path / "sw")
    language = read_difference(tmp_path / "sw")
    assert not language.sparse and any(key.startswith("lm_head.") for key in language.whole)
    loaded = loading.load(base, "sequence-classification", TASK.labels)
    below = tmp_path / "sw"
    tuned = loaded_adapter.attach(
        loaded.model,
        FULL,
        base_adapters=[below],
        task_head=True,
        base_sha256=loaded.sha256,
        new_modules=loaded.new_modules,
    )
    for key, tensor in tuned.model.named_parameters():
        if not key.startswith("classifier."):
            assert torch.equal(tensor, language.whole[key]), key
    tuned.detach()
    train.train(job(base, labelled, TASK, FULL, base_adapters=(str(tmp_path / "sw"),)), tmp_path / "task")
    assert not any(key.startswith("lm_head.") for key in read_difference(tmp_path / "task").whole)


def test_the_penalty_is_that_of_the_mean_absolute_difference(checkpoints: dict[str, str], plain: Path) -> None:
    """∂(L + l1 · mean |θ − θ⁰|)/∂θ, by autograd in float64 for the penalty, against what the hook adds."""
    gradients, wanted = [], job(checkpoints["xlm-r"], plain, TEXT, FULL)
    for strength in (0.0, 3.0):
        loaded, tuned = attached(checkpoints["xlm-r"], sparse(l1=strength))
        own = {key: p for key, p in tuned.model.named_parameters() if p.requires_grad}
        start = {key: p.detach().clone() for key, p in own.items()}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in own.values():
                p += 0.01 * torch.randint(-1, 2, p.shape, generator=generator)
        examples = train.examples_of(wanted, loaded, reader.read(wanted.rows, "en"))
        examples.loss(tuned.model, examples.batch(range(8), 0)).backward()
        gradients.append({key: p.grad.double() for key, p in own.items() if p.grad is not None})
        moved = {key: p.detach().double().requires_grad_() for key, p in own.items()}
        total = sum((moved[key] - start[key].double()).abs().sum() for key in moved)
        (strength * total / sum(p.numel() for p in own.values())).backward()  # type: ignore[union-attr]
        tuned.detach()
    for key, plain_gradient in gradients[0].items():
        added = gradients[1][key] - plain_gradient
        torch.testing.assert_close(added, moved[key].grad, rtol=0, atol=1e-6)
    assert max(float(tensor.grad.abs().max()) for tensor in moved.values()) > 1e-5  # type: ignore[union-attr]


def test_l1_lowers_the_mean_absolute_difference(checkpoints: dict[str, str], plain: Path, tmp_path: Path) -> None:
    means = []
    for strength in (0.0, 300.0):
        structure = sparse(l1=strength, entries=0.2)
        train.train(job(checkpoints["xlm-r"], plain, TEXT, structure), tmp_path / f"{strength:g}")
        found = read_difference(tmp_path / f"{strength:g}")
        means.append(torch.cat([entry.values for entry in found.sparse.values()]).abs().mean().item())
    assert means[1] < 0.8 * means[0]


@pytest.mark.parametrize("phase", ["first", "second"])
def test_a_stopped_run_ends_in_the_same_bytes(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, phase: str
) -> None:
    wanted = job(checkpoints["bert"], labelled, TASK, sparse(), checkpoint_every=3)

    class StopInSecond(StopAfter):
        phase = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.phase += 1

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            return super().on_step_end(args, state, control, **kwargs) if self.phase == 2 else control

    stop = StopAfter(7) if phase == "first" else StopInSecond(7)
    with pytest.raises(KeyboardInterrupt):
        train.train(wanted, tmp_path / "stopped", workdir=tmp_path / "work", callbacks=[stop])
    train.train(wanted, tmp_path / "stopped", workdir=tmp_path / "work")
    train.train(wanted, tmp_path / "whole")
    for file in ("sparse_difference.safetensors", "lineage.json", "README.md"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_what_cannot_be_is_refused(checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path) -> None:
    base = checkpoints["xlm-r"]
    with pytest.raises(ValidationError, match="weight_decay: would change"):
        job(base, plain, TEXT, sparse(), weight_decay=0.1)
    with pytest.raises(ValidationError, match="rank: not a setting of kind 'sparse'"):
        Structure(kind="sparse", rank=3)
    untouched = hashes(loading.load(base, "masked-lm").model)
    with pytest.raises(ConfigError, match="cannot change this many entries"):
        train.train(job(base, plain, TEXT, sparse(entries=10**9)), tmp_path / "out")
    train.train(job(base, plain, TEXT, sparse()), tmp_path / "en")
    wanted = job(base, labelled, TASK, sparse())
    train.train(wanted, tmp_path / "task")
    evaluated = EvaluateJob(base=base, task=TASK, language="en", rows=wanted.rows)
    with pytest.raises(AdapterFileError, match="neither the difference nor the base has a classification head"):
        evaluation.evaluate(evaluated, [tmp_path / "task", tmp_path / "en"])
    other = evaluated.model_copy(update={"task": Classification(labels=("travel", "food", "sports"))})
    with pytest.raises(IncompatibleAdaptersError, match="labels in another order"):
        evaluation.evaluate(other, tmp_path / "task")
    train.train(job(base, labelled, TASK, UPPER), tmp_path / "bottleneck")
    with pytest.raises(AdapterFileError):
        evaluation.evaluate(evaluated, [tmp_path / "en", tmp_path / "bottleneck"])
    with pytest.raises(AdapterFileError, match="no sparse difference"):
        train.train(job(base, labelled, TASK, FULL, base_adapters=(str(tmp_path / "bottleneck"),)), tmp_path / "no")
    with pytest.raises(ModelError, match="trained on another base"):
        train.train(
            job(checkpoints["bert"], labelled, TASK, FULL, base_adapters=(str(tmp_path / "en"),)), tmp_path / "no"
        )
    assert hashes(loading.load(base, "masked-lm").model) == untouched


def test_a_card_says_how_to_add_the_difference(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    train.train(job(checkpoints["bert"], labelled, TASK, FULL, steps=2), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "library_name: adamergex" in card and "# Full fine-tuning for en" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(tmp_path / "out"))
    found: dict[str, Any] = {}
    exec(code, found)  # as a reader would run it
    loaded = loading.load(checkpoints["bert"], "sequence-classification", TASK.labels)
    placed = full_backed.load(loaded.model, [tmp_path / "out"], new_modules=loaded.new_modules)
    for key, tensor in placed.model.named_parameters():
        assert torch.equal(tensor, found["model"].get_parameter(key)), key
    placed.detach()


def test_indices_are_stored_in_four_bytes(checkpoints: dict[str, str], plain: Path, tmp_path: Path) -> None:
    train.train(job(checkpoints["xlm-r"], plain, TEXT, sparse(entries=1000), steps=3), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "sparse_difference.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if name.startswith("indices.")} == {torch.int32}
    found: SparseDifference = read_difference(tmp_path / "out")
    assert {entry.indices.dtype for entry in found.sparse.values()} == {torch.int64}
