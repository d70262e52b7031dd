"""Pairs of texts as encoders read them: the tokenizer's own special pieces and segment numbers around both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from adamergex.errors import ConfigError, ModelError
from adamergex.tasks import pieces_of
from adamergex.tasks.answering.prompts import Pieces
from adamergex.tasks.classification import padded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairFrame(NamedTuple):
    """What stands before, between and after two texts; ``segments`` numbers the five parts, where a model reads them
    (BERT's token types)."""

    before: Pieces
    between: Pieces
    after: Pieces
    segments: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """The special pieces of a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    def ids(self, first: Pieces, second: Pieces) -> Pieces:
        return [*self.before, *first, *self.between, *second, *self.after]

    def types(self, first: Pieces, second: Pieces) -> Pieces:
        parts = (self.before, first, self.between, second, self.after)
        return [number for part, number in zip(parts, self.segments or (0,) * 5, strict=True) for _ in part]


@dataclass(frozen=True)
class Sequences:
    """Encoded inputs, ready to be batched; ``types`` is None where the model has no segments."""

    ids: list[Pieces]
    types: list[Pieces] | None
    pad: int

    @property
    def lengths(self) -> Sequence[int]:
        return [len(ids) for ids in self.ids]

    def inputs(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and, where the model has segments, ``token_type_ids`` [rows, longest]."""
        batch = padded([self.ids[index] for index in indices], self.pad)
        if self.types is not None:
            batch["token_type_ids"] = padded([self.types[index] for index in indices], 0)["input_ids"]
        return batch


def pair_frame(tokenizer: PreTrainedTokenizerBase) -> PairFrame:
    """The frame that the tokenizer puts around two texts. Raises: ModelError when it makes none around both."""
    first, second = pieces_of(tokenizer, ["a", "b"])
    found: Any = tokenizer("a", "b")
    outer = list(found["input_ids"])
    begin = _find(outer, first, 0)
    middle = -1 if begin < 0 else _find(outer, second, begin + len(first))
    if middle < 0:
        raise ModelError("the tokenizer cannot put two texts into one input", where=tokenizer.name_or_path,
                         found=f"tokens {outer}", fix="choose an encoder's checkpoint")  # fmt: skip
    before, between, after = outer[:begin], outer[begin + len(first) : middle], outer[middle + len(second) :]
    segments: tuple[int, ...] | None = None
    if "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in found:
        numbers = [0, *found["token_type_ids"], 1]  # a part without pieces takes no number
        places = (1, begin + 1, begin + len(first) + 1, middle + 1, middle + len(second) + 1)
        segments = tuple(int(numbers[place]) for place in places)
    return PairFrame(before, between, after, segments if segments and any(segments) else None)


def pairs(
    firsts: Sequence[str], seconds: Sequence[str], tokenizer: PreTrainedTokenizerBase, longest: int
) -> tuple[Sequences, int]:
    """Both texts in at most ``longest`` pieces, and how many were cut: the first is, at its end; the second never.

    Raises: ConfigError: a second text leaves no room for the first.
    """
    frame = pair_frame(tokenizer)
    ids: list[Pieces] = []
    types: list[Pieces] = []
    truncated = 0
    for first, second in zip(pieces_of(tokenizer, firsts), pieces_of(tokenizer, seconds), strict=True):
        room = longest - frame.size - len(second)
        if room < 1:
            raise ConfigError(
                "what must not be cut leaves no room for the rest",
                where="max_length",
                found=f"{longest} tokens, {len(second) + frame.size} of them for the hypothesis or the choice",
                expected="more",
                fix="raise max_length",
            )
        truncated += len(first) > room
        ids.append(frame.ids(first[:room], second))
        types.append(frame.types(first[:room], second))
    return Sequences(ids, types if frame.segments else None, int(tokenizer.pad_token_id)), truncated


def require_fast(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raises: ModelError: the tokenizer does not tell which characters a token covers."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"{what} needs a tokenizer that tells which characters a token covers",
            where=tokenizer.name_or_path,
            found=f"{type(tokenizer).__name__}, a slow tokenizer without offsets",
            expected="a fast one (tokenizer.json)",
            fix="convert the checkpoint's tokenizer to the fast form, or choose another base",
        )


def on_device(model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch where the model is."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _find(outer: Pieces, inner: Pieces, start: int) -> int:
    places = range(start, len(outer) - len(inner) + 1)
    return next((place for place in places if outer[place : place + len(inner)] == inner), -1)
