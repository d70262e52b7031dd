"""Statistics of a table beyond single cells: means with intervals, and comparisons of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adamergex.statistics.comparisons import Comparison, compare
from adamergex.statistics.holm import holm
from adamergex.statistics.intervals import Ends, pooled_interval
from adamergex.statistics.samples import Sample

MEAN = "mean"
Cells = Mapping[tuple[str, str, int], Sample]
"""(method, language, seed) -> answers."""


class Checked:
    """A record of results; reading refuses unknown keys and numbers that are not finite."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True)
class Pooled(Checked):
    """A method's score over its seeds in a language, or in "mean" of the targets, with the 95 % interval."""

    method: str
    language: str
    seeds: int
    score: float
    interval: Ends


@dataclass(frozen=True)
class PooledComparison(Checked):
    """A method minus ``against`` on the same items over the seeds, in a language or in "mean" of the targets.

    ``adjusted``: p adjusted by Holm for the compared methods; the interval excludes 0 exactly when it is below 0.05.
    ``sd``: over seeds."""

    method: str
    against: str
    language: str
    seeds: int
    difference: float
    interval: Ends
    sd: float | None
    p: float
    adjusted: float


def pooled(cells: Cells, targets: Sequence[str]) -> tuple[Pooled, ...]:
    """Score and interval of each method on the mean of the targets, and in each language with several seeds."""
    return tuple(
        Pooled(
            method,
            language,
            len(seeds),
            100 * float(np.mean([[sample.score for sample in samples] for samples in seeds])),
            pooled_interval(seeds),
        )
        for method in _methods(cells)
        for language, columns in _columns(cells, targets)
        if len(seeds := _seeds(cells, [method], columns)[method]) > (language != MEAN)
    )


def comparisons(cells: Cells, targets: Sequence[str], baseline: str) -> tuple[PooledComparison, ...]:
    """Each method against the baseline in each language and on the mean of the targets, adjusted by Holm."""
    results: list[PooledComparison] = []
    methods = [method for method in _methods(cells) if method != baseline]
    for language, columns in _columns(cells, targets):
        rows: list[tuple[str, Comparison]] = []
        for method in methods:
            pair = _seeds(cells, [method, baseline], columns)
            if pair[method]:
                rows.append((method, compare(pair[method], pair[baseline])))
        levels = holm([row.p for _, row in rows])
        results += [
            PooledComparison(
                method, baseline, language, row.seeds, row.difference, row.interval(level), row.sd, row.p, adjusted
            )
            for (method, row), (adjusted, level) in zip(rows, levels, strict=True)
        ]
    return tuple(results)


def _methods(cells: Cells) -> list[str]:
    return list(dict.fromkeys(method for method, _, _ in cells))


def _columns(cells: Cells, targets: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    names = dict.fromkeys([*targets, *(key[1] for key in cells)])
    single: list[tuple[str, tuple[str, ...]]] = [(language, (language,)) for language in names]
    return [*single, (MEAN, tuple(targets))] if len(targets) > 1 else single


def _seeds(cells: Cells, methods: Sequence[str], languages: Sequence[str]) -> dict[str, list[list[Sample]]]:
    """Method -> per seed that all methods have in all languages, a sample per language."""
    seeds = [
        seed
        for seed in dict.fromkeys(key[2] for key in cells)
        if all((method, language, seed) in cells for method in methods for language in languages)
    ]
    return {method: [[cells[method, language, seed] for language in languages] for seed in seeds] for method in methods}
