"""Several comparisons at once: Holm's step-down procedure (Holm 1979)."""

from __future__ import annotations

from collections.abc import Sequence

ALPHA = 0.05


def holm(values: Sequence[float], alpha: float = ALPHA) -> list[tuple[float, float]]:
    """(adjusted p, the alpha that p itself is held against) of every p; adjusted < alpha says the same as p < its own.

    The k-th smallest p is held against alpha / (m - k + 1); after the first that is not below it all the others are
    held against that one's alpha, so that intervals at these levels leave out 0 exactly where Holm rejects.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    found: list[tuple[float, float]] = [(1.0, alpha)] * len(values)
    adjusted, level, stopped = 0.0, alpha, False
    for rank, index in enumerate(order):
        left = len(values) - rank
        adjusted = max(adjusted, min(1.0, left * values[index]))
        if not stopped:
            level = alpha / left
            stopped = values[index] >= level
        found[index] = adjusted, level
    return found
