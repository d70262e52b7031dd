"""Means over seeds and comparisons of a table: as computed from the items, else approximated from the cells.

Results of older versions lack these values. Their intervals and flags are then computed from the cells: the seeds'
variance is added to the items' variance (``statistics.nested``), which is assumed equal in every seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median, stdev

from adamergex.report.results import (
    BASELINE,
    CellResult,
    Comparison,
    Interval,
    Pooled,
    PooledComparison,
    Results,
)
from adamergex.statistics import agreeing, holm, wilson
from adamergex.statistics.distributions import normal_quantile
from adamergex.statistics.nested import Spread

ALPHA = 0.05
_MANY = 10**6  # number of clusters if items are unknown: gives the normal distribution


def cell_interval(cell: CellResult) -> Interval:
    """A cell's interval; Wilson's interval if an older version wrote a single point."""
    if cell.interval[0] < cell.interval[1] or not cell.n:
        return cell.interval
    return wilson(cell.score * cell.n / 100, cell.n)


def paired(pair: Comparison) -> Comparison:
    """The comparison of one seed with an interval that agrees with its p."""
    p = _p(pair)
    return Comparison(pair.method, pair.difference, agreeing(pair.interval, pair.difference, p, ALPHA), p)


def score_interval(results: Results, cells: Sequence[CellResult]) -> Interval:
    """The interval of the mean of a method's cells in one language."""
    if len(cells) == 1:
        return cell_interval(cells[0])
    for item in results.pooled:
        if (item.method, item.language, item.seeds) == (cells[0].method, cells[0].language, len(cells)):
            return item.interval
    middle = fmean(cell.score for cell in cells)
    half = _spread([cell.score for cell in cells], [cell_interval(cell) for cell in cells]).half(ALPHA)
    return max(middle - half, 0.0), min(middle + half, 100.0)


def completed(results: Results) -> Results:
    """The results with all intervals and comparisons computed, for every part of a report."""
    seeds: dict[tuple[str, str], list[CellResult]] = {}
    for cell in results.cells:
        seeds.setdefault((cell.method, cell.language), []).append(cell)
    pooled = results.pooled or tuple(
        Pooled(method, language, len(cells), fmean(cell.score for cell in cells), score_interval(results, cells))
        for (method, language), cells in seeds.items()
        if len(cells) > 1
    )
    return replace(results, pooled=pooled, comparisons=comparisons(results))


def comparisons(results: Results) -> tuple[PooledComparison, ...]:
    """All comparisons with Eng-FT, per language and for the mean of the targets, adjusted for the methods (Holm)."""
    return results.comparisons or _from_cells(results)


def _from_cells(results: Results) -> tuple[PooledComparison, ...]:
    rows: list[PooledComparison] = []
    oracles = {method.name for method in results.methods if method.oracle}
    for language in dict.fromkeys([*results.targets, *(cell.language for cell in results.cells)]):
        pairs: dict[str, list[Comparison]] = {}
        for cell in results.cells:
            against = cell.against if cell.language == language and cell.method not in (BASELINE, *oracles) else None
            if against is not None and against.method == BASELINE:
                pairs.setdefault(cell.method, []).append(paired(against))
        spreads = {method: _spread_of(items) for method, items in pairs.items()}
        values = {method: _pooled_p(items, spreads[method]) for method, items in pairs.items()}
        levels = holm(list(values.values()))
        for (method, items), (adjusted, level) in zip(pairs.items(), levels, strict=True):
            rows.append(_row(method, language, items, spreads[method], (values[method], adjusted, level)))
    return tuple(rows)


def _row(
    method: str, language: str, items: Sequence[Comparison], spread: Spread, levels: tuple[float, float, float]
) -> PooledComparison:
    p, adjusted, level = levels
    values = [item.difference for item in items]
    middle = fmean(values)
    low, high = items[0].interval
    if len(items) > 1:
        half = spread.half(level)
        low, high = middle - half, middle + half
    elif level < ALPHA:  # the interval of a stricter level, by the normal distribution
        wider = normal_quantile(level) / normal_quantile(ALPHA)
        low, high = middle + (low - middle) * wider, middle + (high - middle) * wider
    ends = agreeing((max(low, -100.0), min(high, 100.0)), middle, p, level)
    sd = stdev(values) if len(values) > 1 else None
    return PooledComparison(method, BASELINE, language, len(items), middle, ends, sd, p, adjusted)


def _pooled_p(items: Sequence[Comparison], spread: Spread) -> float:
    """The p of one seed; for several seeds the p of their mean difference, but at least the median of their p."""
    values = [_p(item) for item in items]
    if len(items) == 1:
        return values[0]
    return max(median(values), spread.p(abs(fmean(item.difference for item in items))))


def _spread_of(items: Sequence[Comparison]) -> Spread:
    return _spread([item.difference for item in items], [item.interval for item in items])


def _spread(values: Sequence[float], intervals: Sequence[Interval]) -> Spread:
    items = fmean(((high - low) / 2 / normal_quantile(ALPHA)) ** 2 for low, high in intervals)
    seeds = stdev(values) ** 2 / len(values) if len(values) > 1 else 0.0
    return Spread(items, _MANY, seeds, 0.0, len(values))


def _p(pair: Comparison) -> float:
    """The comparison's p; if missing, computed from its interval with the normal distribution."""
    if pair.p is not None:
        return min(max(pair.p, 0.0), 1.0)
    half = (pair.interval[1] - pair.interval[0]) / 2
    z = abs(pair.difference) / half * normal_quantile(ALPHA) if half else (math.inf if pair.difference else 0.0)
    return math.erfc(z / math.sqrt(2))
