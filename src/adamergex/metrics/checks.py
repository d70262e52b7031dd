"""What every metric refuses to score: unequal lengths, nothing at all, and names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from adamergex.errors import DataError

Value = TypeVar("Value")


def check_pairs(predictions: Sequence[object], references: Sequence[object], where: str) -> None:
    """Both are sequences (not one string) of the same length, and there is at least one item.

    Raises: DataError.
    """
    for name, values in (("predictions", predictions), ("references", references)):
        if isinstance(values, (str, bytes, Mapping)):
            raise DataError(f"the {name} are not a list", where=where, found=type(values).__name__, expected="a list")
    if len(predictions) != len(references):
        raise DataError(
            "the numbers of predictions and references differ",
            where=where,
            found=f"{len(predictions)} predictions, {len(references)} references",
            expected="one prediction per item, in the order of the references",
            fix="give an empty answer for an item without one",
        )
    if not references:
        raise DataError("there is nothing to score", where=where, found="no items", expected="at least one")


def check_texts(texts: Iterable[object], where: str) -> None:
    """Every one is a string; an empty string is an answer (a wrong one), ``None`` is not.

    Raises: DataError.
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                "a prediction is not text", where=f"{where}, item {number}", found=repr(text), expected="str"
            )


def known(name: str, table: Mapping[str, Value], what: str, where: str) -> Value:
    """``table[name]``, or what there is instead.

    Raises: DataError.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    raise DataError(
        f"there is no {what} {name!r}",
        where=where,
        expected=", ".join(table),
        fix=f"perhaps {near[0]!r}" if near else None,
    )


def percent(values: Sequence[float]) -> float:
    """100 · mean of values in [0, 1]."""
    return 100.0 * sum(values) / len(values)
