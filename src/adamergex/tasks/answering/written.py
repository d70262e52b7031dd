"""Parsing of generated answers: one of several options, or entities in the form ``TYPE: words; TYPE: words``.

An exact match comes first, then the longest match on word boundaries. All text is compared in the form of
``metrics.text.comparable``.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from adamergex.metrics.entities import entities
from adamergex.metrics.text import UNSPACED, comparable

NOTHING = "none"
_KEPT = "%#&@"  # punctuation by category, but part of a word: "5%", "C#", "@home"
_IN_NUMBER = re.compile(r"(?<=\d)[.,](?=\d)|(?<!\S)[-\u2212](?=\d)")
_AS_ASCII = str.maketrans("\u2212\uff0d\ufe63\uff05", "---%")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_FULL_STOPS = ".;；。।؛\u06d4"
_COLONS = ":："
_DIVIDERS = re.compile("([;；؛])")
_SIGN = re.compile(r"""^\W*([A-Z]|[1-9][0-9]?)(?=\s*(?:[).:,\]。*"'”’」]|$))(?![.,][0-9])(?!['’]\w)""")


def plain(text: str) -> str:
    """Case-folded text with punctuation as single spaces; keeps marks (vowel signs), symbols and parts of numbers."""
    folded = comparable(comparable(text).casefold()).translate(_AS_ASCII)
    inside = {match.start() for match in _IN_NUMBER.finditer(folded)}
    kept = [
        char if index in inside or char in _KEPT or unicodedata.category(char)[0] in "LMNS" else " "
        for index, char in enumerate(folded)
    ]
    return " ".join("".join(kept).split())


def exact(text: str, options: Sequence[str]) -> int | None:
    """The only option that equals the text: exactly, else ignoring case, else in ``plain`` form."""
    forms: tuple[Callable[[str], str], ...] = (_spaced, lambda option: _spaced(option.casefold()), plain)
    for form in forms:
        wanted = form(text)
        matches = [number for number, option in enumerate(options) if wanted and form(option) == wanted]
        if len(matches) == 1:
            return matches[0]
    return None


def mentions(text: str, options: Sequence[str]) -> list[int]:
    """The options that occur in the text on word boundaries, in text order; of overlapping ones the longest."""
    whole = plain(text)
    forms = [plain(option) for option in options]
    starts = [list(_occurrences(whole, form)) for form in forms]

    def inside(start: int, form: str, longer: int) -> bool:
        """Whether an occurrence of a form is part of an occurrence of a longer form."""
        spare = len(forms[longer]) - len(form)
        index = bisect.bisect_left(starts[longer], start - spare) if spare > 0 else len(starts[longer])
        return index < len(starts[longer]) and starts[longer][index] <= start

    kept = [
        (start, number)
        for number, form in enumerate(forms)
        for start in starts[number]
        if not any(inside(start, form, longer) for longer in range(len(forms)))
    ]
    return [number for _, number in sorted(kept)]


def sign(text: str, count: int) -> int | None:
    """The index of an option by its letter or number: "(A)", "A.", "B: …", "2", "choice2", "… is (B)", any digits.

    A bare sign at the start must stand alone: "A woman fell" has no letter, "2 things" no number.
    """
    normal = unicodedata.normalize("NFKC", comparable(text))
    normal = "".join(str(unicodedata.decimal(char, char)) for char in normal)
    signs = set(re.findall(_SIGN, normal))
    signs = signs or set(re.findall(r"\bchoice ?([1-9])\b", normal, re.IGNORECASE))
    signs = signs or set(re.findall(r"\(([A-Z]|[1-9][0-9]?)\)", normal))
    if len(signs) != 1:
        return None
    symbol = signs.pop()
    number = int(symbol) - 1 if symbol.isdigit() else ord(symbol) - ord("A")
    return number if number < count else None


def _spaced(text: str) -> str:
    return " ".join(comparable(text).split())


def _occurrences(text: str, words: str) -> Iterator[int]:
    start = text.find(words) if words else -1
    while start >= 0:
        if _is_boundary(text, start) and _is_boundary(text, start + len(words)):
            yield start
        start = text.find(words, start + 1)


