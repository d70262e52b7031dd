"""A prefix on a model of any family: its shape, and how its keys and values get into every forward pass.

PEFT's wrappers put a prefix into one task's class each, drop position ids, and fail on masked-LM references. Here one
hook where keys and values are taken does it for every head; the numbers are PEFT's own.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from adamergex.errors import AdapterFileError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel


class Shape(NamedTuple):
    """What PEFT is told of the model; its own guess of the width is hidden size, wrong where heads · d_kv differ."""

    num_layers: int
    num_attention_heads: int
    token_dim: int
    num_transformer_submodules: int


def shape(model: PreTrainedModel) -> Shape:
    """Layers, key-value heads and width of the keys of the stack that reads the prefix: of an encoder-decoder the
    decoder's (as PEFT does; 2 submodules are its name for that).

    Raises: ModelError when the model takes no keys and values from outside.
    """
    config: Any = model.config
    site(model)
    text = config.get_text_config()
    both = bool(config.is_encoder_decoder)
    names = ("num_decoder_layers", "decoder_layers") if both else ()
    layers = next((getattr(config, name) for name in names if getattr(config, name, None)), text.num_hidden_layers)
    queries = getattr(config, "decoder_attention_heads", None) if both else None
    queries = queries or text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or queries
    head = getattr(text, "d_kv", None) or getattr(text, "head_dim", None) or text.hidden_size // queries
    return Shape(int(layers), int(heads), int(heads * head), 2 if both else 1)


def require_fitting(model: PreTrainedModel, config: Any, where: object) -> None:
    """Raises: AdapterFileError for a prefix of another model's layers or heads, which only the forward pass would show.

    ``config``: PEFT's. With grouped queries PEFT itself sets heads and width to the model's; the tensor then tells."""
    wanted = shape(model)._asdict()
    if getattr(model.config.get_text_config(), "num_key_value_heads", None):
        wanted = {name: wanted[name] for name in ("num_layers", "num_transformer_submodules")}
    found = {name: getattr(config, name) for name in wanted}
    if found != wanted:
        raise AdapterFileError(
            "the prefix is not one for this model",
            where=where,
            found=found,
            expected=wanted,
            fix="use the base that the adapter was trained with",
        )


def site(model: PreTrainedModel) -> nn.Module:
    """The module whose call takes ``past_key_values``: the backbone, or an encoder-decoder as a whole."""
    found = model if model.config.is_encoder_decoder else getattr(model, model.base_model_prefix, model)
    if "past_key_values" not in signature(found.forward).parameters:
        raise ModelError(
            "this architecture takes no prefix",
            where=type(model).__name__,
            found="a forward pass without past_key_values",
            expected="BERT, RoBERTa, XLM-R, ELECTRA, a decoder, T5 or BART",
            fix="use another structure, such as lora",
        )
    return found


def require_no_checkpointing(model: PreTrainedModel) -> None:
    """Raises: ModelError when gradient checkpointing is on: it would run layers again with keys already appended."""
    if model.is_gradient_checkpointing:
        raise ModelError(
            "gradient checkpointing does not work with a prefix",
            where=type(model).__name__,
            found="gradient checkpointing enabled",
            expected="a model without it",
            fix="call model.gradient_checkpointing_disable(), or use another structure, such as lora",
        )


def insert(model: PreTrainedModel, tokens: int, prompt: Callable[[int], Any]) -> RemovableHandle:
    """Give every forward pass the keys and values of ``tokens`` virtual tokens, until the handle is removed.

    ``prompt``: batch size -> a cache that holds them. Attention masks grow by ``tokens`` ones on the left and given
    positions move on by ``tokens``; a cache that goes on from an earlier pass holds the prefix already.
    """
    module = site(model)
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

    return module.register_forward_pre_hook(add, with_kwargs=True)


def _rows(given: dict[str, Any]) -> int:
    inputs = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds", "labels")
    return len(next(given[name] for name in inputs if given.get(name) is not None))
