"""95 % intervals of scores between 0 and 100 %.

- Right or wrong items: Wilson 1927; with groups at the effective number of items n·V_item/V_cluster, at most n (Korn
  and Graubard 1998).
- Graded items (F1, ROUGE-L) and entity F1: the percentile bootstrap over clusters (Efron and Tibshirani 1993, §13.3),
  never narrower than Wilson's interval at the effective number, which stays open where all items score the same.
- Means over seeds or languages: Wilson's interval at the effective number of ``nested``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adamergex.statistics.distributions import normal_quantile
from adamergex.statistics.nested import Spread, spread
from adamergex.statistics.samples import Clusters, Sample, clusters
from adamergex.statistics.sign_flips import SEED

Floats = NDArray[np.float64]
Ends = tuple[float, float]
RESAMPLES = 10_000
ALPHA = 0.05
_AT_ONCE = 4_000_000  # drawn clusters, so that long test sets do not fill the memory


def wilson(right: float, n: float, alpha: float = ALPHA) -> Ends:
    """Wilson's score interval of ``right`` of ``n``, in percent."""
    return _wilson(right / n, normal_quantile(alpha) ** 2 / n)


def interval(sample: Sample, alpha: float = ALPHA) -> Ends:
    """The interval of one system's score in one language with one seed, in percent."""
    n, level, z2 = len(sample.ids), sample.score, normal_quantile(alpha) ** 2
    if not sample.of.sum():
        return 0.0, 100.0  # nothing was to be found, so nothing is known
    found = clusters([sample])
    if sample.binary and found.count == n:
        return wilson(float(sample.hits.sum()), n, alpha)
    parts = influence([[sample]], found)[0]
    known = _informative([[sample]], found)
    if sample.binary:
        return _wilson(level, z2 * _relative(max(_clustered(parts, known), level * (1 - level) / n), level, known))
    smooth = _wilson(level, z2 * _relative(_worst(parts, level, known), level, known))
    drawn = bootstrap(found.sums(0, sample.hits), found.sums(0, sample.of))
    low, high = np.percentile(drawn, [50 * alpha, 100 - 50 * alpha])
    return min(float(low), smooth[0]), max(float(high), smooth[1])


def pooled_interval(seeds: Sequence[Sequence[Sample]], alpha: float = ALPHA) -> Ends:
    """The interval of a mean over seeds and languages, in percent. ``seeds``: per seed a sample per language."""
    if len(seeds) == len(seeds[0]) == 1:
        return interval(seeds[0][0], alpha)
    every = [sample for samples in seeds for sample in samples]
    if not all(sample.of.sum() for sample in every):
        return 0.0, 100.0
    found, values = clusters_of(seeds), [float(np.mean([sample.score for sample in samples])) for samples in seeds]
    level, known = float(np.mean(values)), _informative(seeds, found)
    floor = level * (1 - level) / sum(len(sample.ids) for sample in seeds[0])
    binary = all(sample.binary for sample in every)

    def widen(parts: Floats) -> float:
        return max(_worst(parts, level, known), floor if binary else 0.0)

    return _nested_wilson(level, spread(influence(seeds, found), values, widen), alpha)


def standard_error(languages: Sequence[Sample]) -> float:
    """The standard error of the mean of one system's scores in several languages, in points: √(K/(K−1)·Σ u²) over what
    each of K clusters adds to the mean (Cochran 1977, §6.9, linearised ratios of clusters)."""
    found = clusters_of([languages])
    if found.count < 2 or not all(sample.of.sum() for sample in languages):
        return 100.0  # nothing is known of it
    parts = influence([languages], found)[0]
    return 100 * math.sqrt(_clustered(parts, found.count))


def clusters_of(seeds: Sequence[Sequence[Sample]]) -> Clusters:
    """The clusters of a table's languages; every seed answers the same items."""
    return clusters(seeds[0])


def influence(seeds: Sequence[Sequence[Sample]], found: Clusters) -> Floats:
    """[seeds, clusters]: what each cluster adds to the mean over languages of Σ hits / Σ of, less its expectation."""
    return np.stack(
        [
            sum(
                found.sums(language, sample.hits - sample.score * sample.of) / (len(samples) * sample.of.sum())
                for language, sample in enumerate(samples)
            )
            for samples in seeds
        ]
    )


def bootstrap(hits: Floats, of: Floats) -> Floats:
    """100·Σ hits / Σ of in 10,000 resamples of the clusters."""
    count = len(hits)
    generator = np.random.default_rng(SEED)
    size = max(_AT_ONCE // count, 1)
    found = []
    for start in range(0, RESAMPLES, size):
        chosen = generator.integers(count, size=(min(size, RESAMPLES - start), count))
        above, below = hits[chosen].sum(1), of[chosen].sum(1)
        found.append(100 * np.divide(above, below, out=np.zeros(len(above)), where=below > 0))
    return np.concatenate(found)


def _wilson(level: float, ratio: float) -> Ends:
    """Ends of |level − θ| ≤ (ratio·θ(1−θ))^½, in percent; ``ratio`` is z²/n."""
    middle, half = level + ratio / 2, math.sqrt(max(ratio * level * (1 - level) + ratio**2 / 4, 0.0))
    low, high = ((middle + side * half) / (1 + ratio) for side in (-1, 1))
    return (0.0 if level <= 0 else 100 * max(low, 0.0)), (100.0 if level >= 1 else 100 * min(high, 1.0))


def _nested_wilson(level: float, found: Spread, alpha: float) -> Ends:
    if 0 < level < 1:
        return _wilson(level, found.half(alpha) ** 2 / (level * (1 - level)))
    return _wilson(level, Spread(1 / found.clusters, found.clusters).half(alpha) ** 2)


def _relative(variance: float, level: float, known: int) -> float:
    """1/n of a proportion with this variance; at 0 and 100 % every cluster counts as one item."""
    return variance / (level * (1 - level)) if 0 < level < 1 else 1 / known


def _clustered(parts: Floats, known: int) -> float:
    return float((parts**2).sum()) * known / max(known - 1, 1)


def _worst(parts: Floats, level: float, known: int) -> float:
    """The clusters' variance, one observation of the largest possible one added."""
    return float((parts**2).sum()) + max(level * (1 - level), 0.0) / known**2


def _informative(seeds: Sequence[Sequence[Sample]], found: Clusters) -> int:
    """How many clusters hold something to be found."""
    totals = sum(found.sums(index, sample.of) for samples in seeds for index, sample in enumerate(samples))
    return max(int((np.asarray(totals) > 0).sum()), 1)
