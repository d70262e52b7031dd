"""adamergex: give a model a skill in a language that has no labelled data for it, by merging small adapters."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["attach", "convert", "divergence", "inspect", "merge", "train", "transfer"]

# Looked up on first use: `import adamergex` costs nothing, and merging never imports torch.
_HOMES = {
    "attach": ("adamergex.adapters.bottleneck.stack", "attach"),
    "convert": ("adamergex.adapters.formats.conversion", "convert"),
    "merge": ("adamergex.merging", "merge"),
    "divergence": ("adamergex.merging", "divergence"),
    "inspect": ("adamergex.merging.inspection", "inspect"),
    "train": ("adamergex.tables.transfer", "run_training"),
    "transfer": ("adamergex.tables.transfer", "run_transfer"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adamergex' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
