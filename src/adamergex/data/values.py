"""Values of rows as they come from files, datasets and Python: what is missing, what is text, what is a position."""

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


def plain_row(found: Mapping[Hashable, object] | Mapping[str, object], where: str) -> dict[str, Json]:
    """The row in Python's own types: no numpy or pandas values, None for everything that is missing (NaN, NA, NaT).

    Raises: DataError: half a surrogate pair in a text, which no UTF-8 file can hold.
    """
    return {
        str(name): value
        if type(value) is int or (type(value) is str and value.isascii())
        else _plain(value, f"{where}, column {str(name)!r}")
        for name, value in found.items()
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
    # pandas' NA cannot be compared, NaT and NaN are no equals of themselves
    missing = type(value).__name__ in ("NAType", "NaTType") or _not_a_number(value)
    return None if missing else cast(Json, value)  # a date or the like is refused where a text is read


def _not_a_number(value: object) -> bool:
    return isinstance(value, Real) and value != value


def is_text(value: object) -> bool:
    """Whether a value is text as it stands, and not blank."""
    return type(value) is str and (value[:1].isalnum() or not is_blank(value))


def text_of(value: object, what: str, where: str, *, numbers: bool = True) -> str:
    """A text, or a number as text (18.0 is "18").

    Raises: DataError: it is missing or blank, or neither text nor (with ``numbers``) a number.
    """
    blank = is_blank(value) if isinstance(value, str) else value is None or value in ([], {})
    if blank:
        raise DataError(
            f"{_a(what)} is empty", where=where, found=repr(value), expected="some text",
            fix="fill it in or remove the row",
        )  # fmt: skip
    if isinstance(value, str):
        return value
    if not numbers or isinstance(value, bool) or not isinstance(value, Real):
        raise DataError(
            f"{_a(what)} is not text", where=where, found=repr(value), expected="some text", fix="write it as text"
        )
    return str(int(value)) if isinstance(value, Integral) else str(value).removesuffix(".0")


def texts(value: Json) -> list[str]:
    """The texts of a column that was checked: those of a list, or the only one."""
    return [str(item) for item in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])]


def label_of(value: object, where: str) -> str:
    """A label: text, a whole number or a truth value, as text. Raises: DataError: it is missing, or a list."""
    return str(value) if isinstance(value, bool) else text_of(value, "label", where)


def require_written(label: str, known: Collection[str], where: str) -> None:
    """Raises: DataError: a label is how tables write a missing value ("nan", "null"), and is not ``known``."""
    if label.casefold().strip() in _EMPTY_WORDS and label not in known:
        raise DataError(
            "a label is empty", where=where, found=repr(label), expected="a label",
            fix=f"fill it in or remove the row; if {label!r} is a label, list it in task.labels",
        )  # fmt: skip


def position_of(value: object, what: str, where: str) -> int | None:
    """A whole number from 0 on, also as 4.0, "4" or "4.0"; None where it is missing or blank.

    Raises: DataError: anything else.
    """
    if value is None or (isinstance(value, str) and is_blank(value)):
        return None
    written = isinstance(value, str) and value.isascii() and _WHOLE.fullmatch(value.strip())
    number, place = float(str(value)) if written else value, -1
    if isinstance(number, Real) and not isinstance(number, bool):
        place = int(number) if isinstance(number, Integral) else int(-1 if number % 1 else float(number))
    if not 0 <= place < 2**53:
        raise DataError(f"{_a(what)} is not a position", where=where, found=repr(value),
                        expected="a whole number from 0 on", fix="correct the row")  # fmt: skip
    return place


def _a(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"