def _is_boundary(text: str, index: int) -> bool:
    """Whether a word may begin or end here: next to a space, or between characters of a script without spaces, but
    never before a mark, which belongs to the preceding character."""
    if index in (0, len(text)) or text[index - 1] == " " or text[index] == " ":
        return True
    if unicodedata.category(text[index])[0] == "M":
        return False
    return bool(_UNSPACED.match(text[index]) or _UNSPACED.match(text[index - 1]))


def written_entities(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """The entities of a sentence in the written form, in sentence order; ``none`` if there are none."""
    ordered = sorted(entities(tags))
    return "; ".join(f"{kind}: {' '.join(tokens[start:end])}" for start, end, kind in ordered) or NOTHING


def read_entities(tokens: Sequence[str], types: Sequence[str], text: str) -> tuple[list[str], bool]:
    """Tags of the tokens, parsed from the written form, and whether all of it could be parsed.

    An entity is the first untagged run of tokens after the previous entity (else in the sentence) that equals its
    words: divided as the tokens are, else by characters alone. Words may contain ``;`` and ``:``; the longest match
    counts, and a full stop after the last entity is dropped only if it is not part of it. Types are compared without
    case. Anything but ``TYPE: words`` with a known type and words of this sentence is skipped.
    """
    if text.strip() and plain(text) == NOTHING:
        return ["O"] * len(tokens), True
    tags, complete = _parse(tokens, types, text)  # exact first: a token may be invisible
    return (tags, complete) if complete else _parse([comparable(token) for token in tokens], types, comparable(text))


def _parse(tokens: Sequence[str], types: Sequence[str], text: str) -> tuple[list[str], bool]:
    tags, complete, last, begin = ["O"] * len(tokens), True, 0, 0
    parts = _DIVIDERS.split(text.strip())  # dividers at odd indices
    while begin < len(parts):
        for end in range(len(parts), begin, -2):
            entity = _entity("".join(parts[begin:end]), types, tokens, tags, last, final=end == len(parts))
            if entity:
                kind, start, last = entity
                tags[start:last] = [f"B-{kind}", *[f"I-{kind}"] * (last - start - 1)]
                begin = end + 1
                break
        else:
            complete, begin = False, begin + 2
    return tags, complete


def _entity(
    part: str, types: Sequence[str], tokens: Sequence[str], tags: Sequence[str], after: int, *, final: bool
) -> tuple[str, int, int] | None:
    """Type, first token and end token (exclusive) of a ``TYPE: words``."""
    kind, text = _typed(part, types)
    if kind is None:
        return None
    forms = [text]
    while final and text[-1:] and text[-1] in f" {_FULL_STOPS}":
        forms.append(text := text[:-1])
    for divided in (True, False):
        for form in forms:
            words = form.split()
            match = _match(tokens, words, tags, after, divided) or _match(tokens, words, tags, 0, divided)
            if match:
                return kind, *match
    return None


def _typed(part: str, types: Sequence[str]) -> tuple[str | None, str]:
    part = part.strip()
    for kind in sorted(types, key=lambda name: -len(name)):
        for name in (kind, comparable(kind)):
            rest = part[len(name) :].lstrip()
            if part[: len(name)].casefold() == name.casefold() and rest[:1] and rest[0] in _COLONS:
                return kind, rest[1:]
    return None, ""


def _match(
    tokens: Sequence[str], words: Sequence[str], tags: Sequence[str], after: int, divided: bool
) -> tuple[int, int] | None:
    """The first run of untagged tokens from ``after`` on that equals the words."""
    wanted = "".join(words)
    for start in range(after, len(tokens) if wanted else 0):
        joined = ""
        for end in range(start, len(tokens)):
            joined += "".join(tokens[end].split())
            if not joined or tags[end] != "O" or not wanted.startswith(joined):
                break
            if joined == wanted and (not divided or list(tokens[start : end + 1]) == list(words)):
                return start, end + 1
    return None
