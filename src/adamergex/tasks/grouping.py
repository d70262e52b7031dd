"""Rows that are not independent: questions on one passage, hypotheses of one premise."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from adamergex.data.values import Row

COLUMNS = ("group", "context_id")
"""Columns that name what a row shares with others."""
_SHARED = ("context", "premise", "passage")


def groups(found: Sequence[Row]) -> list[str | None]:
    """What each row shares with others (a column of ``COLUMNS``, or the same passage or premise); None for rows alone.

    Rows of a group are not independent: intervals and tests take each group as one cluster.
    """
    names = [_group(row) for row in found]
    counts = Counter(names)
    return [name if name is not None and counts[name] > 1 else None for name in names]


def _group(row: Row) -> str | None:
    given = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    if given is not None:
        return str(given)
    text = next((row[name] for name in _SHARED if isinstance(row.get(name), str)), None)
    return None if text is None else hashlib.sha256(str(text).encode()).hexdigest()[:16]
