"""Cost estimates of a plan before it runs: tokens, FLOPs and hours, step by step, from the jobs alone."""

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

SAMPLE = 200  # rows tokenised to estimate the mean length
_TASK: TypeAdapter[Task] = TypeAdapter(Task)
_ROWS: TypeAdapter[AnyRows] = TypeAdapter(AnyRows)


@dataclass
class Cost:
    """The cost of the steps of one kind. ``tokens`` and ``flops`` count the missing steps only."""

    steps: int = 0
    present: int = 0
    tokens: float = 0.0
    flops: float = 0.0


@dataclass
class Estimate:
    """Costs by kind of step, and the assumptions."""

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
        """FLOP/s of a named device, or those implied by measured training tokens per second."""
        if tokens_per_second is not None and self.training_flops_per_token:
            return tokens_per_second * self.training_flops_per_token
        return DEVICES[device].flops


def estimate(steps: Iterable[Step], store: Store, assumed: Assumed) -> Estimate:
    """Costs of the steps that the store lacks.

    With N parameters outside the embeddings, a token costs 2·N FLOPs forward (every weight: one multiplication and one
    addition), 2·N for the gradients of activations and 2·N for those of weights (Kaplan et al. 2020, 2001.08361, §2.1):
    6·N to train all parameters; 4·N to train adapters, since the base needs no weight gradients; 2·N to evaluate, for
    each λ of a search. Not counted: attention over the context, the output layer over the vocabulary, the adapters
    themselves, generated answers (at most as many tokens as the prompt).
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
    """FLOPs per token and parameter of a job: 6 to train all parameters, 4 to train an adapter, 2 to evaluate."""
    if isinstance(job, EvaluateJob):
        return 2
    return 4 if kind_named(job.structure.kind).adapter else 6


def _work(step: Step, facts: _Facts) -> tuple[float, float]:
    """Tokens and FLOPs of a step; a merge has none."""
    job, times = step.job, 1.0
    if isinstance(job, TuneJob):  # a search for λ: one evaluation per value of the grid
        times = len(job.grid)
        if job.granularity == "layer":  # then gradient descent: forward and backward passes
            from adamergex.search.entropy import STEPS

            times += 2 * (STEPS + 1)
        job = job.evaluate
    if not isinstance(job, TrainJob | EvaluateJob):
        return 0.0, 0.0
    factor = flops_factor(job)
    if isinstance(job, TrainJob):
        times = sum(_epochs(phase, facts.examples(job)) for phase in _phases(job))
        if job.optimisation.head_start == "probe":  # one forward pass over all rows
            times += 2 / factor
    tokens = facts.tokens(job) * times
    return tokens, tokens * factor * facts.parameters(job.base) if tokens else 0.0


def _phases(job: TrainJob) -> list[Optimisation]:
    """The phases of a training: sparse fine-tuning has a first phase that selects the parameters."""
    first = [first_phase(job.structure, job.optimisation)] if isinstance(job.structure, Sparse) else []
    return [*first, job.optimisation]


def _epochs(optimisation: Optimisation, examples: float) -> float:
    if optimisation.steps:
        return optimisation.steps * optimisation.batch_size / max(examples, 1.0)
    return optimisation.epochs


class _Facts:
    """Parameters, rows and lengths: each looked up once, or assumed if it is not on this machine."""

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
        """Tokens of all examples of a job, for one epoch."""
        if isinstance(job.task, LanguageModeling):
            return self._segments(job, job.task) * float(job.task.segment)
        rows, length = self._rows_and_length(job)
        return rows * min(length, float(getattr(job.task, "max_length", math.inf)))

    def examples(self, job: TrainJob | EvaluateJob) -> float:
        if isinstance(job.task, LanguageModeling):
            return self._segments(job, job.task)
        return self._rows_and_length(job)[0]

    def _segments(self, job: TrainJob | EvaluateJob, task: LanguageModeling) -> float:
        """Segments of raw text: the number in the settings, or all that the text has."""
        if task.segments:
            return float(task.segments)
        if self._measured_rows(job) is None:
            self.noted[f"segments of a language's text, which is not here: {self.assumed.segments}"] += 1
            return float(self.assumed.segments)
        rows, length = self._rows_and_length(job)
        return rows * length / task.segment

    def _rows_and_length(self, job: TrainJob | EvaluateJob) -> tuple[float, float]:
        measured = self._measured_rows(job)
        if measured is None:
            self.noted[f"rows that are not here: {self.assumed.rows} to train, {self.assumed.test_rows} to test"] += 1
        count, length = measured or (None, None)
        if length is None:
            self.noted[f"tokens of a row: {self.assumed.tokens}"] += 1
        if count is None:
            assumed = self.assumed.rows if isinstance(job, TrainJob) else self.assumed.test_rows
            count = float(min(assumed, job.rows.limit or assumed, job.rows.sample or assumed))
        return count, length or float(self.assumed.tokens)

    def _measured_rows(self, job: TrainJob | EvaluateJob) -> tuple[float, float | None] | None:
        return self._measured(job.task.model_dump_json(), job.rows.model_dump_json(), job.language, job.base)

    def _measure(self, task: str, rows: str, language: str, base: str) -> tuple[float, float | None] | None:
        """Number of rows, and their mean number of tokens over the first rows, counting every text of a row."""
        from adamergex.tasks.rows import read

        job_task, source = _TASK.validate_json(task), _ROWS.validate_json(rows)
        try:
            try:
                read_rows = read(job_task, source, language)
            except DataError:  # perhaps the unlabelled inputs of a search
                read_rows = read(job_task, source, language, labelled=False)
        except AdamergexError:
            return None
        tokenizer = self._tokenizer(base)
        if tokenizer is None:
            return float(len(read_rows)), None
        counts = [len(ids) for ids in tokenizer([_text(row) for row in read_rows[:SAMPLE]])["input_ids"]]
        return float(len(read_rows)), sum(counts) / len(counts)

    def _parameters(self, base: str) -> float:
        if self.assumed.parameters is not None:
            self.noted[f"parameters without embeddings: {self.assumed.parameters:.3g}"] += 1
            return float(self.assumed.parameters)
        try:
            return backbone_parameters(base)
        except AdamergexError:
            self.noted[f"parameters of {base}: unknown, no FLOPs counted; set assumed.parameters"] += 1
            return 0.0


def _tokenizer(base: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base, or None if it is not on this machine."""
    from adamergex.backbones.loading import tokenizer

    try:
        return tokenizer(base)
    except AdamergexError:
        return None


def _text(row: Mapping[str, object]) -> str:
    """All texts of a row, including lists of tokens or answers."""
    values = [value for name, value in row.items() if name not in ("id", "language", "tags")]
    lists = [value if isinstance(value, list) else [value] for value in values]
    return " ".join(item for items in lists for item in items if isinstance(item, str))


def backbone_parameters(base: str) -> float:
    """N: the number of parameters of a backbone without its embeddings, from its configuration alone.

    Raises: ModelError: the configuration is not on this machine.
    """
    import torch
    from transformers import AutoModel

    from adamergex.backbones.loading import skeleton

    model: torch.nn.Module = skeleton(base, AutoModel)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return float(sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings))
