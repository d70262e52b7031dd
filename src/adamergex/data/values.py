"""Converts and checks values of rows from files, datasets and Python: missing values, texts, positions."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from numbers import Integral, Real
from typing import TypeAlias, cast

from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.metrics.text import is_blank

Row: TypeAlias = Mapping[str, Json]
"""A row of data: column -> value."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"[+-]?[0-9]{1,16}(\.0*)?")
_EMPTY_WORDS = ("nan", "none", "null", "nat", "<na>", "n/a", "#n/a")


def plain_row(row: Mapping[Hashable, object] | Mapping[str, object], where: str) -> dict[str, Json]:
    """The row in Python's types: no numpy or pandas values, None for missing values (NaN, NA, NaT).

    Raises: DataError for half a surrogate pair in a text, which UTF-8 cannot encode.
    """
    return {
        str(name): value
        if type(value) is int or (type(value) is str and value.isascii())
        else _plain(value, f"{where}, column {str(name)!r}")
        for name, value in row.items()
    }


def _plain(value: object, where: str) -> Json:
    if isinstance(value, str):
        if half := _SURROGATE.search(value):
            raise DataError("a text holds half a surrogate pair", where=where, found=f"{half[0]!r}",
                            expected="whole characters", fix="write the file again in UTF-8")  # fmt: skip
        return str(value)
    if isinstance(value, Mapping):
        return plain_row(value, where)
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, pandas' series
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    # pandas' NA cannot be compared; NaT and NaN differ from themselves
    missing = type(value).__name__ in ("NAType", "NaTType") or _not_a_number(value)
    return None if missing else cast(Json, value)  # dates and the like are refused when read as text


def _not_a_number(value: object) -> bool:
    return isinstance(value, Real) and value != value


def is_text(value: object) -> bool:
    """Whether a value is a text that is not blank."""
    return type(value) is str and (value[:1].isalnum() or not is_blank(value))


def text_of(value: object, what: str, where: str, *, numbers: bool = True) -> str:
    """A text, or a number as text (18.0 is "18").

    Raises: DataError for a missing or blank value, or one that is neither text nor (with ``numbers``) a number.
    """
    blank = is_blank(value) if isinstance(value, str) else value is None or value in ([], {})
    if blank:
        raise DataError(
            f"{_article(what)} is empty", where=where, found=repr(value), expected="some text",
            fix="fill it in or remove the row",
        )  # fmt: skip
    if isinstance(value, str):
        return value
    if not numbers or isinstance(value, bool) or not isinstance(value, Real):
        raise DataError(
            f"{_article(what)} is not text",
            where=where,
            found=repr(value),
            expected="some text",
            fix="write it as text",
        )
    return str(int(value)) if isinstance(value, Integral) else str(value).removesuffix(".0")


def texts(value: Json) -> list[str]:
    """The texts in a checked column: those of a list, or the single one."""
    return [str(item) for item in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])]


def label_of(value: object, where: str) -> str:
    """A label as text, from a text, a whole number or a boolean. Raises: DataError for a missing value or a list."""
    return str(value) if isinstance(value, bool) else text_of(value, "label", where)


def require_written(label: str, known: Collection[str], where: str) -> None:
    """Raises: DataError for a label that means a missing value ("nan", "null") and is not ``known``."""
    if label.casefold().strip() in _EMPTY_WORDS and label not in known:
        raise DataError(
            "a label is empty", where=where, found=repr(label), expected="a label",
            fix=f"fill it in or remove the row; if {label!r} is a label, list it in task.labels",
        )  # fmt: skip


def position_of(value: object, what: str, where: str) -> int | None:
    """A whole number from 0, also as 4.0, "4" or "4.0"; None for a missing or blank value.

    Raises: DataError for anything else.
    """
    if value is None or (isinstance(value, str) and is_blank(value)):
        return None
    is_number = isinstance(value, str) and value.isascii() and _WHOLE.fullmatch(value.strip())
    number, position = float(str(value)) if is_number else value, -1
    if isinstance(number, Real) and not isinstance(number, bool):
        position = int(number) if isinstance(number, Integral) else int(-1 if number % 1 else float(number))
    if not 0 <= position < 2**53:
        raise DataError(f"{_article(what)} is not a position", where=where, found=repr(value),
                        expected="a whole number from 0", fix="correct the row")  # fmt: skip
    return position


def _article(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"
