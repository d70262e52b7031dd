"""Prefill and incremental decoding with a KV cache, for decoders and encoder-decoders.

Positions and masks are made here for the transformers model that holds the adapter's modules, so that rows of different
lengths share a batch. A prefix is added by its own hook (``adapters.prefix``), which shifts masks and positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adamergex.backbones.loading import decoder_opening
from adamergex.backbones.logits import only_at, without_adapter
from adamergex.tasks.answering.prompts import TokenIds
from adamergex.tasks.classification import padded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class DecodingState:
    """Rows decoded so far. ``logits`` [rows, V]: of the next token of each row.

    ``mask`` [rows, tokens]: the attention mask, 0 on a decoder's padding. ``encoded``: hidden states and mask of an
    encoder-decoder's prompts, whose decoder has read the same number of tokens in every row.
    """

    model: nn.Module
    cache: Any
    logits: Tensor
    mask: Tensor
    encoded: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Sequence[int]) -> DecodingState:
        """A new state of the given rows, in this order and with repetitions; this state stays as it is."""
        chosen = torch.tensor(rows, device=self.mask.device)
        encoded = None if self.encoded is None else (self.encoded[0][chosen], self.encoded[1][chosen])
        cache = _copied(self.cache)
        cache.batch_select_indices(chosen)
        return replace(self, cache=cache, logits=self.logits[chosen], mask=self.mask[chosen], encoded=encoded)

    def extend(self, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        """Append ids [rows, tokens], padded on the right (``mask`` 0). Returns logits [n, V] at the n ``wanted``."""
        self.mask = torch.cat([self.mask, mask], 1)
        inputs: dict[str, object] = {"past_key_values": self.cache, "use_cache": True}
        if self.encoded is None:
            inputs |= {"input_ids": ids, "attention_mask": self.mask}
            if "position_ids" in signature(self.model.forward).parameters:
                inputs["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        else:  # no decoder mask is needed: padding comes after every wanted position
            states, encoder_mask = self.encoded
            inputs |= {"decoder_input_ids": ids, "encoder_outputs": (states,), "attention_mask": encoder_mask}
        with only_at(self.model, wanted):
            output = self.model(**inputs)
        self.cache = output.past_key_values
        logits: Tensor = output.logits[0]
        return logits


def prefill(model: nn.Module, prompts: Sequence[TokenIds], tokenizer: PreTrainedTokenizerBase) -> DecodingState:
    """The state of a decoder or an encoder-decoder after prompts, which hold their special tokens."""
    backbone, device, pad = without_adapter(model), next(model.parameters()).device, int(tokenizer.pad_token_id)
    if backbone.config.is_encoder_decoder:
        batch = {name: tensor.to(device) for name, tensor in padded(prompts, pad).items()}
        states = backbone.get_encoder()(**batch, return_dict=True).last_hidden_state
        encoded = states, batch["attention_mask"]
        ids = torch.tensor([decoder_opening(backbone, tokenizer)] * len(prompts), device=device)
        mask = torch.ones_like(ids)
    else:
        encoded = None
        batch = {name: tensor.to(device) for name, tensor in padded(prompts, pad, left=True).items()}
        ids, mask = batch["input_ids"], batch["attention_mask"]
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[:, -1] = True
    empty = torch.empty(len(prompts), 0, device=device)
    state = DecodingState(backbone, None, empty, empty.long(), encoded)
    state.logits = state.extend(ids, mask, last)
    return state


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of indices of similar length, at most ``batch_tokens`` padded tokens each, longest first."""
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch = []
        width = lengths[index] if not batch else width
        batch.append(index)
    if batch:
        yield batch


def _copied(cache: Any) -> Any:
    """A copy that shares the tensors: transformers' caches replace them when rows are selected or tokens added."""
    result = copy(cache)
    for name in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, name):
            setattr(result, name, _copied(getattr(cache, name)))
    if isinstance(getattr(cache, "layers", None), list):
        result.layers = [copy(layer) for layer in cache.layers]
    if hasattr(cache, "is_updated"):
        result.is_updated = dict(cache.is_updated)
    return result
