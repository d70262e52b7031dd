"""A step's batch in parts, one after the other: the memory of a part, the gradient of the whole.

A part's loss is a mean over its own n_p labelled positions. It is weighted by n_p / N, N = Σ n_p, so that the sum over
the parts is the mean over all N positions of the batch, and so are the accumulated gradients: equal to the undivided
step up to the order of sums (without dropout). A mean of the parts' means would weigh a position of a part with few
labels more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adamergex.backbones.logits import IGNORE, without_adapter
from adamergex.errors import ConfigError, ModelError
from adamergex.jobs.optimisation import Optimisation
from adamergex.jobs.settings import TrainJob
from adamergex.structures import kind_named
from adamergex.tasks import Examples

_FLAG = "gradient_checkpointing"
_ALONG_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "labels", "allowed")
"""Tensors of a batch that may have a column for each column of the inputs."""


def divides(optimisation: Optimisation) -> bool:
    """Whether batches are computed in parts."""
    return optimisation.accumulation > 1 or optimisation.batch_tokens is not None


def divided(lengths: Sequence[int], optimisation: Optimisation, processes: int = 1) -> list[slice]:
    """The rows of each part of a batch, in order: ``accumulation`` parts of nearly equal size, or as few as keep every
    process within ``batch_tokens`` (rows × longest row; a longer row is a part of its own)."""
    count, budget = len(lengths), optimisation.batch_tokens
    if budget is None:
        parts = min(optimisation.accumulation, count)
        ends = [count * (number + 1) // parts for number in range(parts)]
    else:
        ends, start, longest = [], 0, 0
        for row, length in enumerate(lengths):
            longest = max(longest, length)
            if row > start and -(-(row + 1 - start) // processes) * longest > budget:
                ends.append(row)
                start, longest = row, length
        ends.append(count)
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def rows_of(batch: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Some rows of a batch, without the columns that hold nothing but padding for all of them."""
    taken = {name: tensor[rows] for name, tensor in batch.items()}
    mask = taken.get("attention_mask")
    if mask is not None:
        along = [name for name in _ALONG_INPUTS if name in taken and taken[name].shape[1:] == mask.shape[1:]]
        used = mask.bool()
        if "labels" in along:  # of an encoder-decoder they may be longer than what is read
            used = used | (taken["labels"] != IGNORE)
        width = int(used.flatten(0, -2).any(0).nonzero().max()) + 1
        taken.update({name: taken[name][..., :width] for name in along})
    return {name: tensor.contiguous() for name, tensor in taken.items()}


def require_divisible(optimisation: Optimisation, examples: Examples) -> None:
    """Raises: ConfigError: the batches are to be divided, and their rows are compared with each other."""
    parts = "batch_tokens" if optimisation.batch_tokens is not None else "accumulation"
    if getattr(examples, "coupled", False) and divides(optimisation):
        raise ConfigError(
            "the batches of this task cannot be divided: its loss compares the rows of a batch with each other",
            where=f"optimisation.{parts}",
            found=getattr(optimisation, parts),
            expected="the whole batch at once",
            fix=f"leave {parts} out; checkpointing: on saves memory too",
        )


@contextmanager
def checkpointed(model: nn.Module, job: TrainJob) -> Iterator[None]:
    """While this is open the layers' activations are computed again in the backward pass, if the optimisation says so
    (Chen et al. 2016, 1604.06174); the model is given back as it was. auto: on CUDA, not of a prefix, which a layer
    that is computed again would not see.

    Raises: ModelError: the model's layers cannot be computed again.
    """
    alone = without_adapter(model)
    chosen, able = job.optimisation.checkpointing, alone.supports_gradient_checkpointing
    if chosen == "auto":
        chosen = "on" if able and torch.cuda.is_available() and not kind_named(job.structure.kind).whole else "off"
    if chosen == "on" and not able:
        raise ModelError(
            "the model's layers cannot be checkpointed",
            where="optimisation.checkpointing",
            found=type(alone).__name__,
            expected="a model that supports gradient checkpointing",
            fix="set checkpointing to off",
        )
    flags = [(module, module.gradient_checkpointing) for module in alone.modules() if hasattr(module, _FLAG)]
    try:
        if chosen == "on":
            enable = getattr(alone, "activation_checkpointing_enable", None) or alone.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        else:
            for module, _ in flags:
                module.gradient_checkpointing = False
        yield
    finally:
        for module, flag in flags:
            module.gradient_checkpointing = flag
