"""Texts and pairs of texts as encoders read them, with the tokenizer's special tokens and token types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from adamergex.backbones.loading import frame
from adamergex.errors import ConfigError, ModelError
from adamergex.tasks import token_ids
from adamergex.tasks.answering.prompts import TokenIds
from adamergex.tasks.classification import padded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairFrame(NamedTuple):
    """The special tokens before, between and after two texts; ``segments``: the token type of each of the five parts,
    for models that read token types (BERT)."""

    before: TokenIds
    between: TokenIds
    after: TokenIds
    segments: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """Number of special tokens in a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    def ids(self, first: TokenIds, second: TokenIds) -> TokenIds:
        return [*self.before, *first, *self.between, *second, *self.after]

    def types(self, first: TokenIds, second: TokenIds) -> TokenIds:
        parts = (self.before, first, self.between, second, self.after)
        return [number for part, number in zip(parts, self.segments or (0,) * 5, strict=True) for _ in part]


@dataclass(frozen=True)
class Sequences:
    """Encoded inputs, ready for batching; ``types`` is None for models without token types."""

    ids: list[TokenIds]
    types: list[TokenIds] | None
    pad: int

    @property
    def lengths(self) -> Sequence[int]:
        return [len(ids) for ids in self.ids]

    def inputs(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and, for models with token types, ``token_type_ids`` [rows, longest]."""
        batch = padded([self.ids[index] for index in indices], self.pad)
        if self.types is not None:
            batch["token_type_ids"] = padded([self.types[index] for index in indices], 0)["input_ids"]
        return batch


def pair_frame(tokenizer: PreTrainedTokenizerBase) -> PairFrame:
    """The special tokens that the tokenizer puts around two texts. Raises: ModelError: it cannot encode a pair."""
    first, second = token_ids(tokenizer, ["a", "b"])
    encoding: Any = tokenizer("a", "b")
    outer = list(encoding["input_ids"])
    begin = _find(outer, first, 0)
    middle = -1 if begin < 0 else _find(outer, second, begin + len(first))
    if middle < 0:
        raise ModelError("the tokenizer cannot put two texts into one input", where=tokenizer.name_or_path,
                         found=f"tokens {outer}", fix="choose an encoder's checkpoint")  # fmt: skip
    before, between, after = outer[:begin], outer[begin + len(first) : middle], outer[middle + len(second) :]
    segments: tuple[int, ...] | None = None
    if "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in encoding:
        numbers = [0, *encoding["token_type_ids"], 1]  # a part without tokens has no number
        positions = (1, begin + 1, begin + len(first) + 1, middle + 1, middle + len(second) + 1)
        segments = tuple(int(numbers[position]) for position in positions)
    return PairFrame(before, between, after, segments if segments and any(segments) else None)


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[TokenIds], int]:
    """Each text with its special tokens in at most ``limit`` tokens, and how many texts were cut (at their end)."""
    before, after = frame(tokenizer)
    room = limit - len(before) - len(after)
    encoded = token_ids(tokenizer, texts)
    return [before + ids[:room] + after for ids in encoded], sum(len(ids) > room for ids in encoded)


def pairs(
    firsts: Sequence[str], seconds: Sequence[str], tokenizer: PreTrainedTokenizerBase, longest: int
) -> tuple[Sequences, int]:
    """Pairs of at most ``longest`` tokens, and how many were cut: only the first text is cut, at its end.

    Raises: ConfigError: a second text leaves no room for the first.
    """
    special = pair_frame(tokenizer)
    ids: list[TokenIds] = []
    types: list[TokenIds] = []
    truncated = 0
    for first, second in zip(token_ids(tokenizer, firsts), token_ids(tokenizer, seconds), strict=True):
        room = longest - special.size - len(second)
        if room < 1:
            raise ConfigError(
                "the text that is never cut leaves no room for the rest",
                where="max_length",
                found=f"{longest} tokens, {len(second) + special.size} of them for the hypothesis or the choice",
                expected="more",
                fix="raise max_length",
            )
        truncated += len(first) > room
        ids.append(special.ids(first[:room], second))
        types.append(special.types(first[:room], second))
    return Sequences(ids, types if special.segments else None, int(tokenizer.pad_token_id)), truncated


def require_fast(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raises: ModelError: the tokenizer has no character offsets."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"{what} needs a tokenizer with character offsets",
            where=tokenizer.name_or_path,
            found=f"{type(tokenizer).__name__}, a slow tokenizer without offsets",
            expected="a fast one (tokenizer.json)",
            fix="convert the checkpoint's tokenizer to the fast form, or choose another base",
        )


def on_device(model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch on the model's device."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _find(outer: TokenIds, inner: TokenIds, start: int) -> int:
    positions = range(start, len(outer) - len(inner) + 1)
    return next((position for position in positions if outer[position : position + len(inner)] == inner), -1)
