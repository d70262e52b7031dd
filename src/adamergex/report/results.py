"""What a transfer measured: the records of ``results.json``, read, checked and written.

All scores, differences and intervals are in percent (points); ``p`` is a probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adamergex.statistics.table import Checked
from adamergex.statistics.table import Pooled as Pooled
from adamergex.statistics.table import PooledComparison as PooledComparison

Interval = tuple[float, float]
BASELINE = "english_tuning"
"""The method that every other one is compared with: A[T,s] used in the target language as it is."""


MEASURES = {"accuracy": "Accuracy", "f1": "F1", "exact_match": "Exact match", "rougeL": "ROUGE-L"}


@dataclass(frozen=True)
class Method(Checked):
    """One row of the tables. ``space`` is the merging space of LoRA ("factors", "delta"), where there is one."""

    name: str
    label: str
    space: str | None = None
    about: str = ""
    oracle: bool = False
    """Its λ was chosen on the very test set: an upper bound, which is compared with nothing and never the best."""

    @property
    def title(self) -> str:
        """The label with the merging space, which a report always names."""
        return (
            self.label if self.oracle or not self.space or self.space in self.label else f"{self.label} ({self.space})"
        )


@dataclass(frozen=True)
class Comparison(Checked):
    """A paired comparison on the same items: this cell minus ``method``, its interval, and its p-value."""

    method: str
    difference: float
    interval: Interval
    p: float | None = None


@dataclass(frozen=True, kw_only=True)
class CellResult(Checked):
    """One method in one language with one seed: the results' metric, and in ``scores`` all that the task has.

    ``predictions`` and ``adapter`` (what answered, merged or trained) are paths from the report's folder.
    ``truncated``: inputs that were cut; ``unparsable``: answers that could not be read."""

    method: str
    language: str
    seed: int
    score: float
    scores: dict[str, float] = field(default_factory=dict)
    n: int
    interval: Interval
    truncated: int = 0
    unparsable: int = 0
    weight: float | None = None
    predictions: str | None = None
    adapter: str | None = None
    against: Comparison | None = None


@dataclass(frozen=True)
class Missing(Checked):
    """A cell that a run could not fill, and the step that is not done."""

    method: str
    language: str
    seed: int
    reason: str


@dataclass(frozen=True)
class CurvePoint(Checked):
    """The proxy language's validation score at one λ."""

    weight: float
    score: float
    interval: Interval


@dataclass(frozen=True)
class Tuning(Checked):
    """One search for λ: the curve over the grid and the λ that was taken (of one λ per layer, ``layers``, the mean).

    ``proxy`` is the language that it looked at; ``measure`` is what the curve holds, where it is not the metric:
    "entropy" in percent of the largest, which is minimised on unlabelled inputs of the target itself. Of several
    ``languages`` the curve holds means; ``error`` is the standard error at ``best``, the λ of the highest."""

    method: str
    proxy: str
    seed: int
    chosen: float
    curve: tuple[CurvePoint, ...]
    languages: tuple[str, ...] = ()
    best: float | None = None
    error: float | None = None
    measure: str | None = None
    layers: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Way(Checked):
    """A way of choosing λ: what it takes, and the test score there. ``own``: the table's."""

    way: str
    weight: float
    score: float
    own: bool = False


@dataclass(frozen=True)
class Weights(Checked):
    """All ways of choosing the λ of one cell, and the oracle, which looks at the cell's own test set."""

    method: str
    language: str
    seed: int
    oracle: Way
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Adapter(Checked):
    """One trained adapter and what it cost. ``reused``: the store already held it.

    ``name`` starts with "task" or "reference" where the adapter is merged; with several seeds it also holds "seed N",
    for the lineage picture."""

    name: str
    language: str
    task: str
    parameters: int
    bytes: int
    tokens: int
    seconds: float | None = None
    loss: float | None = None
    reused: bool = False
    path: str | None = None


@dataclass(frozen=True)
class ModuleChange(Checked):
    """What a merge did to one module: Frobenius norms of the task's part, the divergence and the change."""

    module: str
    task_norm: float
    divergence_norm: float
    change_norm: float


@dataclass(frozen=True)
class Merge(Checked):
    """One merged adapter, module by module."""

    method: str
    language: str
    seed: int
    weight: float
    modules: tuple[ModuleChange, ...]


@dataclass(frozen=True, kw_only=True)
class Results(Checked):
    """Everything a report shows; the content of ``results.json``.

    ``pooled`` and ``comparisons`` hold what follows from the single items; results of older versions lack them.
    ``papers``: the papers' numbers that stand beside these: column -> its values; empty: all that fit."""

    title: str
    base: str
    task: str
    metric: str = "accuracy"
    structure: str
    source: str
    proxy: str | None = None
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    cells: tuple[CellResult, ...]
    pooled: tuple[Pooled, ...] = ()
    comparisons: tuple[PooledComparison, ...] = ()
    weights: tuple[Weights, ...] = ()
    tuning: tuple[Tuning, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    merges: tuple[Merge, ...] = ()
    missing: tuple[Missing, ...] = ()
    environment: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    papers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def measure(self) -> str:
        """The metric as tables name it: "Accuracy", "F1", …"""
        return MEASURES.get(self.metric, self.metric)

    def method(self, name: str) -> Method | None:
        """The method of this name, or None."""
        return next((method for method in self.methods if method.name == name), None)
