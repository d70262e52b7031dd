"""What a plan costs before it runs: tokens, FLOPs and hours, step by step, from the jobs alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from adamergex.config.study import Assumed
from adamergex.errors import AdamergexError, DataError
from adamergex.graph.steps import Step, Store
from adamergex.jobs.settings import AnyRows, Optimisation, Sparse, Structure, Task, first_phase
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
        tokens, factor = _work(step, facts)
        job = step.job.get("evaluate", step.job)
        flops = tokens * factor * facts.parameters(str(job["base"])) if tokens else 0.0
        cost.tokens += tokens
        cost.flops += flops
        if factor > 2:
            trained += tokens
    if trained:
        training = sum(cost.flops for kind, cost in result.kinds.items() if kind not in ("evaluate", "tune", "merge"))
        result.training_flops_per_token = training / trained
    result.notes = facts.notes
    return result


def flops_factor(job: Mapping[str, Any]) -> int:
    """FLOPs a token and parameter of a job: 6 to train everything, 4 to train an adapter, 2 to evaluate."""
    if "optimisation" not in job:
        return 2
    return 4 if kind_named((job.get("structure") or {}).get("kind", "full")).adapter else 6


def _work(step: Step, facts: _Facts) -> tuple[float, int]:
    """Tokens of a step, and FLOPs a token and parameter; a merge has none."""
    if "evaluate" in step.job:  # a search of λ: one evaluation for each of the grid
        job = step.job["evaluate"]
        times = len(step.job.get("grid", [0]))
        if step.job.get("granularity") == "layer":  # then a descent, whose steps go forward and back
            from adamergex.search.entropy import STEPS

            times += 2 * (STEPS + 1)
        return facts.tokens(job, training=False) * times, 2
    if "rows" not in step.job or "base" not in step.job:
        return 0.0, 0
    training = "optimisation" in step.job
    tokens = facts.tokens(step.job, training=training)
    if training:
        epochs = sum(_epochs(phase, facts.examples(step.job, training=True)) for phase in _phases(step.job))
        if step.job["optimisation"].get("head_start") == "probe":  # reads all rows once, forward only
            epochs += 2 / flops_factor(step.job)
        tokens *= epochs
    return tokens, flops_factor(step.job)


def _phases(job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How each phase of a training goes: a sparse fine-tuning has one before the last, which chooses."""
    last = job["optimisation"]
    structure = Structure.model_validate(job["structure"]) if job.get("structure") else None
    if not isinstance(structure, Sparse):
        return [last]
    return [first_phase(structure, Optimisation.model_validate(last)).model_dump(), last]


def _epochs(optimisation: Mapping[str, Any], examples: float) -> float:
    if optimisation.get("steps"):
        return float(optimisation["steps"] * optimisation["batch_size"] / max(examples, 1.0))
    return float(optimisation["epochs"])


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

    def tokens(self, job: Mapping[str, Any], *, training: bool) -> float:
        """Of all examples of a job, once."""
        task = job.get("task") or {}
        if "segment" in task:
            return self._segments(job) * float(task["segment"])
        rows, pieces = self._of_rows(job, training=training)
        return rows * min(pieces, float(task.get("max_length") or math.inf))

    def examples(self, job: Mapping[str, Any], *, training: bool) -> float:
        if "segment" in (job.get("task") or {}):
            return self._segments(job)
        return self._of_rows(job, training=training)[0]

    def _segments(self, job: Mapping[str, Any]) -> float:
        """Of raw text: as many as the settings say, or as the text has."""
        task = job["task"]
        if task.get("segments"):
            return float(task["segments"])
        if self._found(job) is None:
            self.noted[f"segments of a language's text, which is not here: {self.assumed.segments}"] += 1
            return float(self.assumed.segments)
        rows, pieces = self._of_rows(job, training=True)
        return rows * pieces / float(task["segment"])

    def _of_rows(self, job: Mapping[str, Any], *, training: bool) -> tuple[float, float]:
        found = self._found(job)
        if found is None:
            self.noted[f"rows that are not here: {self.assumed.rows} to train, {self.assumed.test_rows} to test"] += 1
        count, pieces = found or (None, None)
        if pieces is None:
            self.noted[f"pieces of a row: {self.assumed.tokens}"] += 1
        if count is None:
            assumed = self.assumed.rows if training else self.assumed.test_rows
            kept = (job["rows"].get(name) or assumed for name in ("limit", "sample"))
            count = float(min(assumed, *kept))
        return count, pieces or float(self.assumed.tokens)

    def _found(self, job: Mapping[str, Any]) -> tuple[float, float | None] | None:
        task, rows = (json.dumps(job[name], sort_keys=True) for name in ("task", "rows"))
        return self._measured(task, rows, str(job["language"]), str(job["base"]))

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
        tokenizer: Any = self._tokenizer(base)
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


def _text(row: Mapping[str, Any]) -> str:
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
