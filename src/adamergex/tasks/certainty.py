"""Differentiable entropies of a model's predictions for unlabelled inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamergex.adapters.peft_backed import virtual_tokens
from adamergex.backbones.loading import Loaded
from adamergex.backbones.logits import IGNORE, logits_at
from adamergex.data.values import Row
from adamergex.jobs.settings import Target
from adamergex.tasks import Examples
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.classification import AnswerExamples
from adamergex.tasks.kinds import kind_of
from adamergex.tasks.running import train_examples
from adamergex.tasks.sequences import on_device


class Unlabelled:
    """Unlabelled inputs of a task for one model. Gold labels of the rows are overwritten before they are used.

    Heads: p is the softmax over the classes (taggers: at every word; a sentence's entropy is the mean over its words).
    Generative models: p(label) ∝ p(the label's words, end | prompt), which training maximises.
    """

    def __init__(self, task: Target, rows: Sequence[Row], loaded: Loaded, model: nn.Module, where: object) -> None:
        kind = kind_of(task)
        options = kind.options
        assert options is not None  # checked with the settings
        self.classes = options.count(task)
        self.per_token = options.per_token
        self.examples: list[Examples] = [
            train_examples(
                task,
                [options.chosen(task, row, index) for row in rows],
                loaded,
                where=where,
                taken=virtual_tokens(model),
            )
            for index in range(1 if loaded.kind == kind.head else self.classes)
        ]

    def __len__(self) -> int:
        return len(self.examples[0].lengths)

    def entropies(self, model: nn.Module, batch_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of input indices with the entropies H = −Σ p log p (nats) of their predictions."""
        lengths = [max(of_input) for of_input in zip(*(examples.lengths for examples in self.examples), strict=True)]
        for indices in by_length(lengths, batch_tokens):
            batches = [on_device(model, examples.batch(indices, 0)) for examples in self.examples]
            if len(batches) > 1:
                answers = zip(self.examples, batches, strict=True)
                logits = torch.stack([_answer_log_p(model, examples, batch) for examples, batch in answers], dim=-1)
            else:
                logits = model(**{name: tensor for name, tensor in batches[0].items() if name != "labels"}).logits
            log_p = logits.float().log_softmax(-1)
            entropies = -(log_p.exp() * log_p).sum(-1)
            if self.per_token:
                mask = batches[0]["labels"] != IGNORE
                entropies = (entropies * mask).sum(-1) / mask.sum(-1).clamp(min=1)
            yield list(indices), entropies

    @property
    def most(self) -> float:
        """The entropy of a uniform prediction (nats)."""
        return math.log(self.classes)


def _answer_log_p(model: nn.Module, examples: Examples, batch: Mapping[str, Tensor]) -> Tensor:
    """log p(answer, end | prompt) [inputs], summed over the answer's tokens."""
    labels = batch["labels"]
    if isinstance(examples, AnswerExamples):
        targets = labels
        wanted = targets != IGNORE
        wanted[:, : examples.opening] = False
    else:
        targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
        wanted = targets != IGNORE
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    log_p = logits_at(model, inputs, wanted, labels).float().log_softmax(-1)
    token_log_p = log_p.gather(1, targets[wanted][:, None])[:, 0]
    return torch.zeros(len(labels), device=log_p.device).index_add(0, wanted.nonzero()[:, 0], token_log_p)
