"""Prompts read once, and what follows them: the keys and values of decoders and encoder-decoders are kept.

Positions and masks are made here for the bare transformers model, in which an adapter's modules sit; so rows of any
lengths share a batch. A prefix comes in by its own hook (``adapters.prefix``), which moves masks and positions on.
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
from adamergex.tasks.answering.prompts import Pieces
from adamergex.tasks.classification import padded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Reading:
    """Rows that were read so far. ``logits`` [rows, V]: of the piece that follows each.

    ``seen`` [rows, pieces]: 0 on a decoder's padding. ``encoded``: hidden states and mask of an encoder-decoder's
    prompts, whose decoder has read equally many pieces in every row.
    """

    model: nn.Module
    cache: Any
    logits: Tensor
    seen: Tensor
    encoded: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Sequence[int]) -> Reading:
        """These rows, in this order, a row as often as it is named; the reading itself stays as it is."""
        chosen = torch.tensor(rows, device=self.seen.device)
        encoded = None if self.encoded is None else (self.encoded[0][chosen], self.encoded[1][chosen])
        cache = _copied(self.cache)
        cache.batch_select_indices(chosen)
        return replace(self, cache=cache, logits=self.logits[chosen], seen=self.seen[chosen], encoded=encoded)

    def go_on(self, ids: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
        """Read on: ids [rows, pieces] with padding (``real`` 0) on the right. Logits [n, V] at the n ``wanted``."""
        self.seen = torch.cat([self.seen, real], 1)
        given: dict[str, object] = {"past_key_values": self.cache, "use_cache": True}
        if self.encoded is None:
            positions = (self.seen.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            given |= {"input_ids": ids, "attention_mask": self.seen, **_positions(self.model, positions)}
        else:  # no decoder mask: what is padded comes after all that is wanted
            states, mask = self.encoded
            given |= {"decoder_input_ids": ids, "encoder_outputs": (states,), "attention_mask": mask}
        with only_at(self.model, wanted):
            output = self.model(**given)
        self.cache = output.past_key_values
        logits: Tensor = output.logits[0]
        return logits


def read(model: nn.Module, prompts: Sequence[Pieces], tokenizer: PreTrainedTokenizerBase) -> Reading:
    """Read prompts, which hold their special pieces, with a decoder or an encoder-decoder."""
    alone, device, pad = without_adapter(model), next(model.parameters()).device, int(tokenizer.pad_token_id)
    if alone.config.is_encoder_decoder:
        batch = {name: tensor.to(device) for name, tensor in padded(prompts, pad).items()}
        states = alone.get_encoder()(**batch, return_dict=True).last_hidden_state
        encoded = states, batch["attention_mask"]
        ids = torch.tensor([decoder_opening(alone, tokenizer)] * len(prompts), device=device)
        real = torch.ones_like(ids)
    else:
        encoded = None
        batch = {name: tensor.to(device) for name, tensor in padded(prompts, pad, left=True).items()}
        ids, real = batch["input_ids"], batch["attention_mask"]
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[:, -1] = True
    nothing = torch.empty(len(prompts), 0, device=device)
    reading = Reading(alone, None, nothing, nothing.long(), encoded)
    reading.logits = reading.go_on(ids, real, last)
    return reading


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most ``batch_tokens`` padded pieces each, longest first."""
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


def _positions(model: nn.Module, positions: Tensor) -> dict[str, Tensor]:
    return {"position_ids": positions} if "position_ids" in signature(model.forward).parameters else {}


def _copied(cache: Any) -> Any:
    """Another cache of the same tensors: transformers' caches replace them when rows are chosen or pieces added."""
    result = copy(cache)
    for name in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, name):
            setattr(result, name, _copied(getattr(cache, name)))
    if isinstance(getattr(cache, "layers", None), list):
        result.layers = [copy(layer) for layer in cache.layers]
    if hasattr(cache, "is_updated"):
        result.is_updated = dict(cache.is_updated)
    return result
