"""Rows that are not independent: questions on one passage, hypotheses of one premise."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from adamergex.data.values import Row

COLUMNS = ("group", "context_id")
"""Columns with the group of a row."""
_SHARED = ("context", "premise", "passage")


def groups(rows: Sequence[Row]) -> list[str | None]:
    """The group of each row (a column of ``COLUMNS``, or the same passage or premise); None for groups of one row.

    Rows of a group are not independent: intervals and tests treat each group as one cluster.
    """
    names = [_group(row) for row in rows]
    counts = Counter(names)
    return [name if name is not None and counts[name] > 1 else None for name in names]


def _group(row: Row) -> str | None:
    named = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    if named is not None:
        return str(named)
    text = next((row[name] for name in _SHARED if isinstance(row.get(name), str)), None)
    return None if text is None else hashlib.sha256(str(text).encode()).hexdigest()[:16]
