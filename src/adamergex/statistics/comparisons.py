"""Compares two systems on the same items: difference, two-sided p, and an interval that agrees with p.

- p of one seed: McNemar's exact test, or the sign-flip test of the clusters (``sign_flips``).
- p of several seeds: the larger one of that test on the seeds' mean and of ``nested``, which includes seed variance.
- The interval: the difference ± a half width whose variance has half a won and half a lost cluster added (Agresti and
  Min 2005). If it contradicts p, its end nearer to 0 becomes that of the test, d·(1 − z(α)/z(p)) (Miettinen 1976).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

import numpy as np

from adamergex.statistics.distributions import normal_quantile
from adamergex.statistics.holm import ALPHA
from adamergex.statistics.intervals import Ends
from adamergex.statistics.nested import Spread, spread
from adamergex.statistics.samples import Clusters, Floats, Sample, clusters
from adamergex.statistics.sign_flips import sign_flip_test


@dataclass(frozen=True)
class Comparison:
    """A paired difference in points. ``sd``: the standard deviation over seeds, None for one seed."""

    difference: float
    p: float
    seeds: int
    sd: float | None
    spread: Spread

    def interval(self, alpha: float = ALPHA) -> Ends:
        """The interval in points, which excludes 0 exactly when p < ``alpha``."""
        half = self.spread.half(alpha)
        ends = max(self.difference - 100 * half, -100.0), min(self.difference + 100 * half, 100.0)
        return agreeing(ends, self.difference, self.p, alpha)


def agreeing(interval: Ends, difference: float, p: float, alpha: float = ALPHA) -> Ends:
    """The interval, with the end nearer to 0 moved if it disagrees with p about 0."""
    low, high = interval
    if (low > 0 or high < 0) == (p < alpha):
        return low, high
    quantile = normal_quantile(p) if p < 1 else 0.0
    half = abs(difference) * normal_quantile(alpha) / quantile if quantile > 0 else math.inf
    if difference > 0:
        return max(difference - half, -100.0), high
    return (low, min(difference + half, 100.0)) if difference < 0 else (min(low, 0.0), max(high, 0.0))


def compare(ours: Sequence[Sequence[Sample]], theirs: Sequence[Sequence[Sample]]) -> Comparison:
    """Ours minus theirs on the mean over seeds and languages: per seed a sample per language, of the same items."""
    grouping = clusters(ours[0])
    pairs = [list(zip(*pair, strict=True)) for pair in zip(ours, theirs, strict=True)]
    values = [float(np.mean([a.score - b.score for a, b in languages])) for languages in pairs]
    shares = np.stack([_shares(languages, grouping) for languages in pairs])
    difference = float(np.mean(values))
    sizes = _sizes(pairs[0], grouping)
    parts = shares - sizes * shares.sum(1, keepdims=True)
    variances = spread(parts, values, lambda mean: _widened(mean, shares.mean(0), difference))
    scale = (
        len(pairs) * len(pairs[0]) * max(len(a.ids) for a, _ in pairs[0])
    )  # makes the shares of right items whole numbers
    p = sign_flip_test(shares.mean(0) * scale)
    if len(pairs) > 1:
        p = max(p, variances.p(abs(difference)))
    sd = 100 * stdev(values) if len(values) > 1 else None
    return Comparison(100 * difference, p, len(pairs), sd, variances)


def _shares(languages: Sequence[tuple[Sample, Sample]], grouping: Clusters) -> Floats:
    """The contribution of each cluster to the difference; swapping its answers changes the sign."""
    sums = np.zeros(grouping.count)
    for index, (a, b) in enumerate(languages):
        total_items = float(a.totals.sum() + b.totals.sum()) / 2
        level = float(a.hits.sum() + b.hits.sum()) / (2 * total_items) if total_items else 0.0
        change = (a.hits - b.hits) - level * (a.totals - b.totals)
        sums += grouping.sums(index, change) / (len(languages) * total_items) if total_items else 0.0
    return sums


def _sizes(languages: Sequence[tuple[Sample, Sample]], grouping: Clusters) -> Floats:
    """The share of items in each cluster, averaged over languages."""
    sums = [grouping.sums(index, np.ones(len(a.ids))) / len(a.ids) for index, (a, _) in enumerate(languages)]
    return np.asarray(sum(sums) / len(sums))


def _widened(parts: Floats, shares: Floats, difference: float) -> float:
    """The variance with half a won and half a lost cluster added, of the mean squared size of the nonzero clusters."""
    count = len(parts)
    nonzero = shares[np.abs(shares) > 1e-12]
    added = float((nonzero**2).mean()) if len(nonzero) else 1 / count**2
    total = float((parts**2).sum()) + added + 2 * difference**2 / (count * (count + 2))
    return total * (count / (count + 2)) ** 2
