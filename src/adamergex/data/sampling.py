"""Random samples of rows: the same items for every method, in every run, and in every language of a parallel set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from adamergex.data.values import Row

Item = TypeVar("Item")


def sampled(items: Sequence[Item], size: int | None, seed: int, row: Callable[[Item], Row]) -> list[Item]:
    """``size`` of the items, drawn without replacement and in their own order; all of them where there are no more.

    The ``size`` smallest of SHA-256(seed, id) are drawn, where id is the row's ``id`` or else its place; of rows that
    share an id, each but the first adds which of them it is. So the draw depends on neither the order of other rows nor
    the machine, and equal ids are drawn in every language.
    """
    if size is None or size >= len(items):
        return list(items)
    seen: Counter[str] = Counter()
    keys = []
    for place, item in enumerate(items):
        text = f"{seed} {_identity(row(item).get('id'), place)}"
        again = f" {seen[text]}" if seen[text] else ""
        seen[text] += 1
        keys.append((hashlib.sha256((text + again).encode("utf-8", "surrogatepass")).digest(), place))
    return [items[place] for _, place in sorted(sorted(keys)[:size], key=lambda key: key[1])]


def _identity(value: object, place: int) -> object:
    """An id, 7.0 as 7 (a table with gaps makes whole numbers so); a row without one goes by its place."""
    if value is None:
        return place
    return int(value) if isinstance(value, float) and value.is_integer() else value
