"""Before anything is trained or scored: an adapter acts on what its model computes, seen in forward passes of a few
tokens. What a library ignores in silence, or puts in the wrong place, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adamergex.errors import ModelError

_LENGTH = 4


def require_effect(model: nn.Module, parameters: Iterable[nn.Parameter], what: str) -> None:
    """Raises: ModelError: other values of an adapter's parameters do not change what the model gives.

    The parameters are moved by N(0, 1) and put back, bit by bit.
    """
    changed = list(parameters)
    if _without_weights(model) or not changed:
        return
    with probing(model), answering(model, f"a forward pass with this {what} fails"):
        before, kept = _given(model), [parameter.detach().clone() for parameter in changed]
        generator = torch.Generator().manual_seed(0)
        for parameter in changed:
            noise = torch.empty(parameter.shape).normal_(generator=generator)
            parameter.data.add_(noise.to(parameter.device, parameter.dtype))
        try:
            after = _given(model)
        finally:
            for parameter, values in zip(changed, kept, strict=True):
                parameter.data.copy_(values)
    if torch.equal(before, after):
        raise ModelError(
            f"this {what} changes nothing that the model computes",
            where=type(model).__name__,
            found="the same output whatever the adapter's values are",
            expected="an adapter in modules that text passes through",
            fix="choose other modules, or another structure",
        )


@contextmanager
def answering(model: nn.Module, problem: str) -> Iterator[None]:
    """Raises: ModelError with ``problem``, and with what the model itself says against being called."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(
            problem,
            where=type(model).__name__,
            found=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}",
            expected="a model that reads token ids alone",
            fix="use another structure, or another base",
        ) from error


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients, and with the generators as they were afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module in training:
            module.training = True


def probe(model: Any, ids: torch.Tensor, **extra: Any) -> Any:
    """The model's output for token ids [1, n]; an encoder-decoder's decoder reads them, its encoder a fixed text."""
    source = tokens(model, _LENGTH) if model.config.is_encoder_decoder else ids
    if model.config.is_encoder_decoder:
        extra["decoder_input_ids"] = ids
    if type(model).__name__.endswith("MultipleChoice"):
        source = source[:, None].expand(-1, 2, -1)
    return model(input_ids=source, attention_mask=torch.ones_like(source), **extra)


def tokens(model: Any, count: int, start: int = 0) -> torch.Tensor:
    """[1, count]: ordinary tokens, from the middle of the vocabulary on."""
    weight = model.get_input_embeddings().weight
    third = max(len(weight) // 3, 1)
    chosen = third + (torch.arange(start, start + count) * 5) % max(min(third, len(weight) - third), 1)
    return chosen[None].to(weight.device)


def _given(model: Any) -> torch.Tensor:
    found: torch.Tensor = probe(model, tokens(model, _LENGTH))[0]
    return found.float()


def _without_weights(model: Any) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())
