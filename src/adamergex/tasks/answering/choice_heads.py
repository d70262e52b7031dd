"""Encoders on two texts: a label for a pair (sequence head), or the best of several seconds (multiple-choice head)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adamergex.data.values import Row
from adamergex.jobs.settings import MultipleChoice, PairClassification
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.answering.scoring import Scores
from adamergex.tasks.answering.templates import filled
from adamergex.tasks.labels import label_indices
from adamergex.tasks.sequences import Sequences, on_device, pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChoiceExamples:
    """``choices`` sequences an item, one after the other (1: a head that scores labels itself), and its answer."""

    sequences: Sequences
    labels: list[int]
    choices: int
    truncated: int

    @property
    def lengths(self) -> Sequence[int]:
        """Padded pieces of an item: its longest sequence, as often as it has choices."""
        found, width = self.sequences.lengths, self.choices
        return [width * max(found[start : start + width]) for start in range(0, len(found), width)]

    def inputs(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """[items, length], or [items, choices, length]."""
        width = self.choices
        batch = self.sequences.inputs([index * width + choice for index in indices for choice in range(width)])
        return batch if width == 1 else {name: ids.view(len(indices), width, -1) for name, ids in batch.items()}

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Padded only to the longest sequence of the batch."""
        return {**self.inputs(indices), "labels": torch.tensor([self.labels[index] for index in indices])}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the items (nats)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return functional.cross_entropy(model(**inputs).logits.float(), batch["labels"])

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """How many items the loss is a mean over."""
        return len(batch["labels"])


def pair_examples(
    task: PairClassification, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, longest: int, where: object
) -> ChoiceExamples:
    """Premise and hypothesis as a pair; the premise is cut. Raises: DataError for a label that is not the task's."""
    labels = label_indices(rows, task, where)
    premises, hypotheses = ([str(row[name]) for row in rows] for name in ("premise", "hypothesis"))
    sequences, truncated = pairs(premises, hypotheses, tokenizer, min(task.max_length, longest))
    return ChoiceExamples(sequences, labels, 1, truncated)


def choice_examples(
    task: MultipleChoice, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, longest: int, where: object
) -> ChoiceExamples:
    """Context and choice as a pair, for every choice; the context is cut."""
    contexts = [filled(task.context, row) for row in rows for _ in task.choices]
    choices = [str(row[name]) for row in rows for name in task.choices]
    sequences, truncated = pairs(contexts, choices, tokenizer, min(task.max_length, longest))
    return ChoiceExamples(sequences, [int(str(row["label"])) for row in rows], len(task.choices), truncated)


@torch.inference_mode()
def choice_head_scores(model: nn.Module, examples: ChoiceExamples, batch_tokens: int) -> Scores:
    """log p(label, or choice) [items, labels or choices]."""
    found: dict[int, Scores] = {}
    for indices in by_length(examples.lengths, batch_tokens):
        logits = model(**on_device(model, examples.inputs(indices))).logits
        found.update(zip(indices, logits.float().log_softmax(-1).double().cpu().numpy(), strict=True))
    return np.stack([found[index] for index in range(len(examples.labels))])
