"""Reference tasks of sentence encoders: contrast of noisy views, and alignment with the vectors of a parallel text.

Both speak of the mean-pooled vector v of a text (``pooling.text_vectors``), which is what such an encoder was trained
for; a masked-LM head is not needed.

Contrast (SimCSE, Gao et al. 2021, arXiv 2104.08821, Eq 1, with the deletion noise of TSDAE, Wang et al. 2021, arXiv
2104.06979, for one of the views: dropout alone leaves an encoder that was trained contrastively nothing to learn):

    loss = −1/n Σ_i log( exp(cos(v_i, u_i)/τ) / Σ_j exp(cos(v_i, u_j)/τ) ),   u = vectors of the noisy views

Alignment (Reimers and Gurevych 2020, arXiv 2004.09813, Eq 1; the contrastive part is ours): the vectors of a language's
texts become those that the *untouched* base gives to their translations in the pivot language. With t_i the base's
vector of the translation, μ and σ its mean and deviation over the data, z(v) = (v − μ)/σ:

    loss = mean (z(v_i) − z(t_i))²  +  ½ [ InfoNCE(z(v), z(t)) + InfoNCE(z(t), z(v)) ]

In the pivot language itself texts and translations are the same, so the reference adapter there hardly moves, and the
divergence of the languages is what the other language had to learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adamergex.backbones.loading import frame
from adamergex.backbones.pooling import all_text_vectors, text_vectors
from adamergex.errors import DataError
from adamergex.tasks import pieces_of
from adamergex.tasks.classification import padded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.backbones.loading import Loaded
    from adamergex.jobs.settings import SentenceAlignment, SentenceContrast

LEAST = 2
"""Texts that a contrast needs: one to recognise, one to tell it from."""


@dataclass(frozen=True)
class Contrast:
    """Texts of one language as token ids, special ones included; ``before`` and ``after``: how many those are."""

    ids: list[list[int]]
    before: int
    after: int
    noise: float
    temperature: float
    pad: int
    seed: int
    truncated: int

    @property
    def coupled(self) -> bool:
        """Every text is told from the others of its batch."""
        return True

    @property
    def lengths(self) -> Sequence[int]:
        return [2 * len(ids) for ids in self.ids]

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Both views. The deletions depend on (seed, step) alone: new every epoch, the same after a resume."""
        chosen = [self.ids[index] for index in indices]
        generator = np.random.default_rng([self.seed % 2**32, step])
        noisy = padded([self._noisy(ids, generator) for ids in chosen], self.pad)
        return {**padded(chosen, self.pad), "noisy_ids": noisy["input_ids"], "noisy_mask": noisy["attention_mask"]}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean InfoNCE (nats) of the views of a text against those of the other texts of the batch."""
        clean = text_vectors(model, batch["input_ids"], batch["attention_mask"])
        noisy = text_vectors(model, batch["noisy_ids"], batch["noisy_mask"])
        return info_nce(clean, noisy, self.temperature)

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """How many texts the loss is a mean over."""
        return len(batch["input_ids"])

    def _noisy(self, ids: list[int], generator: np.random.Generator) -> list[int]:
        end = len(ids) - self.after
        body = np.asarray(ids[self.before : end])
        kept = generator.random(len(body)) >= self.noise
        if len(body) and not kept.any():
            kept[generator.integers(len(body))] = True
        return [*ids[: self.before], *body[kept].tolist(), *ids[end:]]


@dataclass(frozen=True)
class Alignment:
    """Texts of one language, and the base's vectors of their translations [texts, width]."""

    ids: list[list[int]]
    targets: Tensor
    temperature: float
    pad: int
    truncated: int

    @property
    def coupled(self) -> bool:
        """Every text is told from the others of its batch."""
        return True

    @property
    def lengths(self) -> Sequence[int]:
        return [len(ids) for ids in self.ids]

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Texts padded to the longest of the batch, and the vectors that they should have."""
        return {**padded([self.ids[index] for index in indices], self.pad), "targets": self.targets[list(indices)]}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Squared distance in units of the targets' deviation, plus InfoNCE in both directions (nats)."""
        center, spread = self.targets.mean(0), self.targets.std(0, correction=0).clamp(min=1e-6)
        center, spread = center.to(batch["targets"].device), spread.to(batch["targets"].device)
        targets = (batch["targets"] - center) / spread
        vectors = (text_vectors(model, batch["input_ids"], batch["attention_mask"]) - center) / spread
        both = info_nce(vectors, targets, self.temperature) + info_nce(targets, vectors, self.temperature)
        return (vectors - targets).pow(2).mean() + both / 2

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """How many texts the loss is a mean over."""
        return len(batch["input_ids"])


def info_nce(vectors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """−1/n Σ_i log softmax_i(cos(vectors_i, others_·)/τ), nats; both [n, width]. In the vectors' own precision."""
    with torch.autocast(vectors.device.type, enabled=False):  # bfloat16 would round a cosine by more than τ bears
        scores = functional.normalize(vectors, dim=1) @ functional.normalize(others, dim=1).T / temperature
    return functional.cross_entropy(scores, torch.arange(len(vectors), device=scores.device))


def contrast(
    texts: Sequence[str], loaded: Loaded, task: SentenceContrast, *, seed: int, longest: int, where: object
) -> Contrast:
    """Texts to recognise in their noisy views. Raises: DataError for fewer than two texts."""
    _require_several(texts, where)
    ids, truncated = _encoded(texts, loaded.tokenizer, min(task.max_length, longest))
    before, after = frame(loaded.tokenizer)
    pad = int(loaded.tokenizer.pad_token_id)
    return Contrast(ids, len(before), len(after), task.noise, task.temperature, pad, seed, truncated)


def alignment(
    texts: Sequence[str], pivots: Sequence[str], loaded: Loaded, task: SentenceAlignment, *, longest: int, where: object
) -> Alignment:
    """Texts and the vectors of their translations under the model as it is now: call it before an adapter is attached.

    Raises: DataError for fewer than two texts.
    """
    _require_several(texts, where)
    limit, pad = min(task.max_length, longest), int(loaded.tokenizer.pad_token_id)
    ids, truncated = _encoded(texts, loaded.tokenizer, limit)
    translated, _ = _encoded(pivots, loaded.tokenizer, limit)
    if next(loaded.model.parameters()).is_meta:  # only the shapes are asked for, before anything is trained
        targets = torch.zeros(len(ids), loaded.model.config.hidden_size)
    else:
        targets = all_text_vectors(loaded.model, translated, pad).float()
    return Alignment(ids, targets, task.temperature, pad, truncated)


def _encoded(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[list[int]], int]:
    before, after = frame(tokenizer)
    room = limit - len(before) - len(after)
    found = pieces_of(tokenizer, texts)
    return [before + ids[:room] + after for ids in found], sum(len(ids) > room for ids in found)


def _require_several(texts: Sequence[str], where: object) -> None:
    if len(texts) < LEAST:
        raise DataError(
            "there is too little text",
            where=where,
            found=f"{len(texts)} text",
            expected=f"{LEAST} or more",
            fix="give more text",
        )
