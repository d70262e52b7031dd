"""Texts as they are compared: one form for what looks the same to a reader.

>>> comparable("Vie\\u0323\\u0302t\\u200b Nam\\ufe0f") == "Việt Nam"
True
"""

from __future__ import annotations

import re
import unicodedata

# Format characters (Cf: joiners, zero-width spaces, direction marks, soft hyphens, byte order marks) are found by their
# category; these are invisible too, but marks (Mn): the grapheme joiner and the variation selectors.
_SELECTORS = re.compile("[\u034f\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_LETTER = re.compile(r"[^\W_]")

UNSPACED = "\u4e00-\u9fff\u3400-\u4dbf\u3040-\u30ff\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f"
"""Han, kana, Thai and Lao, Khmer, Burmese: scripts without spaces between words, as ranges of a regular expression."""


def comparable(text: str) -> str:
    """The text in NFC without format characters (category Cf) and variation selectors.

    Every metric and every reader of written answers compares texts in this form. Source: Unicode Standard Annex #15.
    """
    if text.isascii():
        return text
    hidden = {ord(char): None for char in set(text) if unicodedata.category(char) == "Cf"}
    return unicodedata.normalize("NFC", _SELECTORS.sub("", text.translate(hidden)))


def is_blank(text: str) -> bool:
    """Whether a reader sees nothing: white space and invisible characters alone."""
    return _LETTER.search(text) is None and not comparable(text).strip()
