"""The number separators of languages, from CLDR through babel, and numbers rewritten in English form.

>>> rewritten("1.234,50 und 12’500", "de"), rewritten("12 000,5", "fr"), rewritten("1.234", "en")
('1234.50 und 12500', '12000.5', '1.234')
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from adamergex.errors import DataError


class Separators(NamedTuple):
    """A language's separators in numbers."""

    group: str
    decimal: str


ENGLISH = Separators(",", ".")
_THOUSANDS = "[1-9][0-9]{0,2}(?:(?P<sign>[%s])[0-9]{3})(?:(?P=sign)[0-9]{3})*"
# Thousands separators of every language: spaces (plain, no-break, figure, thin, narrow; ISO 80000-1), apostrophes.
_ANYWHERE = re.compile("(?<![0-9])(?<![0-9][.,])" + _THOUSANDS % " \u00a0\u2007\u2009\u202f'\u2019" + "(?![0-9])")
_DOTTED = re.compile(_THOUSANDS % ".")
_DIVIDED = re.compile("(?<![0-9.,])[0-9]+(?:[.,][0-9]+)+")


@lru_cache
def separators(language: str) -> Separators:
    """A language's separators with Latin digits; English ones if CLDR lacks the language.

    ``language``: an ISO 639 code, optionally with script and region (de, deu, zho_Hans, de-CH).
    Raises: DataError without babel. Source: Unicode CLDR, number symbols.
    """
    try:
        from babel import Locale, UnknownLocaleError
    except ModuleNotFoundError as error:
        raise DataError(
            "numbers by language need the library babel", found=error, fix="pip install babel"
        ) from error  # fmt: skip
    parts = language.replace("-", "_")
    for code in dict.fromkeys((parts, parts.partition("_")[0])):
        try:
            symbols = Locale.parse(code).number_symbols
        except (UnknownLocaleError, ValueError, TypeError):
            continue
        latin = symbols.get("latn", symbols)
        return Separators(str(latin["group"]), str(latin["decimal"]))
    return ENGLISH


def rewritten(text: str, language: str | None) -> str:
    """The text with its ASCII numbers in English form: only commas group thousands, and a point marks decimals.

    Apostrophes and spaces group thousands in every language (ISO 80000-1); a point does in languages where CLDR says so
    if three digits follow ("1.234" is 1234 in German, "1.5" is 1.5). If a number has both signs, the last one is the
    decimal sign. Without a language the text does not change.
    """
    if language is None:
        return text
    signs = separators(language)
    text = _ANYWHERE.sub(_joined, text)
    if signs.decimal != ",":
        return text
    return _DIVIDED.sub(lambda match: _english(match[0], signs.group), text)


def _joined(match: re.Match[str]) -> str:
    return match[0].replace(match["sign"], "")


def _english(number: str, group: str) -> str:
    """A number in English form, from a language with a decimal comma."""
    last = max(".", ",", key=number.rfind)
    other = "." if last == "," else ","
    if other in number:
        return number.replace(other, "").replace(last, ".") if number.count(last) == 1 else number
    if last == ",":
        return number.replace(",", ".") if number.count(",") == 1 else number
    grouped = _DOTTED.fullmatch(number) and (group == "." or number.count(".") > 1)
    return number.replace(".", "") if grouped else number
