"""A prefix on a model of any family: its shape, and how its keys and values enter every forward pass.

PEFT's wrappers support a prefix in one class per task, drop position ids, and fail on masked-LM references. Here one
hook on the module that takes keys and values works under every head, with the numbers of PEFT.
"""

from __future__ import annotations

from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from adamergex.adapters.guards import probe, probing, raising_model_error, tokens
from adamergex.errors import AdapterFileError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

_REFUSED = "this architecture takes no prefix"


class ModelShape(NamedTuple):
    """The model's shape for PEFT, whose own guess of the width, the hidden size, is wrong where heads · d_kv differ."""

    num_layers: int
    num_attention_heads: int
    token_dim: int
    num_transformer_submodules: int


def model_shape(model: PreTrainedModel) -> ModelShape:
    """Layers, key-value heads and key width of the stack that reads the prefix: the decoder's of an encoder-decoder, as
    in PEFT, which calls this 2 submodules. Models that generate give the shape of their own cache.

    Raises: ModelError when the model takes no keys and values from outside.
    """
    config: Any = model.config
    cache_module(model)
    if model.can_generate() and not any(parameter.is_meta for parameter in model.parameters()):
        with probing(model), raising_model_error(model, _REFUSED):
            keys = [keys for keys, _ in _cached(model, tokens(model, 2))]
        _, heads, _, width = keys[0].shape
        return ModelShape(len(keys), heads, heads * width, 2 if config.is_encoder_decoder else 1)
    text = config.get_text_config()
    both = bool(config.is_encoder_decoder)
    names = ("num_decoder_layers", "decoder_layers") if both else ()
    layers = next((getattr(config, name) for name in names if getattr(config, name, None)), text.num_hidden_layers)
    queries = getattr(config, "decoder_attention_heads", None) if both else None
    queries = queries or text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or queries
    head = getattr(text, "d_kv", None) or getattr(text, "head_dim", None) or text.hidden_size // queries
    return ModelShape(int(layers), int(heads), int(heads * head), 2 if both else 1)


def require_same_output(model: PreTrainedModel, prompt: nn.Parameter) -> None:
    """Require of a model that generates that a prefix with the keys and values of tokens acts like these tokens.

    ``prompt`` [n, 2·layers·width] is the prefix that the model's hook reads; its bits are restored.
    Raises: ModelError when the prefix enters at the wrong place, or not at all.
    """
    if not model.can_generate() or any(parameter.is_meta for parameter in model.parameters()):
        return
    before, after = tokens(model, len(prompt)), tokens(model, 4, start=len(prompt))
    original = prompt.detach().clone()
    with probing(model), raising_model_error(model, _REFUSED):
        with _without_prefix(model):
            expected = probe(model, torch.cat([before, after], 1)).logits[0, len(prompt) :].float()
            pairs = _cached(model, before)
            if model.config.is_encoder_decoder:  # PEFT lays out such prefixes for cross-attention too
                with insert(model, len(prompt), lambda _: _decoder_cache(pairs)):
                    logits = probe(model, after).logits[0].float()
        if not model.config.is_encoder_decoder:
            try:
                prompt.data.copy_(torch.cat([part[0].transpose(0, 1).flatten(1) for pair in pairs for part in pair], 1))
                logits = probe(model, after).logits[0].float()
            finally:
                prompt.data.copy_(original)
    # Rounding in the base's dtype, relative to the spread of the logits.
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.15
    error, deviation = float((logits - expected).square().mean().sqrt()), float(expected.std())
    if torch.isfinite(expected).all() and error > tolerance * max(deviation, 1e-6):
        raise _no_prefix(model, f"logits with an error of {error:.3g}, at a standard deviation of {deviation:.3g}")


@contextmanager
def _without_prefix(model: PreTrainedModel) -> Iterator[None]:
    """Remove the prefix's hook for a while."""
    hooks, options = cache_module(model)._forward_pre_hooks, cache_module(model)._forward_pre_hooks_with_kwargs
    removed = {key: hook for key, hook in hooks.items() if getattr(hook, "is_prefix", False)}
    for key in removed:
        del hooks[key]
    try:
        yield
    finally:
        hooks.update(removed)
        options.update(dict.fromkeys(removed, True))


