"""95 % intervals of scores between 0 and 100 %.

- Right or wrong items: Wilson 1927; with groups, for the effective number of items n·V_item/V_cluster, at most n
  (Korn and Graubard 1998).
- Graded items (F1, ROUGE-L) and entity F1: the percentile bootstrap over clusters (Efron and Tibshirani 1993, §13.3),
  never narrower than Wilson's interval for the effective number, which does not collapse if all items score alike.
- Means over seeds or languages: Wilson's interval for the effective number of ``nested``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from adamergex.statistics.distributions import normal_quantile
from adamergex.statistics.holm import ALPHA
from adamergex.statistics.nested import Spread, spread
from adamergex.statistics.samples import Clusters, Floats, Sample, clusters
from adamergex.statistics.sign_flips import SEED

Ends = tuple[float, float]
RESAMPLES = 10_000
_AT_ONCE = 4_000_000  # drawn clusters, to bound the memory for long test sets


def wilson(right: float, n: float, alpha: float = ALPHA) -> Ends:
    """Wilson's score interval of ``right`` of ``n``, in percent."""
    return _wilson(right / n, normal_quantile(alpha) ** 2 / n)


def interval(sample: Sample, alpha: float = ALPHA) -> Ends:
    """The interval of one system's score in one language with one seed, in percent."""
    n, level, z2 = len(sample.ids), sample.score, normal_quantile(alpha) ** 2
    if not sample.totals.sum():
        return 0.0, 100.0  # nothing to find, so nothing is known
    grouping = clusters([sample])
    if sample.binary and grouping.count == n:
        return wilson(float(sample.hits.sum()), n, alpha)
    parts = influence([[sample]], grouping)[0]
    informative = _informative([[sample]], grouping)
    if sample.binary:
        return _wilson(
            level, z2 * _relative(max(_clustered(parts, informative), level * (1 - level) / n), level, informative)
        )
    smooth = _wilson(level, z2 * _relative(_worst(parts, level, informative), level, informative))
    resampled = bootstrap(grouping.sums(0, sample.hits), grouping.sums(0, sample.totals))
    low, high = np.percentile(resampled, [50 * alpha, 100 - 50 * alpha])
    return min(float(low), smooth[0]), max(float(high), smooth[1])


def pooled_interval(seeds: Sequence[Sequence[Sample]], alpha: float = ALPHA) -> Ends:
    """The interval of a mean over seeds and languages, in percent. ``seeds``: per seed a sample per language."""
    if len(seeds) == len(seeds[0]) == 1:
        return interval(seeds[0][0], alpha)
    every = [sample for samples in seeds for sample in samples]
    if not all(sample.totals.sum() for sample in every):
        return 0.0, 100.0
    grouping, values = clusters(seeds[0]), [float(np.mean([sample.score for sample in samples])) for samples in seeds]
    level, informative = float(np.mean(values)), _informative(seeds, grouping)
    floor = level * (1 - level) / sum(len(sample.ids) for sample in seeds[0])
    binary = all(sample.binary for sample in every)

    def widen(parts: Floats) -> float:
        return max(_worst(parts, level, informative), floor if binary else 0.0)

    return _nested_wilson(level, spread(influence(seeds, grouping), values, widen), alpha)


def standard_error(languages: Sequence[Sample]) -> float:
    """The standard error of the mean of one system's scores in several languages, in points: √(K/(K−1)·Σ u²) over the
    contributions u of K clusters to the mean (Cochran 1977, §6.9, linearised ratios of clusters)."""
    grouping = clusters(languages)
    if grouping.count < 2 or not all(sample.totals.sum() for sample in languages):
        return 100.0  # unknown
    parts = influence([languages], grouping)[0]
    return 100 * math.sqrt(_clustered(parts, grouping.count))


def influence(seeds: Sequence[Sequence[Sample]], grouping: Clusters) -> Floats:
    """[seeds, clusters]: each cluster's contribution to the mean over languages of Σ hits / Σ totals, centred."""
    return np.stack(
        [
            sum(
                grouping.sums(language, sample.hits - sample.score * sample.totals)
                / (len(samples) * sample.totals.sum())
                for language, sample in enumerate(samples)
            )
            for samples in seeds
        ]
    )


def bootstrap(hits: Floats, totals: Floats) -> Floats:
    """100·Σ hits / Σ totals in 10,000 resamples of the clusters."""
    count = len(hits)
    generator = np.random.default_rng(SEED)
    size = max(_AT_ONCE // count, 1)
    blocks = []
    for start in range(0, RESAMPLES, size):
        chosen = generator.integers(count, size=(min(size, RESAMPLES - start), count))
        hit_sums, total_sums = hits[chosen].sum(1), totals[chosen].sum(1)
        blocks.append(100 * np.divide(hit_sums, total_sums, out=np.zeros(len(hit_sums)), where=total_sums > 0))
    return np.concatenate(blocks)


def _wilson(level: float, ratio: float) -> Ends:
    """Ends of |level − θ| ≤ (ratio·θ(1−θ))^½, in percent; ``ratio`` is z²/n."""
    middle, half = level + ratio / 2, math.sqrt(max(ratio * level * (1 - level) + ratio**2 / 4, 0.0))
    low, high = ((middle + side * half) / (1 + ratio) for side in (-1, 1))
    return (0.0 if level <= 0 else 100 * max(low, 0.0)), (100.0 if level >= 1 else 100 * min(high, 1.0))


def _nested_wilson(level: float, variances: Spread, alpha: float) -> Ends:
    if 0 < level < 1:
        return _wilson(level, variances.half(alpha) ** 2 / (level * (1 - level)))
    return _wilson(level, Spread(1 / variances.clusters, variances.clusters).half(alpha) ** 2)


def _relative(variance: float, level: float, informative: int) -> float:
    """1/n of a proportion with this variance; at 0 and 100 % every cluster counts as one item."""
    return variance / (level * (1 - level)) if 0 < level < 1 else 1 / informative


def _clustered(parts: Floats, informative: int) -> float:
    return float((parts**2).sum()) * informative / max(informative - 1, 1)


def _worst(parts: Floats, level: float, informative: int) -> float:
    """The clusters' variance plus one observation of the largest possible variance."""
    return float((parts**2).sum()) + max(level * (1 - level), 0.0) / informative**2


def _informative(seeds: Sequence[Sequence[Sample]], grouping: Clusters) -> int:
    """The number of clusters with something to find."""
    totals = sum(grouping.sums(index, sample.totals) for samples in seeds for index, sample in enumerate(samples))
    return max(int((np.asarray(totals) > 0).sum()), 1)
