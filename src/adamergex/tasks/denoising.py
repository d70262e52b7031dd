"""The reference task of encoder-decoders on segments of text: span corruption (T5), or text continuation.

Span corruption (Raffel et al. 2020, arXiv 1910.10683, §3.1.4): 15 % of a segment's tokens, in spans of 3 on average,
are replaced by one sentinel per span; the decoder predicts each sentinel and the tokens it replaced.

    text      a b c d e f g h        encoder   a b <0> e f g <1>        decoder   <0> c d <1> h

Continuation: the encoder reads the first half of the segment, the decoder predicts the second. (The papers' reference
code splits English 511 to 1 and the other language 1 to 511, which are two different tasks.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adamergex.backbones.loading import frame
from adamergex.backbones.logits import labelled, labelled_loss
from adamergex.errors import ConfigError
from adamergex.tasks.language_modeling import cut_segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.jobs.settings import LanguageModeling

Array = NDArray[np.int64]
SPAN = 3  # tokens of a span, on average


@dataclass(frozen=True)
class Corruption:
    """T5's span corruption. All segments of one length get the same number of spans and of replaced tokens."""

    sentinels: Array
    rate: float

    def counts(self, length: int) -> tuple[int, int]:
        """Number of replaced tokens in a segment, and number of spans."""
        replaced = min(max(round(length * self.rate), 1), length - 1)
        return replaced, min(max(round(replaced / SPAN), 1), length - replaced)

    def draw(self, ids: Array, generator: np.random.Generator) -> tuple[Array, Array]:
        """Encoder inputs and decoder targets, [batch, ·] each, of ids [batch, length].

        Spans and the gaps before them have random lengths of at least 1; a gap comes first and a span last.
        """
        rows, length = ids.shape
        replaced, spans = self.counts(length)
        gaps = _random_parts(rows, length - replaced, spans, generator)
        sizes = _random_parts(rows, replaced, spans, generator)
        ends = np.stack([gaps, sizes], 2).reshape(rows, 2 * spans).cumsum(1)
        first = np.zeros((rows, length), bool)
        first[:, 0] = True
        np.put_along_axis(first, ends[:, :-1], True, 1)
        part = first.cumsum(1) - 1  # gap 0, span 0, gap 1, span 1, …
        inside, sentinel = part % 2 == 1, self.sentinels[part // 2]
        inputs = np.where(inside & first, sentinel, ids)[~inside | first]
        targets = np.where(~inside & first, sentinel, ids)[inside | first]
        return inputs.reshape(rows, -1), targets.reshape(rows, -1)


@dataclass(frozen=True)
class DenoisingExamples:
    """Segments [n, tokens] of one language without special tokens. ``corruption`` is None for continuation."""

    ids: Array
    corruption: Corruption | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    seed: int

    @property
    def lengths(self) -> Sequence[int]:
        inputs, targets = self._split(self.ids[:1], 0)
        return [inputs.shape[1] + targets.shape[1]] * len(self.ids)

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Inputs and labels. The spans depend only on (seed, step): new in every epoch, the same after a resume."""
        inputs, targets = self._split(self.ids[list(indices)], step)
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(targets)}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy (nats per token) over the decoder's targets; a continuation, which is cut, has no end."""
        ids, labels = batch["input_ids"], batch["labels"]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return labelled_loss(model, inputs, labels, shift=False, learned=self._learned(labels))

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """Number of tokens that the loss averages over."""
        return labelled(batch["labels"], shift=False, learned=self._learned(batch["labels"]))

    def _learned(self, labels: Tensor) -> Tensor:
        learned = torch.ones_like(labels, dtype=torch.bool)
        learned[:, : len(self.before)] = False
        if self.corruption is None:
            learned[:, labels.shape[1] - len(self.after) :] = False
        return learned

    def _split(self, ids: Array, step: int) -> tuple[Array, Array]:
        if self.corruption is None:
            half = (ids.shape[1] + 1) // 2
            sides = ids[:, :half], ids[:, half:]
        else:
            sides = self.corruption.draw(ids, np.random.default_rng([self.seed % 2**32, step]))
        before, after = (np.tile(np.asarray(side, np.int64), (len(ids), 1)) for side in (self.before, self.after))
        inputs, targets = (np.concatenate([before, side, after], axis=1) for side in sides)
        return inputs, targets


def denoising_examples(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    task: LanguageModeling,
    *,
    seed: int,
    longest: int,
    where: object = None,
) -> DenoisingExamples:
    """Segments, cut as by ``language_modeling.segments``, for an encoder-decoder to restore or to continue.

    Raises: ConfigError for span corruption with too few sentinels, or as ``segments``; DataError as ``segments``.
    """
    before, after = frame(tokenizer)
    body = cut_segments(texts, tokenizer, task, masked=True, longest=longest, where=where, least=2)
    sentinels, corruption = sentinels_of(tokenizer), None
    if task.objective == "span-corruption" or (task.objective == "auto" and len(sentinels)):
        corruption = Corruption(sentinels, task.mask_rate)
        spans = corruption.counts(body.shape[1])[1]
        if spans > len(sentinels):
            raise ConfigError(
                "the tokenizer has too few sentinels for span corruption",
                where=tokenizer.name_or_path,
                found=f"{len(sentinels)} tokens like <extra_id_0>",
                expected=f"{spans}, for segments of {task.segment} tokens and mask_rate {task.mask_rate}",
                fix="set objective: continuation, or lower segment or mask_rate",
            )
    return DenoisingExamples(body, corruption, tuple(before), tuple(after), seed)


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> Array:
    """The ids of <extra_id_0>, <extra_id_1>, … (mT5 writes a space mark before them), up to the first missing one."""
    ids = {}
    for token, index in tokenizer.get_vocab().items():
        if match := re.fullmatch(r"▁?<extra_id_(\d+)>", token):
            ids[int(match[1])] = index
    count = next((number for number in range(len(ids)) if number not in ids), len(ids))
    return np.asarray([ids[number] for number in range(count)], np.int64)


def _random_parts(rows: int, items: int, parts: int, generator: np.random.Generator) -> Array:
    """Random lengths [rows, parts], each at least 1, that sum to ``items``; every division is equally likely."""
    cuts = generator.random((rows, items - 1)).argsort(1)[:, : parts - 1] + 1
    edges = np.concatenate([np.zeros((rows, 1), int), np.sort(cuts, 1), np.full((rows, 1), items)], axis=1)
    lengths: Array = np.diff(edges)
    return lengths
