"""Formatting of numbers, intervals and probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamergex.report import pooling
from adamergex.report.results import Interval

if TYPE_CHECKING:
    from adamergex.report.summary import Score

MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int = 1) -> str:
    """A value as the tables print it, with a true minus sign and never a negative zero."""
    words = f"{value:.{digits}f}"
    return words.removeprefix("-") if float(words) == 0 else words.replace("-", MINUS)


def signed(value: float, digits: int = 1) -> str:
    """A difference: always with its sign, except 0."""
    words = number(value, digits)
    return words if words.startswith(MINUS) or float(words) == 0 else f"+{words}"


def format_interval(interval: Interval, digits: int = 1, form: str = "[{}, {}]") -> str:
    """An interval in brackets."""
    return form.format(number(interval[0], digits), number(interval[1], digits))


def format_difference_interval(interval: Interval) -> str:
    """The interval of a difference, with more digits if rounding would turn an end into 0."""
    nearer = interval[0] if interval[0] > 0 else interval[1] if interval[1] < 0 else 1.0
    digits = next((digits for digits in (1, 2, 3) if float(f"{nearer:.{digits}f}")), 4)
    return format_interval(interval, digits)


def small_print(item: Score, seeds: int) -> str:
    """The line under a score: the spread over seeds and the interval, and the number of seeds if some are missing."""
    words = spread_print(item.sd, item.interval)
    return words if item.seeds in (1, seeds) else f"{words}, {item.seeds} of {seeds} seeds"


def spread_print(sd: float | None, interval: Interval | None) -> str:
    """ "± 0.9 [57.0, 61.2]": the standard deviation over seeds and the interval, if known."""
    words = [] if sd is None else [f"± {number(sd)}"]
    return " ".join(words if interval is None else [*words, format_interval(interval)])


def probability(value: float) -> str:
    """A p-value, with more digits where three would round it up to 0.050."""
    if value < 0.001:
        return "<0.001"
    words = f"{value:.3f}"
    return words if words != "0.050" or value >= pooling.ALPHA else f"{value:.6f}".rstrip("0")


ADJUSTED = (
    "p is exact (McNemar's test) for answers that are right or wrong, else from a paired permutation test. Items that "
    "share a passage or a premise, and on the mean an item and its translations, count as one cluster; of several "
    "seeds the interval and p cover seeds and items. p (Holm) is adjusted for the methods in a column of the table. A "
    "difference is beyond noise where p (Holm) is below 0.05; the 95 % interval is adjusted alike and leaves out 0 "
    "exactly there."
)
"""The legend of the differences."""


def by_chance(count: int) -> str:
    """How many of ``count`` columns show a difference beyond noise by chance."""
    return (
        f"Of {count} columns (languages and their mean) at 95 %, about {number(count / 20)} would show a difference by "
        "chance alone."
        if count > 1
        else ""
    )
