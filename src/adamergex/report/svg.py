"""Inline SVG as strings: elements, escaped text, nice ticks. Colours are the page's CSS classes."""

from __future__ import annotations

import math
from html import escape as escape_html

from adamergex.errors import printable

Number = int | float


def element(name: str, content: str = "", /, **attributes: Number | str | None) -> str:
    """One element; ``class_`` and ``text_anchor`` become ``class`` and ``text-anchor``. The content is markup."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    words = "".join(f' {key}="{_value(value)}"' for key, value in named.items())
    return f"<{name}{words}>{content}</{name}>"


def label(x: Number, y: Number, words: str, /, **attributes: Number | str | None) -> str:
    """Escaped text at a point."""
    return element("text", escape(words), x=x, y=y, **attributes)


def line(x1: Number, y1: Number, x2: Number, y2: Number, class_: str) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def tooltip(words: str) -> str:
    """The tooltip of the enclosing element."""
    return element("title", escape(words))


def picture(key: str, size: tuple[Number, Number], title: str, description: str, body: str) -> str:
    """A whole picture with its accessible name and description; ``key`` is unique on the page."""
    width, height = (_value(side) for side in size)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="{key}-title {key}-desc">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>{body}</svg>'
    )


def escape(words: str) -> str:
    """Text as markup, without control characters."""
    return escape_html(printable(words, len(words)))


def shorten(words: str, characters: int) -> str:
    """The words, cut with an ellipsis if longer than ``characters``."""
    return words if len(words) <= characters else words[: characters - 1].rstrip() + "…"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover low…high in about ``count`` steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - 1, high + 1
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _value(value: Number | str) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
