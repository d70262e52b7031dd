"""adamergex: give a model a skill in a language that has no labelled data for it, by merging small adapters."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamergex.inspection import inspect
    from adamergex.merging import divergence, merge
    from adamergex.transfer import run_transfer as transfer

__version__ = "0.1.0"
__all__ = ["divergence", "inspect", "merge", "transfer"]

# Looked up on first use: `import adamergex` costs nothing, and merging never imports torch.
_HOMES = {
    "merge": ("adamergex.merging", "merge"),
    "divergence": ("adamergex.merging", "divergence"),
    "inspect": ("adamergex.inspection", "inspect"),
    "transfer": ("adamergex.transfer", "run_transfer"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adamergex' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
