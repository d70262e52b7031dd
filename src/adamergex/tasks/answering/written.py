"""What a model wrote, read back: one of several options, or entities in the form ``TYPE: words; TYPE: words``.

An exact match counts first, then the longest match on word bounds. Everything is compared in the form of
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
    """Case folded, punctuation as one space; marks (vowel signs), symbols and what belongs to a number stay."""
    folded = comparable(comparable(text).casefold()).translate(_AS_ASCII)
    inside = {match.start() for match in _IN_NUMBER.finditer(folded)}
    kept = [
        char if place in inside or char in _KEPT or unicodedata.category(char)[0] in "LMNS" else " "
        for place, char in enumerate(folded)
    ]
    return " ".join("".join(kept).split())


def exact(text: str, options: Sequence[str]) -> int | None:
    """The one option that the text is: letter for letter, else whatever its case, else in ``plain`` form."""
    forms: tuple[Callable[[str], str], ...] = (_spaced, lambda given: _spaced(given.casefold()), plain)
    for form in forms:
        wanted = form(text)
        same = [number for number, option in enumerate(options) if wanted and form(option) == wanted]
        if len(same) == 1:
            return same[0]
    return None


def mentions(text: str, options: Sequence[str]) -> list[int]:
    """The options that stand in the text on word bounds, in its order; of overlapping ones the longest."""
    whole = plain(text)
    forms = [plain(option) for option in options]
    places = [list(_occurrences(whole, form)) for form in forms]

    def inside(start: int, form: str, other: int) -> bool:
        """Whether an occurrence of a form is part of one of a longer form."""
        spare = len(forms[other]) - len(form)
        at = bisect.bisect_left(places[other], start - spare) if spare > 0 else len(places[other])
        return at < len(places[other]) and places[other][at] <= start

    kept = [
        (start, number)
        for number, form in enumerate(forms)
        for start in places[number]
        if not any(inside(start, form, other) for other in range(len(forms)))
    ]
    return [number for _, number in sorted(kept)]


def sign(text: str, count: int) -> int | None:
    """The place of an option by its sign: "(A)", "A.", "B: …", "2", "choice2", "… is (B)", digits of any script.

    A bare sign at the start must end there: "A woman fell" is no letter, "2 things" no number.
    """
    shown = unicodedata.normalize("NFKC", comparable(text))
    shown = "".join(str(unicodedata.decimal(char, char)) for char in shown)
    found = set(re.findall(_SIGN, shown))
    found = found or set(re.findall(r"\bchoice ?([1-9])\b", shown, re.IGNORECASE))
    found = found or set(re.findall(r"\(([A-Z]|[1-9][0-9]?)\)", shown))
    if len(found) != 1:
        return None
    only = found.pop()
    number = int(only) - 1 if only.isdigit() else ord(only) - ord("A")
    return number if number < count else None


def _spaced(text: str) -> str:
    return " ".join(comparable(text).split())


def _occurrences(text: str, words: str) -> Iterator[int]:
    start = text.find(words) if words else -1
    while start >= 0:
        if _bound(text, start) and _bound(text, start + len(words)):
            yield start
        start = text.find(words, start + 1)


def _bound(text: str, place: int) -> bool:
    """Whether a word may begin or end here: beside a space, or between characters of a script without spaces, but never
    before a mark, which belongs to the character before it."""
    if place in (0, len(text)) or text[place - 1] == " " or text[place] == " ":
        return True
    if unicodedata.category(text[place])[0] == "M":
        return False
    return bool(_UNSPACED.match(text[place]) or _UNSPACED.match(text[place - 1]))


def written_entities(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """The entities of a sentence in the written form, in its order; ``none`` where there are none."""
    found = sorted(entities(tags))
    return "; ".join(f"{kind}: {' '.join(tokens[start:end])}" for start, end, kind in found) or NOTHING


def read_entities(tokens: Sequence[str], types: Sequence[str], text: str) -> tuple[list[str], bool]:
    """Tags of the tokens from the written form, and whether all of it could be read.

    An entity is the first run of tokens after the one before it (else the first in the sentence), not taken yet, that
    its words are: divided as the tokens are, or else by characters alone. Words may hold ``;`` and ``:``; the longest
    that the sentence has counts, and a full stop after the last entity is left out only where it is not a part of it.
    Types compare without case. What is no ``TYPE: words`` of a known type and of this sentence is left out.
    """
    if text.strip() and plain(text) == NOTHING:
        return ["O"] * len(tokens), True
    tags, well = _read(tokens, types, text)  # letter for letter: a token may be invisible
    return (tags, well) if well else _read([comparable(token) for token in tokens], types, comparable(text))


def _read(tokens: Sequence[str], types: Sequence[str], text: str) -> tuple[list[str], bool]:
    tags, well, last, at = ["O"] * len(tokens), True, 0, 0
    parts = _DIVIDERS.split(text.strip())  # at odd places what divides them
    while at < len(parts):
        for end in range(len(parts), at, -2):
            read = _entity("".join(parts[at:end]), types, tokens, tags, last, final=end == len(parts))
            if read:
                kind, start, last = read
                tags[start:last] = [f"B-{kind}", *[f"I-{kind}"] * (last - start - 1)]
                at = end + 1
                break
        else:
            well, at = False, at + 2
    return tags, well


def _entity(
    part: str, types: Sequence[str], tokens: Sequence[str], tags: Sequence[str], after: int, *, final: bool
) -> tuple[str, int, int] | None:
    """Type, first token and token after the last of a ``TYPE: words``."""
    kind, words = _typed(part, types)
    if kind is None:
        return None
    forms = [words]
    while final and words[-1:] and words[-1] in f" {_FULL_STOPS}":
        forms.append(words := words[:-1])
    for divided in (True, False):
        for form in forms:
            place = _place(tokens, form.split(), tags, after, divided) or _place(tokens, form.split(), tags, 0, divided)
            if place:
                return kind, *place
    return None


def _typed(part: str, types: Sequence[str]) -> tuple[str | None, str]:
    shown = part.strip()
    for kind in sorted(types, key=lambda name: -len(name)):
        for name in (kind, comparable(kind)):
            rest = shown[len(name) :].lstrip()
            if shown[: len(name)].casefold() == name.casefold() and rest[:1] and rest[0] in _COLONS:
                return kind, rest[1:]
    return None, ""


def _place(
    tokens: Sequence[str], words: Sequence[str], tags: Sequence[str], after: int, divided: bool
) -> tuple[int, int] | None:
    """The first run of untagged tokens from ``after`` on that the words are."""
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
