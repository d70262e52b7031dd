"""Intervals and comparisons of metrics that are ratios of sums over items, by resampling the items.

A tally is [items, 2]: hits and of; the metric is 100 · Σ hits / Σ of (see ``measuring``).
Source: Efron and Tibshirani 1993, §13.3 (percentile interval); Koehn 2004 (paired bootstrap of test-set scores).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 20240229  # of every bootstrap: the same predictions always have the same interval
_AT_ONCE = 4_000_000  # drawn items, so that long test sets do not fill the memory

Tallies = NDArray[np.float64]


def percent(tallies: Tallies) -> float:
    """100 · Σ hits / Σ of; 0 where nothing is to be found."""
    return float(_ratio(tallies.sum(0)[None])[0])


def interval(tallies: Tallies) -> list[float]:
    """The 95 % percentile interval of ``percent``."""
    return ends(resampled(tallies)[0])


def paired(a: Tallies, b: Tallies) -> dict[str, Any]:
    """percent(a) − percent(b), its 95 % interval over resampled pairs, and a two-sided p.

    p = 2 (1 + the resamples whose difference is 0 or has the other sign) / (1 + resamples), at most 1; of two systems
    with the same tallies it is 1.
    """
    drawn_a, drawn_b = resampled(a, b)
    drawn = drawn_a - drawn_b
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return {
        "difference": percent(a) - percent(b),
        "interval": ends(drawn),
        "p": min(1.0, 2 * (1 + rarer) / (1 + RESAMPLES)),
    }


def ends(drawn: NDArray[np.float64]) -> list[float]:
    """The 2.5th and 97.5th percentile."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [float(low), float(high)]


def resampled(*tallies: Tallies) -> list[NDArray[np.float64]]:
    """``percent`` of 10,000 resamples of the items, the same resamples for all the tallies given."""
    n = len(tallies[0])
    generator = np.random.default_rng(SEED)
    size = max(_AT_ONCE // n, 1)
    found: list[list[NDArray[np.float64]]] = [[] for _ in tallies]
    for start in range(0, RESAMPLES, size):
        chosen = generator.integers(n, size=(min(size, RESAMPLES - start), n))
        for values, tally in zip(found, tallies, strict=True):
            values.append(_ratio(np.stack([tally[:, 0][chosen].sum(1), tally[:, 1][chosen].sum(1)], 1)))
    return [np.concatenate(values) for values in found]


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return 100 * np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)
