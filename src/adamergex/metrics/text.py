"""Normalises texts for comparison: texts that look alike become equal.

>>> comparable("Vie\\u0323\\u0302t\\u200b Nam\\ufe0f") == "Việt Nam"
True
"""

from __future__ import annotations

import re
import unicodedata

# Format characters (joiners, zero-width spaces, direction marks, soft hyphens, byte order marks) are in category Cf;
# the grapheme joiner and variation selectors are invisible too, but have Mn.
_SELECTORS = re.compile("[\u034f\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Spellings of one sign that NFC does not unify (The Unicode Standard, 12.2, 12.9, 16.1, 16.2): Thai and Lao AM in
# two parts, before or after a tone mark; Malayalam chillu and Bengali khanda ta with a joiner.
_AM = re.compile("([\u0e48-\u0e4b\u0ec8-\u0ecb]?)([\u0e4d\u0ecd])([\u0e48-\u0e4b\u0ec8-\u0ecb]?)[\u0e32\u0eb2]")
_CHILLU = dict(
    zip("\u0d23\u0d28\u0d30\u0d32\u0d33\u0d15\u09a4", "\u0d7a\u0d7b\u0d7c\u0d7d\u0d7e\u0d7f\u09ce", strict=True)
)
_WITH_JOINER = re.compile(f"([{''.join(_CHILLU)}])[\u0d4d\u09cd]\u200d")
_LETTER = re.compile(r"[^\W_]")

UNSPACED = (
    "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0003ffff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f"
)
"""Han, kana, Thai and Lao, Khmer, Burmese: scripts without spaces between words, as ranges of a regular expression."""


def comparable(text: str) -> str:
    """The text in NFC without format characters (category Cf) and variation selectors, with one spelling per sign.

    All metrics, and all parsers of written answers, compare texts in this form. Source: Unicode Standard Annex #15.
    """
    if text.isascii():
        return text
    text = _WITH_JOINER.sub(lambda match: _CHILLU[match[1]], text)
    hidden = {ord(char): None for char in set(text) if unicodedata.category(char) == "Cf"}
    return _AM.sub(_am, unicodedata.normalize("NFC", _SELECTORS.sub("", text.translate(hidden))))


def _am(match: re.Match[str]) -> str:
    """A tone mark, if any, followed by the sign AM, as keyboards write them."""
    before, ring, after = match.groups()
    return before + after + ("\u0e33" if ring == "\u0e4d" else "\u0eb3")


def is_blank(text: str) -> bool:
    """Whether a text has only white space and invisible characters."""
    return _LETTER.search(text) is None and not comparable(text).strip()
