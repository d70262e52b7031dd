"""Several comparisons at once: Holm's step-down procedure (Holm 1979)."""

from __future__ import annotations

from collections.abc import Sequence

ALPHA = 0.05


def holm(values: Sequence[float], alpha: float = ALPHA) -> list[tuple[float, float]]:
    """(adjusted p, the level to compare p with) for every p; adjusted < alpha is equivalent to p < level.

    The k-th smallest p is compared with alpha / (m - k + 1). After the first p that is not below its level, all others
    get that level, so that intervals at these levels exclude 0 exactly where Holm rejects.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    results: list[tuple[float, float]] = [(1.0, alpha)] * len(values)
    adjusted, level, stopped = 0.0, alpha, False
    for rank, index in enumerate(order):
        left = len(values) - rank
        adjusted = max(adjusted, min(1.0, left * values[index]))
        if not stopped:
            level = alpha / left
            stopped = values[index] >= level
        results[index] = adjusted, level
    return results
