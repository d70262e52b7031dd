"""How certain a model is of its answers: entropies of the predictions for unlabelled inputs, differentiable."""

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
    """Inputs of a task as a model reads them; gold labels of the rows are overwritten before anything is made of them.

    Heads: p is the softmax over their classes (of taggers at every token, and the sentence's entropy is the mean over
    its tokens). Models that write: p(label) ∝ p(the label's words, end | prompt), the quantity that training raises.
    """

    def __init__(self, task: Target, rows: Sequence[Row], loaded: Loaded, model: nn.Module, where: object) -> None:
        kind = kind_of(task)
        options = kind.options
        assert options is not None  # the settings were checked for it
        self.classes = options.count(task)
        self.tokens = options.per_token
        self.made: list[Examples] = [
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
        return len(self.made[0].lengths)

    def entropies(self, model: nn.Module, batch_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
        """Places of inputs, and the entropies H = −Σ p log p (nats) of their predictions, batch by batch."""
        lengths = [max(found) for found in zip(*(examples.lengths for examples in self.made), strict=True)]
        for indices in by_length(lengths, batch_tokens):
            batches = [on_device(model, examples.batch(indices, 0)) for examples in self.made]
            if len(self.made) > 1:
                logits = torch.stack(
                    [_said_with(model, made, batch) for made, batch in zip(self.made, batches, strict=True)], dim=-1
                )
            else:
                logits = model(**{name: tensor for name, tensor in batches[0].items() if name != "labels"}).logits
            log_p = logits.float().log_softmax(-1)
            found = -(log_p.exp() * log_p).sum(-1)
            if self.tokens:
                real = batches[0]["labels"] != IGNORE
                found = (found * real).sum(-1) / real.sum(-1).clamp(min=1)
            yield list(indices), found

    @property
    def most(self) -> float:
        """The entropy of an even prediction (nats)."""
        return math.log(self.classes)


def _said_with(model: nn.Module, made: Examples, batch: Mapping[str, Tensor]) -> Tensor:
    """log p(answer, end | prompt) [inputs]: the sum over the pieces."""
    labels, after = batch["labels"], isinstance(made, AnswerExamples)
    targets = labels if after else functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    wanted = targets != IGNORE
    if isinstance(made, AnswerExamples):
        wanted[:, : made.opening] = False
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    log_p = logits_at(model, inputs, wanted, labels).float().log_softmax(-1)
    said = log_p.gather(1, targets[wanted][:, None])[:, 0]
    return torch.zeros(len(labels), device=said.device).index_add(0, wanted.nonzero()[:, 0], said)
