"""Checks before training or scoring that an adapter changes what its model computes, by forward passes of a few tokens.

An adapter that a library ignores silently, or puts in the wrong place, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adamergex.errors import ModelError

_LENGTH = 4


def require_effect(model: nn.Module, parameters: Iterable[nn.Parameter], name: str) -> None:
    """Raises: ModelError when changing the adapter's parameters does not change the model's output.

    N(0, 1) noise is added to the parameters; afterwards they have their original bits.
    """
    changed = list(parameters)
    if _without_weights(model) or not changed:
        return
    with probing(model), raising_model_error(model, f"a forward pass with this {name} fails"):
        before, originals = _output(model), [parameter.detach().clone() for parameter in changed]
        generator = torch.Generator().manual_seed(0)
        for parameter in changed:
            noise = torch.empty(parameter.shape).normal_(generator=generator)
            parameter.data.add_(noise.to(parameter.device, parameter.dtype))
        try:
            after = _output(model)
        finally:
            for parameter, values in zip(changed, originals, strict=True):
                parameter.data.copy_(values)
    if torch.equal(before, after):
        raise ModelError(
            f"this {name} does not change what the model computes",
            where=type(model).__name__,
            found="the same output for other values of the adapter",
            expected="an adapter in modules that process the text",
            fix="choose other modules, or another structure",
        )


@contextmanager
def raising_model_error(model: nn.Module, problem: str) -> Iterator[None]:
    """Turn an error of the model's forward pass into a ModelError with ``problem``."""
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
    """Evaluation mode without gradients; random generators and training modes are restored afterwards."""
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
    """[1, count]: ordinary tokens, from the middle third of the vocabulary."""
    embeddings = model.get_input_embeddings().weight
    third = max(len(embeddings) // 3, 1)
    ids = third + (torch.arange(start, start + count) * 5) % max(min(third, len(embeddings) - third), 1)
    return ids[None].to(embeddings.device)


def _output(model: Any) -> torch.Tensor:
    output: torch.Tensor = probe(model, tokens(model, _LENGTH))[0]
    return output.float()


def _without_weights(model: Any) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())
