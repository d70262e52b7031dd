"""Which modules adapters change: the attention and feed-forward projections of known families, by name and type."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from adamergex.adapters.bottleneck.language_part import in_language_part, language_only
from adamergex.errors import ModelError
from adamergex.structures import kind_named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adamergex.structures.settings import OnProjections


class Projections(NamedTuple):
    """Patterns of one family's projections, each anchored at its numbered layer so that no head can match."""

    query: str
    key: str
    value: str
    output: str
    up: str
    down: str


class TargetPatterns(NamedTuple):
    """Module patterns for PEFT. ``feedforward``: those of ``modules`` whose input, not output, (IA)³ scales."""

    modules: str
    feedforward: str


FAMILIES = {
    "BERT, RoBERTa, XLM-R, ELECTRA, DeBERTa": Projections(
        r"layer\.\d+\.(?:cross)?attention\.self\.query(?:_proj)?",
        r"layer\.\d+\.(?:cross)?attention\.self\.key(?:_proj)?",
        r"layer\.\d+\.(?:cross)?attention\.self\.value(?:_proj)?",
        r"layer\.\d+\.(?:cross)?attention\.output\.dense",
        r"layer\.\d+\.intermediate\.dense",
        r"layer\.\d+\.output\.dense",  # not attention.output.dense: that has another parent
    ),
    "DistilBERT": Projections(
        r"layer\.\d+\.attention\.q_lin",
        r"layer\.\d+\.attention\.k_lin",
        r"layer\.\d+\.attention\.v_lin",
        r"layer\.\d+\.attention\.out_lin",
        r"layer\.\d+\.ffn\.lin1",
        r"layer\.\d+\.ffn\.lin2",
    ),
    "Llama, Mistral, Qwen, Gemma": Projections(
        r"layers\.\d+\.self_attn\.q_proj",
        r"layers\.\d+\.self_attn\.k_proj",
        r"layers\.\d+\.self_attn\.v_proj",
        r"layers\.\d+\.self_attn\.o_proj",
        r"layers\.\d+\.mlp\.(?:gate|up)_proj",
        r"layers\.\d+\.mlp\.down_proj",
    ),
    "T5, mT5": Projections(
        r"block\.\d+\.layer\.\d+\.(?:SelfAttention|EncDecAttention)\.q",
        r"block\.\d+\.layer\.\d+\.(?:SelfAttention|EncDecAttention)\.k",
        r"block\.\d+\.layer\.\d+\.(?:SelfAttention|EncDecAttention)\.v",
        r"block\.\d+\.layer\.\d+\.(?:SelfAttention|EncDecAttention)\.o",
        r"block\.\d+\.layer\.\d+\.DenseReluDense\.wi(?:_[01])?",
        r"block\.\d+\.layer\.\d+\.DenseReluDense\.wo",
    ),
    "BART, mBART, OPT": Projections(
        r"layers\.\d+\.(?:self_attn|encoder_attn)\.q_proj",
        r"layers\.\d+\.(?:self_attn|encoder_attn)\.k_proj",
        r"layers\.\d+\.(?:self_attn|encoder_attn)\.v_proj",
        r"layers\.\d+\.(?:self_attn|encoder_attn)\.out_proj",
        r"layers\.\d+\.fc1",
        r"layers\.\d+\.fc2",
    ),
}


def targets(model: nn.Module, structure: OnProjections) -> TargetPatterns:
    """Patterns of the modules that an adapter of this structure changes.

    "paper" is the papers' choice: LoRA on {q, k, v, o} and the feed-forward projections, (IA)³ on {k, v} and the
    feed-forward down-projection; "all-linear" every nn.Linear of the backbone. Another string is a regular expression
    for whole module names, a tuple holds name endings. Heads and poolers never get an adapter: they train as
    they are, and adapters of one base have the same modules under any head.
    Raises: ModelError when nothing matches, or a module that is not nn.Linear.
    """
    is_language, kind = in_language_part(model), kind_named(structure.kind)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and is_language(name)]
    # The output projection distinguishes families whose other names agree (Llama's o_proj, BART's out_proj).
    family = next((family for family in FAMILIES.values() if _matching(linear, (family.output,))), None)
    if structure.modules != "paper":
        pattern = _custom(model, structure.modules, linear)
        down = [_anywhere((family.down,))] if family else []
        if kind.scales_inputs:
            known = _matching(linear, tuple(family or ()))
            down += _down_projections(
                model, [name for name in linear if name not in known and re.fullmatch(pattern, name)]
            )
        return TargetPatterns(pattern, "|".join(down) or r"(?!)")
    if family is None:
        raise ModelError(
            "the attention and feed-forward projections of this architecture are not known",
            where=type(model).__name__,
            found=f"linear modules ending in {', '.join(_endings(linear))}",
            expected=f"names as in {'; '.join(FAMILIES)}",
            fix="list the name endings under structure.modules",
        )
    wanted = tuple(getattr(family, name) for name in kind.trained_on)
    absent = [pattern for pattern in wanted if not _matching(linear, (pattern,))]
    if absent:
        raise ModelError(
            "some projections of this architecture were not found",
            where=type(model).__name__,
            found=f"linear modules ending in {', '.join(_endings(linear))}",
            expected=f"modules like {', '.join(absent)}",
            fix="list the name endings under structure.modules",
        )
    return TargetPatterns(language_only(model, _anywhere(wanted)), language_only(model, _anywhere((family.down,))))


