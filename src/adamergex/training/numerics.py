"""The precision of a training's computation and how it computes attention; the lent model is given back as it was.

bfloat16 is autocast's: matrix products in bfloat16, sums, softmax and losses in float32, trained tensors in float32. On
CPUs with AVX512-BF16 or AMX that is several times as fast as float32, with eager attention most of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adamergex.errors import ConfigError

if TYPE_CHECKING:
    from adamergex.jobs.optimisation import Attention, Optimisation, Precision


def autocasts(precision: Precision) -> bool:
    """Whether a training computes in bfloat16; "auto": on CUDA."""
    return precision == "bfloat16" or (precision == "auto" and torch.cuda.is_available())


@contextmanager
def computing(model: nn.Module, optimisation: Optimisation) -> Iterator[None]:
    """While this is open the model, an adapter around it or not, computes as the optimisation says.

    Raises: ConfigError: the model has no such attention.
    """
    with _weights(model, optimisation.precision), _attention(model, optimisation.attention):
        yield


def require_attention(model: nn.Module, attention: Attention) -> None:
    """Raises: ConfigError: the model has no such attention."""
    with _attention(model, attention):
        pass


@contextmanager
def _weights(model: nn.Module, precision: Precision) -> Iterator[None]:
    """In float32 the base's weights of lower precision are widened for the while; their own bits stay aside."""
    tensors = [*model.parameters(), *model.buffers()] if precision == "float32" else []
    low = [(one, one.data) for one in tensors if one.is_floating_point() and one.element_size() < 4]
    try:
        for tensor, stored in low:
            tensor.data = stored.float()
        yield
    finally:
        for tensor, stored in low:
            tensor.data = stored


@contextmanager
def _attention(model: nn.Module, attention: Attention) -> Iterator[None]:
    if attention == "auto":
        yield
        return
    wrapped: Any = model
    alone = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    configs = _configs(alone.config)
    before = [(config, config._attn_implementation) for config in configs]
    try:
        try:
            alone.set_attn_implementation(attention)
        except (ValueError, ImportError, AttributeError) as error:
            raise _refused(alone, attention, str(error).splitlines()[0]) from error
        text = alone.config.get_text_config()
        if text._attn_implementation != attention:  # transformers only warns
            raise _refused(alone, attention, f"it computes attention by {text._attn_implementation}")
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def _configs(config: Any) -> list[Any]:
    """A model's configuration and those of its parts: every module reads its own."""
    parts = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    return [config, *(inner for part in parts if part is not None for inner in _configs(part))]


def _refused(model: nn.Module, attention: str, found: str) -> ConfigError:
    return ConfigError(
        "the model has no such attention",
        where="optimisation.attention",
        found=f"{type(model).__name__}: {found}",
        expected=attention,
        fix="set attention to auto",
    )
