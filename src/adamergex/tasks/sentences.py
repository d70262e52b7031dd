"""Reference tasks of sentence encoders: contrast of noisy views, and alignment with the vectors of a parallel text.

Both use the mean-pooled vector v of a text (``pooling.text_vectors``), which such encoders are trained to produce; no
masked-LM head is needed.

Contrast (SimCSE, Gao et al. 2021, arXiv 2104.08821, Eq 1, with the deletion noise of TSDAE, Wang et al. 2021, arXiv
2104.06979, in one of the views: dropout alone gives a contrastively trained encoder nothing to learn):

    loss = −1/n Σ_i log( exp(cos(v_i, u_i)/τ) / Σ_j exp(cos(v_i, u_j)/τ) ),   u = vectors of the noisy views

Alignment (Reimers and Gurevych 2020, arXiv 2004.09813, Eq 1; the contrastive part is ours): the vectors of a language's
texts are trained towards the *frozen* base's vectors of their translations in the pivot language. With t_i the base's
vector of the translation, μ and σ its mean and deviation over the data, z(v) = (v − μ)/σ:

    loss = mean (z(v_i) − z(t_i))²  +  ½ [ InfoNCE(z(v), z(t)) + InfoNCE(z(t), z(v)) ]

In the pivot language, texts and translations are identical, so its reference adapter hardly changes, and the divergence
of the two languages is what the other language had to learn.
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
from adamergex.tasks.classification import padded
from adamergex.tasks.sequences import encode_texts

if TYPE_CHECKING:
    from adamergex.backbones.loading import Loaded
    from adamergex.jobs.settings import SentenceAlignment, SentenceContrast

LEAST = 2
"""Texts that a contrast needs: one positive, one negative."""


@dataclass(frozen=True)
class Contrast:
    """Texts of one language as token ids; ``before`` and ``after``: the number of special tokens on each side."""

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
        """True: each text is contrasted with the others in its batch."""
        return True

    @property
    def lengths(self) -> Sequence[int]:
        return [2 * len(ids) for ids in self.ids]

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Both views. The deletions depend only on (seed, step): new in every epoch, the same after a resume."""
        chosen = [self.ids[index] for index in indices]
        generator = np.random.default_rng([self.seed % 2**32, step])
        noisy = padded([self._noisy(ids, generator) for ids in chosen], self.pad)
        return {**padded(chosen, self.pad), "noisy_ids": noisy["input_ids"], "noisy_mask": noisy["attention_mask"]}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean InfoNCE (nats) between the two views of each text, with the other texts of the batch as negatives."""
        clean = text_vectors(model, batch["input_ids"], batch["attention_mask"])
        noisy = text_vectors(model, batch["noisy_ids"], batch["noisy_mask"])
        return info_nce(clean, noisy, self.temperature)

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """Number of texts that the loss averages over."""
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
        """True: each text is contrasted with the others in its batch."""
        return True

    @property
    def lengths(self) -> Sequence[int]:
        return [len(ids) for ids in self.ids]

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Texts padded to the longest of the batch, and their target vectors."""
        return {**padded([self.ids[index] for index in indices], self.pad), "targets": self.targets[list(indices)]}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Squared distance in units of the targets' standard deviation, plus InfoNCE in both directions (nats)."""
        center, spread = self.targets.mean(0), self.targets.std(0, correction=0).clamp(min=1e-6)
        center, spread = center.to(batch["targets"].device), spread.to(batch["targets"].device)
        targets = (batch["targets"] - center) / spread
        vectors = (text_vectors(model, batch["input_ids"], batch["attention_mask"]) - center) / spread
        both = info_nce(vectors, targets, self.temperature) + info_nce(targets, vectors, self.temperature)
        return (vectors - targets).pow(2).mean() + both / 2

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """Number of texts that the loss averages over."""
        return len(batch["input_ids"])


def info_nce(vectors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """−1/n Σ_i log softmax_i(cos(vectors_i, others_·)/τ) (nats) in the vectors' dtype; both [n, width]."""
    with torch.autocast(vectors.device.type, enabled=False):  # bfloat16 rounds a cosine by more than τ tolerates
        scores = functional.normalize(vectors, dim=1) @ functional.normalize(others, dim=1).T / temperature
    return functional.cross_entropy(scores, torch.arange(len(vectors), device=scores.device))


def contrast(
    texts: Sequence[str], loaded: Loaded, task: SentenceContrast, *, seed: int, longest: int, where: object
) -> Contrast:
    """Examples that contrast texts with their noisy views. Raises: DataError for fewer than two texts."""
    _require_several(texts, where)
    ids, truncated = encode_texts(texts, loaded.tokenizer, min(task.max_length, longest))
    before, after = frame(loaded.tokenizer)
    pad = int(loaded.tokenizer.pad_token_id)
    return Contrast(ids, len(before), len(after), task.noise, task.temperature, pad, seed, truncated)


def alignment(
    texts: Sequence[str], pivots: Sequence[str], loaded: Loaded, task: SentenceAlignment, *, longest: int, where: object
) -> Alignment:
    """Texts, and their translations' vectors under the model as it is now: call this before attaching an adapter.

    Raises: DataError for fewer than two texts.
    """
    _require_several(texts, where)
    limit, pad = min(task.max_length, longest), int(loaded.tokenizer.pad_token_id)
    ids, truncated = encode_texts(texts, loaded.tokenizer, limit)
    translated, _ = encode_texts(pivots, loaded.tokenizer, limit)
    if next(loaded.model.parameters()).is_meta:  # the shapes alone are needed before training starts
        targets = torch.zeros(len(ids), loaded.model.config.hidden_size)
    else:
        targets = all_text_vectors(loaded.model, translated, pad).float()
    return Alignment(ids, targets, task.temperature, pad, truncated)


def _require_several(texts: Sequence[str], where: object) -> None:
    if len(texts) < LEAST:
        raise DataError(
            "there is too little text",
            where=where,
            found=f"{len(texts)} text",
            expected=f"{LEAST} or more",
            fix="give more text",
        )
