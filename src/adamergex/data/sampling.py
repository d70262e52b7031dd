"""Random samples of rows, equal for every method, every run and every language of a parallel set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from adamergex.data.values import Row

Item = TypeVar("Item")


def sampled(items: Sequence[Item], size: int | None, seed: int, row: Callable[[Item], Row]) -> list[Item]:
    """``size`` of the items, drawn without replacement and kept in order; all items if there are no more.

    Draws the ``size`` smallest values of SHA-256(seed, id), where id is the row's ``id`` or its position; repeated ids
    are numbered from the second on. So the draw does not depend on the order of other rows or on the machine, and
    equal ids are drawn in every language.
    """
    if size is None or size >= len(items):
        return list(items)
    seen: Counter[str] = Counter()
    keys = []
    for position, item in enumerate(items):
        text = f"{seed} {_identity(row(item).get('id'), position)}"
        repetition = f" {seen[text]}" if seen[text] else ""
        seen[text] += 1
        keys.append((hashlib.sha256((text + repetition).encode("utf-8", "surrogatepass")).digest(), position))
    return [items[position] for _, position in sorted(sorted(keys)[:size], key=lambda key: key[1])]


def _identity(value: object, position: int) -> object:
    """The id, with 7.0 as 7 (tables with gaps store whole numbers as floats); without one, the position."""
    if value is None:
        return position
    return int(value) if isinstance(value, float) and value.is_integer() else value
