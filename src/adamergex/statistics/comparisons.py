"""One system against another on the same items: difference, two-sided p, and an interval that agrees with p.

- p of one seed: McNemar's exact test, or the sign-flip test of the clusters (``sign_flips``).
- p of several seeds: the larger of that test on the seeds' mean and of ``nested``, which doubts the seeds as well.
- The interval: the difference ± half a width whose variance has half a won and half a lost cluster added (Agresti and
  Min 2005). Where it would contradict p its end nearer to 0 is that of the test, d·(1 − z(α)/z(p)) (Miettinen 1976).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

import numpy as np
from numpy.typing import NDArray

from adamergex.statistics.distributions import normal_quantile
from adamergex.statistics.intervals import ALPHA, Ends, clusters_of
from adamergex.statistics.nested import Spread, spread
from adamergex.statistics.samples import Clusters, Sample
from adamergex.statistics.sign_flips import sign_flip_test

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A paired difference in points. ``sd``: the seeds' standard deviation, None of one seed."""

    difference: float
    p: float
    seeds: int
    sd: float | None
    spread: Spread

    def interval(self, alpha: float = ALPHA) -> Ends:
        """The interval in points; it leaves out 0 exactly where p < ``alpha``."""
        half = self.spread.half(alpha)
        ends = max(self.difference - 100 * half, -100.0), min(self.difference + 100 * half, 100.0)
        return agreeing(ends, self.difference, self.p, alpha)


def agreeing(interval: Ends, difference: float, p: float, alpha: float = ALPHA) -> Ends:
    """The interval, its end nearer to 0 moved where it and p would disagree about 0."""
    low, high = interval
    if (low > 0 or high < 0) == (p < alpha):
        return low, high
    shown = normal_quantile(p) if p < 1 else 0.0
    reach = abs(difference) * normal_quantile(alpha) / shown if shown > 0 else math.inf
    if difference > 0:
        return max(difference - reach, -100.0), high
    return (low, min(difference + reach, 100.0)) if difference < 0 else (min(low, 0.0), max(high, 0.0))


def compare(ours: Sequence[Sequence[Sample]], theirs: Sequence[Sequence[Sample]]) -> Comparison:
    """Ours minus theirs on the mean over seeds and languages: per seed a sample per language, of the same items."""
    found = clusters_of(ours)
    pairs = [list(zip(*pair, strict=True)) for pair in zip(ours, theirs, strict=True)]
    values = [float(np.mean([a.score - b.score for a, b in languages])) for languages in pairs]
    shares = np.stack([_shares(languages, found) for languages in pairs])
    difference = float(np.mean(values))
    sizes = _sizes(pairs[0], found)
    parts = shares - sizes * shares.sum(1, keepdims=True)
    found_spread = spread(parts, values, lambda mean: _widened(mean, shares.mean(0), difference))
    unit = len(pairs) * len(pairs[0]) * max(len(a.ids) for a, _ in pairs[0])  # makes shares of right items whole
    p = sign_flip_test(shares.mean(0) * unit)
    if len(pairs) > 1:
        p = max(p, found_spread.p(abs(difference)))
    sd = 100 * stdev(values) if len(values) > 1 else None
    return Comparison(100 * difference, p, len(pairs), sd, found_spread)


def _shares(languages: Sequence[tuple[Sample, Sample]], found: Clusters) -> Floats:
    """What each cluster adds to the difference; swapping its answers changes the sign."""
    total = np.zeros(found.count)
    for index, (a, b) in enumerate(languages):
        of = float(a.of.sum() + b.of.sum()) / 2
        level = float(a.hits.sum() + b.hits.sum()) / (2 * of) if of else 0.0
        change = (a.hits - b.hits) - level * (a.of - b.of)
        total += found.sums(index, change) / (len(languages) * of) if of else 0.0
    return total


def _sizes(languages: Sequence[tuple[Sample, Sample]], found: Clusters) -> Floats:
    """Each cluster's part of the items, on the mean of the languages."""
    sums = [found.sums(index, np.ones(len(a.ids))) / len(a.ids) for index, (a, _) in enumerate(languages)]
    return np.asarray(sum(sums) / len(sums))


def _widened(parts: Floats, shares: Floats, difference: float) -> float:
    """Their variance with a won and a lost half cluster added: as large as those seen, a whole one where none is."""
    count = len(parts)
    seen = shares[np.abs(shares) > 1e-12]
    added = float((seen**2).mean()) if len(seen) else 1 / count**2
    total = float((parts**2).sum()) + added + 2 * difference**2 / (count * (count + 2))
    return total * (count / (count + 2)) ** 2
