"""Checks of all metrics: equal lengths, at least one item, known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from adamergex.errors import DataError

Value = TypeVar("Value")


def check_pairs(predictions: Sequence[object], references: Sequence[object], where: str) -> None:
    """Require two sequences (not strings) of one length, with at least one item.

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
            fix="use an empty answer for an item without one",
        )
    if not references:
        raise DataError("there is nothing to score", where=where, found="no items", expected="at least one")


def check_texts(texts: Iterable[object], where: str) -> None:
    """Require strings; an empty string is a (wrong) answer, ``None`` is not.

    Raises: DataError.
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                "a prediction is not text", where=f"{where}, item {number}", found=repr(text), expected="str"
            )


def known(name: str, table: Mapping[str, Value], what: str, where: str) -> Value:
    """``table[name]``.

    Raises: DataError for an unknown name, with the known ones.
    """
    if name in table:
        return table[name]
    similar = difflib.get_close_matches(name, table, n=1)
    raise DataError(
        f"there is no {what} {name!r}",
        where=where,
        expected=", ".join(table),
        fix=f"perhaps {similar[0]!r}" if similar else None,
    )


def percent(values: Sequence[float]) -> float:
    """100 · mean of values in [0, 1]."""
    return 100.0 * sum(values) / len(values)
