"""Encoders with a head: a label for a text or a pair of texts (sequence head), or the best choice (multiple-choice)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adamergex.data.values import Row
from adamergex.jobs.settings import Classification, MultipleChoice, PairClassification
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.answering.scoring import Scores
from adamergex.tasks.answering.templates import filled
from adamergex.tasks.labels import label_indices
from adamergex.tasks.sequences import Sequences, encode_texts, on_device, pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChoiceExamples:
    """``choices`` consecutive sequences per item (1 for a head that scores labels), and the label of each item."""

    sequences: Sequences
    labels: list[int]
    choices: int
    truncated: int

    @property
    def lengths(self) -> Sequence[int]:
        """Padded tokens per item: the length of its longest sequence times the number of choices."""
        lengths, width = self.sequences.lengths, self.choices
        return [width * max(lengths[start : start + width]) for start in range(0, len(lengths), width)]

    def inputs(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs [items, length], or [items, choices, length]."""
        width = self.choices
        batch = self.sequences.inputs([index * width + choice for index in indices for choice in range(width)])
        return batch if width == 1 else {name: ids.view(len(indices), width, -1) for name, ids in batch.items()}

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Inputs padded to the longest sequence of the batch, and labels."""
        return {**self.inputs(indices), "labels": torch.tensor([self.labels[index] for index in indices])}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the items (nats)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return functional.cross_entropy(model(**inputs).logits.float(), batch["labels"])

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """Number of items that the loss averages over."""
        return len(batch["labels"])


def text_examples(
    task: Classification, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, longest: int, where: object
) -> ChoiceExamples:
    """Labelled texts for a sequence head; a text over ``task.max_length`` tokens is cut at its end.

    Raises: DataError for a label that the task does not have.
    """
    labels = label_indices(rows, task, where)
    ids, truncated = encode_texts([str(row["text"]) for row in rows], tokenizer, min(task.max_length, longest))
    return ChoiceExamples(Sequences(ids, None, int(tokenizer.pad_token_id)), labels, 1, truncated)


def pair_examples(
    task: PairClassification, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, longest: int, where: object
) -> ChoiceExamples:
    """Pairs of premise and hypothesis; only the premise is cut. Raises: DataError for a label that the task lacks."""
    labels = label_indices(rows, task, where)
    premises, hypotheses = ([str(row[name]) for row in rows] for name in ("premise", "hypothesis"))
    sequences, truncated = pairs(premises, hypotheses, tokenizer, min(task.max_length, longest))
    return ChoiceExamples(sequences, labels, 1, truncated)


def choice_examples(
    task: MultipleChoice, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, longest: int, where: object
) -> ChoiceExamples:
    """One pair of context and choice per choice; only the context is cut."""
    contexts = [filled(task.context, row) for row in rows for _ in task.choices]
    choices = [str(row[name]) for row in rows for name in task.choices]
    sequences, truncated = pairs(contexts, choices, tokenizer, min(task.max_length, longest))
    return ChoiceExamples(sequences, [int(str(row["label"])) for row in rows], len(task.choices), truncated)


@torch.inference_mode()
def choice_head_scores(model: nn.Module, examples: ChoiceExamples, batch_tokens: int) -> Scores:
    """log p(label or choice | inputs) [items, labels or choices]."""
    scores: dict[int, Scores] = {}
    for indices in by_length(examples.lengths, batch_tokens):
        logits = model(**on_device(model, examples.inputs(indices))).logits
        scores.update(zip(indices, logits.float().log_softmax(-1).double().cpu().numpy(), strict=True))
    return np.stack([scores[index] for index in range(len(examples.labels))])
