"""Trained parameters are float32 for any dtype of the base: in bfloat16 most AdamW steps are below the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


def in_float32(module: nn.Module) -> RemovableHandle | None:
    """Convert parameters of lower precision to float32, and inputs of the base's dtype too.

    The module's output is float32 then. The handle stops the conversion of inputs; None if all parameters were float32.
    """
    low = [tensor for tensor in module.parameters() if tensor.is_floating_point() and tensor.element_size() < 4]
    if not low:
        return None
    for parameter in low:
        parameter.data = parameter.data.float()
    return module.register_forward_pre_hook(_as_float32, with_kwargs=True)


def _as_float32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    device = next(module.parameters()).device.type
    if torch.is_autocast_enabled(device):  # chooses the dtypes itself
        return args, kwargs
    return tuple(map(_float, args)), {name: _float(value) for name, value in kwargs.items()}


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
