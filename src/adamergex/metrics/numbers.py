"""Exact match of the last number of an answer, in any script's digits (MGSM).

>>> last_number("কাজেই উত্তর হল ১,২৩৪.৫০।")
'1234.5'
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from numbers import Integral, Real

from adamergex.errors import DataError
from adamergex.metrics.checks import check_pairs, check_texts, known, percent
from adamergex.metrics.separators import ENGLISH, rewritten, separators
from adamergex.metrics.text import comparable

# Variants of the ASCII minus and full stop.
_SIGNS = str.maketrans({"\uff0e": ".", "\u2212": "-", "\u2011": "-", "\uff0d": "-", "\ufe63": "-"})
# The Arabic thousands separator; Arabic and full-width commas group thousands if three digits follow, and otherwise
# separate clauses. These and the Arabic decimal separator have one meaning in every language.
_GROUPS = re.compile("(?<=[0-9])(?:٬(?=[0-9])|[،，](?=[0-9]{3}(?![0-9])))")
_ARABIC_DECIMAL = re.compile("(?<=[0-9])٫(?=[0-9])")
# "-$5", "-US$ 5": negative amounts.
_CURRENCIES = "".join(char for char in map(chr, range(0x10000)) if unicodedata.category(char) == "Sc")
_SIGNED_AMOUNT = re.compile(rf"-(?:[A-Z]{{1,3}})?[{re.escape(_CURRENCIES)}]\s?(?=[0-9])")
# A minus after a digit or a closing bracket is a subtraction or a range.
_NUMBER = re.compile(r"(?:(?<![0-9)\]}])-)?[0-9][0-9,]*(?:\.[0-9]+)?")


def last_number(text: str, language: str | None = None) -> str | None:
    """The last number of a text in canonical form, or ``None``: ASCII digits, no separators, no trailing zeros.

    Digits of any script (Unicode Nd) become ASCII, and Arabic separators are known in every language; the last match of
    ``-?\\d[\\d,]*(\\.\\d+)?`` counts; commas group thousands and a point is a decimal point, unless ``language``
    writes them differently ("1.234", "12 500", "12’500", see ``metrics.separators``).
    Source: Shi et al. 2022, "Language models are multilingual chain-of-thought reasoners" (arXiv 2210.03057), §2.
    """
    matches = _NUMBER.findall(_ascii(text, language))
    return _canonical(matches[-1]) if matches else None


def exact_match(
    outputs: Sequence[str],
    references: Sequence[str | int | float],
    *,
    extractor: str = "recommended",
    language: str | None = None,
) -> float:
    """Share of outputs whose number equals the reference number, in percent; an output without a number is wrong.

    ``extractor``: "recommended" (``last_number``) or another program's (``EXTRACTORS``), to compare with published
    scores. ``language``: its separators apply to outputs and to references that are text; other programs have none.
    Raises: DataError (lengths, no items, a reference without a number, an unknown extractor).
    """
    check_pairs(outputs, references, "exact match of numbers")
    check_texts(outputs, "exact match of numbers")
    extract = known(extractor, EXTRACTORS, "extractor", "exact match of numbers")
    language = language if extract is last_number else None
    golds = [_gold(reference, number, language) for number, reference in enumerate(references)]
    if extract is last_number:
        return percent([last_number(output, language) == gold for output, gold in zip(outputs, golds, strict=True)])
    # The extracts of other programs ("$1,234.") are compared by value, because their cleaning differs too.
    texts = [extract(output) for output in outputs]
    return percent([text is not None and last_number(text) == gold for text, gold in zip(texts, golds, strict=True)])


def harness_flexible(text: str) -> str | None:
    """The last match of lm-evaluation-harness 4e7e0d4's "flexible-extract", without cleaning."""
    matches = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return next(filter(None, matches[-1])) if matches else None


def harness_strict(text: str) -> str | None:
    """The match of lm-evaluation-harness 4e7e0d4's "strict-match", after "The answer is"; English tasks only."""
    match = re.search(r"The answer is (-?[0-9.,]+)", text)
    return match[1] if match else None


def reference_code(text: str) -> str:
    """The last run of digits, as in the AdaMergeX reference code: without signs and commas; 0 if there is none."""
    runs = re.findall(r"\d+", text)
    return str(int(runs[-1])) if runs else "0"


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "recommended": last_number,
    "harness-flexible": harness_flexible,
    "harness-strict": harness_strict,
    "reference-code": reference_code,
}


def _ascii(text: str, language: str | None = None) -> str:
    text = comparable(text)
    if not text.isascii():
        digits = {ord(char): str(int(char)) for char in set(text) if char.isdecimal()}
        decimal = (separators(language) if language else ENGLISH).decimal
        text = _GROUPS.sub("", text.translate(_SIGNS).translate(digits))
        text = _ARABIC_DECIMAL.sub("," if decimal == "," else ".", text)
    return _SIGNED_AMOUNT.sub("-", rewritten(text, language))


def _canonical(number: str) -> str:
    sign = "-" if number.startswith("-") else ""
    whole, _, part = number.lstrip("-").replace(",", "").partition(".")
    # Not through Decimal: it would round a run of more than 28 digits.
    digits = (whole.lstrip("0") or "0") + ("." + part.rstrip("0") if part.rstrip("0") else "")
    return digits if digits == "0" else sign + digits


def _gold(reference: str | int | float, number: int, language: str | None) -> str:
    text = reference
    if isinstance(reference, Integral) and not isinstance(reference, bool):
        return str(int(reference))
    if isinstance(reference, Real) and not isinstance(reference, bool):
        text, language = format(Decimal(repr(float(reference))), "f"), None
    gold = last_number(text, language) if isinstance(text, str) else None
    if gold is None:
        raise DataError("a reference holds no number", where=f"MGSM, reference {number}", found=repr(reference))
    return gold
