"""What a plan costs before it runs: tokens, FLOPs and hours, step by step, from the jobs alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from adamergex.config.study import Assumed
from adamergex.errors import AdamergexError, DataError
from adamergex.graph.steps import Step, Store
from adamergex.jobs.merge import TuneJob
from adamergex.jobs.settings import (
    AnyRows,
    EvaluateJob,
    LanguageModeling,
    Optimisation,
    Sparse,
    Task,
    TrainJob,
    first_phase,
)
from adamergex.structures import kind_named
from adamergex.tables.devices import DEVICES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 200  # rows that are tokenized to know the mean
_TASK: TypeAdapter[Task] = TypeAdapter(Task)
_ROWS: TypeAdapter[AnyRows] = TypeAdapter(AnyRows)


@dataclass
class Cost:
    """Of steps of one kind. ``tokens`` and ``flops`` are of the missing ones."""

    steps: int = 0
    present: int = 0
    tokens: float = 0.0
    flops: float = 0.0


@dataclass
class Estimate:
    """By kind of step, and what was assumed."""

    kinds: dict[str, Cost] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    training_flops_per_token: float = 0.0  # of the missing trainings, on average

    @property
    def tokens(self) -> float:
        return sum(cost.tokens for cost in self.kinds.values())

    @property
    def flops(self) -> float:
        return sum(cost.flops for cost in self.kinds.values())

    def hours(self, flops_per_second: float) -> float:
        return self.flops / flops_per_second / 3600

    def speed(self, device: str, tokens_per_second: float | None) -> float:
        """FLOP/s of a named device; with measured tokens a second of training, what they amount to."""
        if tokens_per_second is not None and self.training_flops_per_token:
            return tokens_per_second * self.training_flops_per_token
        return DEVICES[device].flops


def estimate(steps: Iterable[Step], store: Store, assumed: Assumed) -> Estimate:
    """Costs of the steps that the store lacks.

    With N parameters outside the embeddings, a token costs 2·N FLOPs forward (every weight: one multiplication and one
    addition), 2·N for the gradients of activations and 2·N for those of weights (Kaplan et al. 2020, 2001.08361, §2.1):
    6·N to train everything; 4·N to train adapters, whose base needs no gradients of its weights; 2·N to evaluate, for
    each λ of a search. Not counted: attention over the context, the output layer over the vocabulary, the adapters
    themselves, free answers (as many tokens again as the prompt at the most).
    """
    result, facts = Estimate(), _Facts(assumed)
    trained = 0.0
    for step in steps:
        cost = result.kinds.setdefault(step.kind, Cost())
        cost.steps += 1
        if store.has(step):
            cost.present += 1
            continue
        tokens, flops = _work(step, facts)
        cost.tokens += tokens
        cost.flops += flops
        if isinstance(step.job, TrainJob):
            trained += tokens
    if trained:
        training = sum(cost.flops for kind, cost in result.kinds.items() if kind not in ("evaluate", "tune", "merge"))
        result.training_flops_per_token = training / trained
    result.notes = facts.notes
    return result


def flops_factor(job: TrainJob | EvaluateJob) -> int:
    """FLOPs a token and parameter of a job: 6 to train everything, 4 to train an adapter, 2 to evaluate."""
    if isinstance(job, EvaluateJob):
        return 2
    return 4 if kind_named(job.structure.kind).adapter else 6


def _work(step: Step, facts: _Facts) -> tuple[float, float]:
    """Tokens of a step, and its FLOPs; a merge has none."""
    job, times = step.job, 1.0
    if isinstance(job, TuneJob):  # a search of λ: one evaluation for each of the grid
        times = len(job.grid)
        if job.granularity == "layer":  # then a descent, whose steps go forward and back
            from adamergex.search.entropy import STEPS

            times += 2 * (STEPS + 1)
        job = job.evaluate
    if not isinstance(job, TrainJob | EvaluateJob):
        return 0.0, 0.0
    factor = flops_factor(job)
    if isinstance(job, TrainJob):
        times = sum(_epochs(phase, facts.examples(job)) for phase in _phases(job))
        if job.optimisation.head_start == "probe":  # reads all rows once, forward only
            times += 2 / factor
    tokens = facts.tokens(job) * times
    return tokens, tokens * factor * facts.parameters(job.base) if tokens else 0.0


def _phases(job: TrainJob) -> list[Optimisation]:
    """How each phase of a training goes: a sparse fine-tuning has one before the last, which chooses."""
    first = [first_phase(job.structure, job.optimisation)] if isinstance(job.structure, Sparse) else []
    return [*first, job.optimisation]


def _epochs(optimisation: Optimisation, examples: float) -> float:
    if optimisation.steps:
        return optimisation.steps * optimisation.batch_size / max(examples, 1.0)
    return optimisation.epochs


class _Facts:
    """Parameters, rows and lengths: looked up once each, assumed where they are not on this machine."""

    def __init__(self, assumed: Assumed) -> None:
        self.assumed = assumed
        self.noted: Counter[str] = Counter()
        self.parameters = lru_cache(maxsize=None)(self._parameters)
        self._measured = lru_cache(maxsize=None)(self._measure)
        self._tokenizer = lru_cache(maxsize=2)(_tokenizer)  # seconds for a large vocabulary

    @property
    def notes(self) -> list[str]:
        return list(self.noted)

    def tokens(self, job: TrainJob | EvaluateJob) -> float:
        """Of all examples of a job, once."""
        if isinstance(job.task, LanguageModeling):
            return self._segments(job, job.task) * float(job.task.segment)
        rows, pieces = self._of_rows(job)
        return rows * min(pieces, float(getattr(job.task, "max_length", math.inf)))

    def examples(self, job: TrainJob | EvaluateJob) -> float:
        return self._segments(job, job.task) if isinstance(job.task, LanguageModeling) else self._of_rows(job)[0]

    def _segments(self, job: TrainJob | EvaluateJob, task: LanguageModeling) -> float:
        """Of raw text: as many as the settings say, or as the text has."""
        if task.segments:
            return float(task.segments)
        if self._found(job) is None:
            self.noted[f"segments of a language's text, which is not here: {self.assumed.segments}"] += 1
            return float(self.assumed.segments)
        rows, pieces = self._of_rows(job)
        return rows * pieces / task.segment

    def _of_rows(self, job: TrainJob | EvaluateJob) -> tuple[float, float]:
        found = self._found(job)
        if found is None:
            self.noted[f"rows that are not here: {self.assumed.rows} to train, {self.assumed.test_rows} to test"] += 1
        count, pieces = found or (None, None)
        if pieces is None:
            self.noted[f"pieces of a row: {self.assumed.tokens}"] += 1
        if count is None:
            assumed = self.assumed.rows if isinstance(job, TrainJob) else self.assumed.test_rows
            count = float(min(assumed, job.rows.limit or assumed, job.rows.sample or assumed))
        return count, pieces or float(self.assumed.tokens)

    def _found(self, job: TrainJob | EvaluateJob) -> tuple[float, float | None] | None:
        return self._measured(job.task.model_dump_json(), job.rows.model_dump_json(), job.language, job.base)

    def _measure(self, task: str, rows: str, language: str, base: str) -> tuple[float, float | None] | None:
        """Number of rows, and the mean pieces of their texts: of the first ones, every text of a row counted."""
        from adamergex.tasks.rows import read

        kind, place = _TASK.validate_json(task), _ROWS.validate_json(rows)
        try:
            try:
                found = read(kind, place, language)
            except DataError:  # perhaps the inputs of a search without labels
                found = read(kind, place, language, labelled=False)
        except AdamergexError:
            return None
        tokenizer = self._tokenizer(base)
        if tokenizer is None:
            return float(len(found)), None
        counts = [len(ids) for ids in tokenizer([_text(row) for row in found[:SAMPLE]])["input_ids"]]
        return float(len(found)), sum(counts) / len(counts)

    def _parameters(self, base: str) -> float:
        if self.assumed.parameters is not None:
            self.noted[f"parameters without embeddings: {self.assumed.parameters:.3g}"] += 1
            return float(self.assumed.parameters)
        try:
            return parameters(base)
        except AdamergexError:
            self.noted[f"parameters of {base}: unknown, no FLOPs counted; set assumed.parameters"] += 1
            return 0.0


def _tokenizer(base: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base, where it is on this machine."""
    from adamergex.backbones.loading import tokenizer

    try:
        return tokenizer(base)
    except AdamergexError:
        return None


def _text(row: Mapping[str, object]) -> str:
    """Every text of a row, tokens and several answers too."""
    values = [value for name, value in row.items() if name not in ("id", "language", "tags")]
    lists = [value if isinstance(value, list) else [value] for value in values]
    return " ".join(item for items in lists for item in items if isinstance(item, str))


def parameters(base: str) -> float:
    """N: the parameters of a backbone without its embedding tables, from its configuration alone.

    Raises: ModelError when the configuration is not on this machine.
    """
    import torch
    from transformers import AutoModel

    from adamergex.backbones.loading import skeleton

    model: torch.nn.Module = skeleton(base, AutoModel)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return float(sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings))
