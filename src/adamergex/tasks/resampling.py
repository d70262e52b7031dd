"""Intervals and comparisons of tallies: rows of [hits, of], whose metric is 100 · Σ hits / Σ of (see ``measuring``)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamergex import statistics
from adamergex.statistics.sign_flips import SEED

__all__ = ["SEED", "Tallies", "interval", "paired", "percent"]

Tallies = NDArray[np.float64]


def percent(tallies: Tallies) -> float:
    """100 · Σ hits / Σ of; 0 where nothing is to be found."""
    return 100 * statistics.Sample.of_tallies(tallies).score


def interval(tallies: Tallies) -> list[float]:
    """The 95 % interval of ``percent`` (``statistics.interval``)."""
    return list(statistics.interval(statistics.Sample.of_tallies(tallies)))


def paired(a: Tallies, b: Tallies) -> dict[str, Any]:
    """percent(a) − percent(b), its 95 % interval, and a two-sided p that agrees with it (``statistics.compare``)."""
    found = statistics.compare([[statistics.Sample.of_tallies(a)]], [[statistics.Sample.of_tallies(b)]])
    return {"difference": found.difference, "interval": list(found.interval()), "p": found.p}
