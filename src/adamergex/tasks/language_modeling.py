"""The reference task: masked LM (encoders) or causal LM (decoders) on segments of a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adamergex.backbones.loading import frame
from adamergex.backbones.logits import IGNORE, labelled, labelled_loss
from adamergex.errors import ConfigError, DataError
from adamergex.tasks import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.jobs.settings import LanguageModeling

_CHUNK = 512  # texts tokenised at a time: reading stops once there are enough segments


@dataclass(frozen=True)
class Masking:
    """BERT's masking of a share ``rate`` of the ordinary tokens: 80 % mask token, 10 % random token, 10 % unchanged."""

    mask: int
    special: NDArray[np.int64]
    ordinary: NDArray[np.int64]
    rate: float

    def draw(
        self, ids: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and labels [batch, length]; labels are -100 where nothing is predicted."""
        chosen = (generator.random(ids.shape, np.float32) < self.rate) & ~np.isin(ids, self.special)
        dice = generator.random(ids.shape, np.float32)
        inputs = np.where(chosen & (dice < 0.8), self.mask, ids)
        random_ids = self.ordinary[generator.integers(len(self.ordinary), size=ids.shape)]
        inputs = np.where(chosen & (dice >= 0.9), random_ids, inputs)
        return inputs, np.where(chosen, ids, IGNORE)


@dataclass(frozen=True)
class Segments:
    """Segments [n, length] of one language. ``masking`` is None for decoders, which predict every next token."""

    ids: NDArray[np.int64]
    masking: Masking | None
    seed: int

    @property
    def lengths(self) -> Sequence[int]:
        return [self.ids.shape[1]] * len(self.ids)

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Inputs and labels. The masks depend only on (seed, step): new in every epoch, the same after a resume."""
        ids = self.ids[list(indices)]
        inputs = labels = ids
        if self.masking is not None:
            inputs, labels = self.masking.draw(ids, np.random.default_rng([self.seed % 2**32, step]))
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy (nats per token) over the masked tokens, or over every next token."""
        ids = batch["input_ids"]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return labelled_loss(model, inputs, batch["labels"], shift=self.masking is None)

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """Number of tokens that the loss averages over."""
        return labelled(batch["labels"], shift=self.masking is None)


def segments(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    task: LanguageModeling,
    *,
    masked: bool,
    seed: int,
    longest: int,
    where: object = None,
) -> Segments:
    """Cut texts into exactly ``task.segments`` segments (None: all) of exactly ``task.segment`` tokens.

    The texts are joined with the tokenizer's separator and cut without overlap; every segment gets the tokenizer's
    special tokens (``masked``: before and after; else before).
    Raises: ConfigError when a segment does not fit the model, DataError when there are too few segments.
    """
    before, after = frame(tokenizer)
    body = cut_segments(texts, tokenizer, task, masked=masked, longest=longest, where=where)
    sides = [np.tile(np.asarray(side, np.int64), (len(body), 1)) for side in (before, after if masked else [])]
    masking = _masking(tokenizer, task.mask_rate) if masked else None
    return Segments(np.concatenate([sides[0], body, sides[1]], axis=1), masking, seed)


def cut_segments(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    task: LanguageModeling,
    *,
    masked: bool,
    longest: int,
    where: object,
    least: int = 1,
) -> NDArray[np.int64]:
    """The segments [n, tokens] without special tokens, at least ``least`` tokens each; see ``segments``."""
    inner = _inner(tokenizer, task.segment, masked)
    if inner < least or task.segment > longest:
        raise ConfigError(
            "segments of this length do not fit the model",
            where="segment",
            found=task.segment,
            expected=f"{task.segment - inner + least} to {longest} tokens",
            fix="change the reference task's segment",
        )
    wanted = task.segments if task.segments is not None else 2**62
    stream: list[int] = []
    for tokens in _stream(texts, tokenizer):
        stream += tokens
        if len(stream) >= wanted * inner:
            break
    available = len(stream) // inner
    if available < (task.segments or 1):
        raise DataError(
            "there is too little text",
            where=where,
            found=f"{available} segments of {task.segment} tokens",
            expected=f"{task.segments or 1} segments",
            fix="give more text, or lower segment or segments (the same for every language)",
        )
    count = min(available, wanted)
    return np.asarray(stream[: count * inner], np.int64).reshape(count, inner)


def count_segments(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, segment: int, *, masked: bool) -> int:
    """Number of segments of ``segment`` tokens that the texts give."""
    return sum(map(len, _stream(texts, tokenizer))) // max(_inner(tokenizer, segment, masked), 1)


def _inner(tokenizer: PreTrainedTokenizerBase, segment: int, masked: bool) -> int:
    """Tokens of a segment without its special tokens."""
    before, after = frame(tokenizer)
    return segment - len(before) - (len(after) if masked else 0)


def _stream(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    between = [] if separator is None else [int(separator)]
    for start in range(0, len(texts), _CHUNK):
        for tokens in token_ids(tokenizer, texts[start : start + _CHUNK]):
            yield tokens + between


def _masking(tokenizer: PreTrainedTokenizerBase, rate: float) -> Masking:
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            "the tokenizer has no mask token",
            where=tokenizer.name_or_path,
            expected="a mask_token, as masked language models have",
            fix="choose an encoder's checkpoint",
        )
    special = np.asarray(sorted(tokenizer.all_special_ids), np.int64)
    ordinary = np.setdiff1d(np.arange(len(tokenizer), dtype=np.int64), special)
    return Masking(int(tokenizer.mask_token_id), special, ordinary, rate)
