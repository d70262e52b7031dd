"""The part of a multimodal model that reads text: adapters, layers and fine-tunings are of it alone.

Found by transformers' own structure (which configuration a sub-model has, which inputs it reads), never by names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

if TYPE_CHECKING:
    from torch import nn


def language_part(model: nn.Module) -> tuple[str, tuple[str, ...]]:
    """(path of the language model, paths of the towers for images or sound). A text model is its own: ("", ())."""
    if not isinstance(model, PreTrainedModel):
        return "", ()
    towers: list[str] = []
    # Of an encoder-decoder, whose sides may have configurations of their own, only towers are left out.
    root, text = "", model.config if model.config.is_encoder_decoder else model.config.get_text_config()
    for path, module in model.named_modules():
        if not path or not isinstance(module, PreTrainedModel) or path.startswith(tuple(f"{one}." for one in towers)):
            continue
        if not _reads_text(module):
            towers.append(path)
        elif not root and text is not model.config and module.config is text:
            root = path
    return root, tuple(towers)


def in_language_part(model: nn.Module) -> Callable[[str], bool]:
    """Whether a module or parameter belongs to the language model, or stands outside the backbone (a head)."""
    root, towers = language_part(model)
    backbone = getattr(model, "base_model_prefix", "")
    inside, outside = (f"{root}.", f"{backbone}.") if root else ("", "")
    below = tuple(f"{tower}." for tower in towers)

    def belongs(name: str) -> bool:
        own = f"{name}."
        return (own.startswith(inside) or not own.startswith(outside)) and not own.startswith(below)

    return belongs


def language_only(model: nn.Module, pattern: str) -> str:
    """A regular expression for whole module names, with what is not of the language model left out."""
    root, towers = language_part(model)
    if not root and not towers:
        return pattern
    within = rf"(?={re.escape(root)}\.)" if root else ""
    without = rf"(?!(?:{'|'.join(map(re.escape, towers))})(?:\.|$))" if towers else ""
    return rf"{within}{without}(?:{pattern})"


def _reads_text(module: PreTrainedModel) -> bool:
    return "text" in module.input_modalities and module.main_input_name in ("input_ids", "inputs_embeds")
