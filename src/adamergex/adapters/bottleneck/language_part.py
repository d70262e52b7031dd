"""The language model of a multimodal model: only it gets adapters and fine-tuning.

Found by transformers' structure (which configuration a sub-model has, which inputs it reads), never by names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

if TYPE_CHECKING:
    from torch import nn


def language_part(model: nn.Module) -> tuple[str, tuple[str, ...]]:
    """(path of the language model, paths of the towers for images or sound). For a text model: ("", ())."""
    if not isinstance(model, PreTrainedModel):
        return "", ()
    towers: list[str] = []
    # In an encoder-decoder, whose sides may have their own configurations, only towers are excluded.
    root, text = "", model.config if model.config.is_encoder_decoder else model.config.get_text_config()
    for path, module in model.named_modules():
        in_tower = any(path.startswith(f"{tower}.") for tower in towers)
        if not path or in_tower or not isinstance(module, PreTrainedModel):
            continue
        if not _reads_text(module):
            towers.append(path)
        elif not root and text is not model.config and module.config is text:
            root = path
    return root, tuple(towers)


def in_language_part(model: nn.Module) -> Callable[[str], bool]:
    """A test whether a module or parameter belongs to the language model, or is outside the backbone (a head)."""
    root, towers = language_part(model)
    backbone = getattr(model, "base_model_prefix", "")
    inside, outside = (f"{root}.", f"{backbone}.") if root else ("", "")
    excluded = tuple(f"{tower}." for tower in towers)

    def belongs(name: str) -> bool:
        path = f"{name}."
        return (path.startswith(inside) or not path.startswith(outside)) and not path.startswith(excluded)

    return belongs


def language_only(model: nn.Module, pattern: str) -> str:
    """Restrict a regular expression for whole module names to the language model."""
    root, towers = language_part(model)
    if not root and not towers:
        return pattern
    within = rf"(?={re.escape(root)}\.)" if root else ""
    without = rf"(?!(?:{'|'.join(map(re.escape, towers))})(?:\.|$))" if towers else ""
    return rf"{within}{without}(?:{pattern})"


def _reads_text(module: PreTrainedModel) -> bool:
    return "text" in module.input_modalities and module.main_input_name in ("input_ids", "inputs_embeds")