def _cached(model: PreTrainedModel, ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(keys, values) [1, heads, n, width] of every layer for ``ids``; all must have one shape."""
    cache = probe(model, ids, use_cache=True).past_key_values
    cache = getattr(cache, "self_attention_cache", cache)
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in getattr(cache, "layers", ())]
    shapes = {tuple(part.shape) if isinstance(part, torch.Tensor) else None for pair in pairs for part in pair}
    if len(shapes) != 1 or None in shapes or next(iter(shapes))[2] != ids.shape[1]:  # type: ignore[index]
        raise _no_prefix(model, f"layers that keep {', '.join(sorted(map(str, shapes))) or 'nothing'}")
    return pairs  # type: ignore[return-value]


def _decoder_cache(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> EncoderDecoderCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return EncoderDecoderCache(cache, DynamicCache())


def _no_prefix(model: PreTrainedModel, found: str) -> ModelError:
    return ModelError(
        _REFUSED,
        where=type(model).__name__,
        found=found,
        expected="keys and values of one shape in every layer: BERT, RoBERTa, XLM-R, ELECTRA, a decoder, T5 or BART",
        fix="use another structure, such as lora",
    )


def require_fitting(model: PreTrainedModel, shape: ModelShape, config: Any, where: object) -> None:
    """Raises: AdapterFileError for a prefix of a model with other layers or heads, which PEFT would not notice.

    ``config``: PEFT's. With grouped queries PEFT sets heads and width to the model's; the tensor's shape shows them."""
    expected = shape._asdict()
    if getattr(model.config.get_text_config(), "num_key_value_heads", None):
        expected = {name: expected[name] for name in ("num_layers", "num_transformer_submodules")}
    stored = {name: getattr(config, name) for name in expected}
    if stored != expected:
        raise AdapterFileError(
            "the prefix does not fit this model",
            where=where,
            found=stored,
            expected=expected,
            fix="use the base that the adapter was trained with",
        )


def cache_module(model: PreTrainedModel) -> nn.Module:
    """The module whose forward pass takes ``past_key_values``: the backbone (OPT's decoder, which its language model
    calls), or a whole encoder-decoder."""
    if model.config.is_encoder_decoder:
        module: nn.Module = model
    else:
        backbone = getattr(model, model.base_model_prefix, model)
        inner = getattr(backbone, "decoder", None)
        module = inner if isinstance(inner, nn.Module) and _takes_cache(inner) else backbone
    if not _takes_cache(module):
        raise _no_prefix(model, "a forward pass without past_key_values")
    return module


def _takes_cache(module: nn.Module) -> bool:
    return "past_key_values" in signature(module.forward).parameters


def require_no_checkpointing(model: PreTrainedModel) -> None:
    """Raises: ModelError with gradient checkpointing, which would rerun layers with keys already appended."""
    if model.is_gradient_checkpointing:
        raise ModelError(
            "gradient checkpointing does not work with a prefix",
            where=type(model).__name__,
            found="gradient checkpointing enabled",
            expected="a model without it",
            fix="call model.gradient_checkpointing_disable(), or use another structure, such as lora",
        )


def insert(model: PreTrainedModel, tokens: int, prompt: Callable[[int], Any]) -> RemovableHandle:
    """Add the keys and values of ``tokens`` virtual tokens to every forward pass, until the handle is removed.

    ``prompt``: batch size -> a cache that holds them. Attention masks get ``tokens`` ones on the left, and given
    positions increase by ``tokens``; a cache from an earlier pass already holds the prefix.
    """
    module = cache_module(model)
    names = list(signature(module.forward).parameters)
    mask_name = "decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask"

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        given = dict(zip(names, args, strict=False)) | kwargs
        if module.training:
            require_no_checkpointing(model)
        cache = given.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            given["past_key_values"] = prompt(_rows(given))
        mask, positions = given.get(mask_name), given.get("position_ids")
        if mask is not None:
            given[mask_name] = torch.cat([mask.new_ones(len(mask), tokens), mask], 1)
        if positions is not None:
            given["position_ids"] = positions + tokens
        return (), given

    add.is_prefix = True  # type: ignore[attr-defined]
    return module.register_forward_pre_hook(add, with_kwargs=True)


def _rows(given: dict[str, Any]) -> int:
    inputs = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds", "labels")
    return len(next(given[name] for name in inputs if given.get(name) is not None))
