"""The variance of a mean over crossed seeds and items: every seed answers the same items.

    θ = μ + seed + item + rest,    V(θ̂) = σ²_seed/S + σ²_item/K + σ²_rest/(S·K)

The two sources have S − 1 and about K degrees of freedom, so the half width of the interval is

    max( t²[S−1]·V_S ,  t²[K+1]·V_K + t²[S−1]·max(V_S − V_KS, 0) )^½

where V_S, V_K and V_KS estimate σ²_seed/S, σ²_item/K and nothing, each with σ²_rest/(S·K) (Searle, Casella and
McCulloch 1992, ch. 4; the sum of scaled parts as in Graybill and Wang 1980). With one seed only V_K remains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adamergex.statistics.distributions import t_quantile, t_tail
from adamergex.statistics.samples import Floats


@dataclass(frozen=True)
class Spread:
    """Variances of an estimate: ``items`` (V_K) over ``clusters``, ``seeds`` (V_S) of ``count``, ``both`` (V_KS)."""

    items: float
    clusters: int
    seeds: float = 0.0
    both: float = 0.0
    count: int = 1

    def half(self, alpha: float) -> float:
        """The half width of the 1 − ``alpha`` interval."""
        return self._half(t_quantile(alpha, self.clusters + 1), alpha)

    def p(self, distance: float) -> float:
        """The ``alpha`` whose half width is ``distance``: the two-sided p of an estimate at this distance from 0."""
        if distance <= 0:
            return 1.0
        if self.count == 1:
            return t_tail(distance / math.sqrt(self.items), self.clusters + 1) if self.items else 0.0
        low, high = 0.0, 40.0
        for _ in range(40):
            middle = (low + high) / 2
            alpha = t_tail(middle, self.clusters + 1)
            low, high = (middle, high) if self._half(middle, alpha) < distance else (low, middle)
        return t_tail((low + high) / 2, self.clusters + 1)

    def _half(self, quantile: float, alpha: float) -> float:
        items = quantile**2 * self.items
        if self.count == 1:
            return math.sqrt(items)
        seed_quantile = t_quantile(max(alpha, 1e-15), self.count - 1) ** 2
        return math.sqrt(max(seed_quantile * self.seeds, items + seed_quantile * max(self.seeds - self.both, 0.0)))


def spread(parts: Floats, values: Sequence[float], widen: Callable[[Floats], float]) -> Spread:
    """The variances of ``parts`` [seeds, clusters], the centred contribution of each cluster to each seed's value.

    ``widen`` gives V_K of the parts averaged over seeds, with the uncertainty that few or equal clusters do not show.
    """
    count, clusters = parts.shape
    mean = parts.mean(0)
    items = widen(mean)
    if count == 1:
        return Spread(items, clusters)
    seeds = float(np.var(values, ddof=1)) / count
    both = float(((parts - mean) ** 2).sum()) / (count * (count - 1)) * clusters / max(clusters - 1, 1)
    return Spread(items, clusters, seeds, both, count)
