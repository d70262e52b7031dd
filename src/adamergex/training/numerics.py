"""Precision and attention implementation during training; the model is restored afterwards.

bfloat16 means autocast: matrix products in bfloat16; sums, softmax, losses and trained tensors in float32. On CPUs with
AVX512-BF16 or AMX it is several times as fast as float32, most of all with eager attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adamergex.backbones.logits import without_adapter
from adamergex.errors import ConfigError

if TYPE_CHECKING:
    from adamergex.jobs.optimisation import Attention, Optimisation, Precision


def autocasts(precision: Precision) -> bool:
    """Whether training computes in bfloat16; "auto": on CUDA."""
    return precision == "bfloat16" or (precision == "auto" and torch.cuda.is_available())


@contextmanager
def computing(model: nn.Module, optimisation: Optimisation) -> Iterator[None]:
    """Context in which the model, with or without an adapter, uses the precision and attention of the settings.

    Raises: ConfigError: the model does not support the attention.
    """
    with _weights(model, optimisation.precision), _attention(model, optimisation.attention):
        yield


def require_attention(model: nn.Module, attention: Attention) -> None:
    """Raises: ConfigError: the model does not support the attention."""
    with _attention(model, attention):
        pass


@contextmanager
def _weights(model: nn.Module, precision: Precision) -> Iterator[None]:
    """For float32, widen weights of lower precision temporarily; their original bits are kept and restored."""
    tensors = [*model.parameters(), *model.buffers()] if precision == "float32" else []
    low = [(tensor, tensor.data) for tensor in tensors if tensor.is_floating_point() and tensor.element_size() < 4]
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
    backbone = without_adapter(model)
    configs = _configs(backbone.config)
    before = [(config, config._attn_implementation) for config in configs]
    try:
        try:
            backbone.set_attn_implementation(attention)
        except (ValueError, ImportError, AttributeError) as error:
            raise _unsupported(backbone, attention, str(error).splitlines()[0]) from error
        text = backbone.config.get_text_config()
        if text._attn_implementation != attention:  # transformers only warns
            raise _unsupported(backbone, attention, f"it computes attention by {text._attn_implementation}")
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def _configs(config: Any) -> list[Any]:
    """A model's configuration and those of its parts, which modules read separately."""
    parts = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    return [config, *(inner for part in parts if part is not None for inner in _configs(part))]


def _unsupported(model: nn.Module, attention: str, reason: str) -> ConfigError:
    return ConfigError(
        "the model has no such attention",
        where="optimisation.attention",
        found=f"{type(model).__name__}: {reason}",
        expected=attention,
        fix="set attention to auto",
    )
