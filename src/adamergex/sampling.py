"""Random samples of rows: the same items for every method, in every run, and in every language of a parallel set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


def sampled(items: Sequence[Item], size: int | None, seed: int, row: Callable[[Item], Mapping[str, Any]]) -> list[Item]:
    """``size`` of the items, drawn without replacement and in their own order; all of them where there are no more.

    The ``size`` smallest of SHA-256(seed, id) are drawn, where id is the row's ``id`` or else its place. So the draw
    depends on neither the order of the rows nor the machine, and equal ids are drawn in every language.
    """
    if size is None or size >= len(items):
        return list(items)

    def key(place: int) -> tuple[bytes, int]:
        identity = row(items[place]).get("id")
        text = f"{seed} {place if identity is None else identity}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), place

    return [items[place] for place in sorted(sorted(range(len(items)), key=key)[:size])]