def target_modules(model: nn.Module, structure: OnProjections) -> list[str]:
    """The names of the modules that an adapter of this structure changes. Raises: as ``targets``."""
    pattern = targets(model, structure).modules
    return [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]


def _down_projections(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Patterns of the feed-forward's down-projections among linear modules: those of a layer, outside its attention,
    whose output has the hidden width and whose input has another.

    Raises: ModelError for one with the hidden width on both sides, which may be an up-projection as well.
    """
    patterns = set()
    for name in names:
        module, width = model.get_submodule(name), _width(model)
        if not re.search(r"\.\d+\.", name) or _in_attention(model, name) or module.out_features != width:
            continue
        if module.in_features == width:
            raise ModelError(
                "the shape does not show whether this is the feed-forward's down-projection, of which (IA)³ scales the "
                "input instead of the output",
                where=f"{type(model).__name__}: {name}",
                found=f"Linear({width}, {width}) outside attention",
                expected="a projection inside attention, or one that changes the width",
                fix="leave it out of structure.modules, or use kind: lora",
            )
        patterns.add(_every_layer(name))
    return sorted(patterns)


def _width(model: nn.Module) -> int:
    config: Any = model.config
    text = config if config.is_encoder_decoder else config.get_text_config()
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    return int(getattr(text, "hidden_size", None) or embeddings.weight.shape[1])


def _in_attention(model: nn.Module, name: str) -> bool:
    parts = name.split(".")[:-1]
    above = [model.get_submodule(".".join(parts[: end + 1])) for end in range(len(parts))]
    # Only the parent's class counts: the class of a whole layer may name its attention too.
    words = [*parts, *(type(module).__name__ for module in above[-1:])]
    return any(mark in word.lower() for word in words for mark in ("attention", "attn"))


def _every_layer(name: str) -> str:
    return re.sub(r"\d+", r"\\d+", name).replace(".", r"\.")


def _custom(model: nn.Module, modules: str | tuple[str, ...], linear: list[str]) -> str:
    pattern = modules if isinstance(modules, str) else _anywhere(tuple(re.escape(ending) for ending in modules))
    if modules == "all-linear":
        pattern = "|".join(sorted({_every_layer(name) for name in linear}))
    pattern = language_only(model, _backbone_only(model, pattern))
    try:
        matched = [(name, module) for name, module in model.named_modules() if name and re.fullmatch(pattern, name)]
    except re.error as error:
        raise ModelError(
            "structure.modules is not a regular expression", found=f"{modules!r}: {error}", fix="correct the pattern"
        ) from error
    if not matched:
        wanted = [modules] if isinstance(modules, str) else list(modules)
        near = sorted({match for name in wanted for match in difflib.get_close_matches(name, _endings(linear))})
        raise ModelError(
            "structure.modules matches no module",
            where=type(model).__name__,
            found=modules,
            expected=f"for example {', '.join(near or _endings(linear))}",
            fix="a string must match whole module names (start it with '.*'); a list holds name endings",
        )
    for name, module in matched:
        if not isinstance(module, nn.Linear):
            raise ModelError(
                "structure.modules matches a module that cannot hold an adapter",
                where=name,
                found=type(module).__name__,
                expected="Linear",
                fix="make the pattern narrower",
            )
    return pattern


def _backbone_only(model: nn.Module, pattern: str) -> str:
    """The pattern without modules outside the backbone (heads), and without poolers, which only some heads have.

    PEFT would wrap such a module twice: for the adapter, and as a module to save.
    """
    backbone = getattr(model, "base_model_prefix", "")
    outside = [name for name, _ in model.named_children() if name != backbone] if hasattr(model, backbone) else []
    heads = "|".join([*map(re.escape, outside), r"(?:.*\.)?pooler"])
    return rf"(?!(?:{heads})(?:\.|$))(?:{pattern})"


def _anywhere(patterns: tuple[str, ...]) -> str:
    return rf"(?:.*\.)?(?:{'|'.join(patterns)})"


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if re.fullmatch(_anywhere(patterns), name)]


def _endings(names: list[str]) -> list[str]:
    return sorted({".".join(part for part in name.split(".")[-2:] if not part.isdigit()) for name in names})
