"""The records of ``results.json``: everything that a transfer measured.

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
"""The method that all others are compared with: A[T,s] applied unchanged in the target language."""


MEASURES = {"accuracy": "Accuracy", "f1": "F1", "exact_match": "Exact match", "rougeL": "ROUGE-L"}


@dataclass(frozen=True)
class Method(Checked):
    """One row of the tables. ``space``: the merging space of LoRA ("factors", "delta"), if any."""

    name: str
    label: str
    space: str | None = None
    about: str = ""
    oracle: bool = False
    """Its λ was chosen on the test set itself: an upper bound, never compared or marked as best."""

    @property
    def title(self) -> str:
        """The label with the merging space."""
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
    """One method in one language with one seed: the results' metric, and in ``scores`` all metrics of the task.

    ``predictions`` and ``adapter`` (the evaluated one, merged or trained) are paths relative to the report's folder.
    ``truncated``: number of truncated inputs; ``unparsable``: number of unparsable answers."""

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
    """A cell without a result, and the step that is not done."""

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
    """One search for λ: the curve over the grid and the ``chosen`` λ (for one λ per layer, ``layers``, their mean).

    ``proxy``: the language of the search; ``measure``: the values of the curve, if not the metric: "entropy" in percent
    of the maximum, minimised on unlabelled inputs of the target itself. For several ``languages`` the curve is their
    mean; ``error`` is the standard error at ``best``, the λ with the highest mean."""

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
class WeightChoice(Checked):
    """The λ that one ``way`` of choosing it takes, and its test score. ``own``: the table's way."""

    way: str
    weight: float
    score: float
    own: bool = False


@dataclass(frozen=True)
class Weights(Checked):
    """All choices of the λ of one cell, and the oracle's, made on the cell's own test set."""

    method: str
    language: str
    seed: int
    oracle: WeightChoice
    ways: tuple[WeightChoice, ...]


@dataclass(frozen=True)
class TrainedAdapter(Checked):
    """One trained adapter and its cost. ``reused``: it was already in the store.

    ``name`` starts with "task" or "reference" for adapters that are merged; with several seeds it contains "seed N",
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
    """The effect of a merge on one module: Frobenius norms of the task adapter, the divergence and the change."""

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
    """Everything in a report; the content of ``results.json``.

    ``pooled`` and ``comparisons`` are computed from the items; results of older versions lack them.
    ``papers``: which of the papers' numbers to compare with: column -> values; empty: all that match."""

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
    adapters: tuple[TrainedAdapter, ...] = ()
    merges: tuple[Merge, ...] = ()
    missing: tuple[Missing, ...] = ()
    environment: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    papers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def measure(self) -> str:
        """The metric's name in tables: "Accuracy", "F1", …"""
        return MEASURES.get(self.metric, self.metric)

    def method(self, name: str) -> Method | None:
        """The method with this name, or None."""
        return next((method for method in self.methods if method.name == name), None)
