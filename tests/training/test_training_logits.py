"""Logits only where there are labels: the same loss and gradients as transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adamergex.adapters import peft_backed
from adamergex.backbones import loading
from adamergex.backbones.logits import IGNORE, head, labelled_loss, only_at
from adamergex.errors import ModelError
from adamergex.jobs.settings import Structure

KINDS = {"xlm-r": "masked-lm", "bert": "masked-lm", "llama": "causal-lm", "t5": "sequence-to-sequence"}


def example() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.3, ids, IGNORE)
    labels[0, 9:] = IGNORE
    labels[1, 0] = ids[1, 0]  # causal models have nothing that predicts the first piece
    return {"input_ids": ids, "attention_mask": mask}, labels


def losses_and_gradients(model: torch.nn.Module, loss: Tensor) -> tuple[Tensor, list[Tensor]]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss, [torch.zeros(()) if gradient is None else gradient for gradient in gradients]


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", list(KINDS))
def test_loss_and_gradients_are_those_of_full_logits(checkpoints: dict[str, str], name: str, adapted: bool) -> None:
    loaded = loading.load(checkpoints[name], KINDS[name])
    model = loaded.model
    if adapted:
        model = peft_backed.attach(model, Structure(dropout=0), task_head=False, base_sha256="0").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05)
    inputs, labels = example()
    own = losses_and_gradients(model, labelled_loss(model, inputs, labels, shift=name == "llama"))
    full = losses_and_gradients(model, model(**inputs, labels=labels).loss)
    torch.testing.assert_close(own[0], full[0], rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(own[1], full[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["xlm-r", "llama"])
def test_the_head_sees_the_wanted_positions_only(checkpoints: dict[str, str], name: str) -> None:
    loaded = loading.load(checkpoints[name], KINDS[name])
    inputs, labels = example()
    with torch.inference_mode():
        full = loaded.model(**inputs).logits
        with only_at(loaded.model, labels != IGNORE):
            chosen = loaded.model(**inputs).logits
        again = loaded.model(**inputs).logits
    assert chosen.shape == (1, int((labels != IGNORE).sum()), full.shape[-1])
    torch.testing.assert_close(chosen[0], full[labels != IGNORE], rtol=1e-5, atol=1e-6)
    assert torch.equal(full, again)  # the hook is gone


def test_a_batch_without_labels_has_no_loss(checkpoints: dict[str, str]) -> None:
    loaded = loading.load(checkpoints["xlm-r"], "masked-lm")
    inputs, labels = example()
    assert labelled_loss(loaded.model, inputs, torch.full_like(labels, IGNORE), shift=False).item() == 0


def test_a_model_without_language_model_head_is_refused(checkpoints: dict[str, str]) -> None:
    loaded = loading.load(checkpoints["xlm-r"], "sequence-classification", ("a", "b"))
    with pytest.raises(ModelError, match="no language-model head"):
        head(loaded.model)
