"""Regular expressions from files and command lines, in bounded time; matched as PEFT matches them.

Texts are read by ``re``'s rules. What cannot backtrack is left to ``re``; all else runs in the ``regex`` package, whose
searches take a time limit (a linear-time engine such as RE2 lacks the look-aheads that published configs hold).
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from adamergex.errors import AdamergexError

LONGEST = 10_000
"""Longest expression, in characters."""
MOST = 20_000
"""Most expressions of one setting."""
SECONDS = 1.0
"""Time that all matches of one setting may take together."""
REPEATED = 1000
"""Largest product of the least counts, ``{n}`` and ``{n,m}``, of an expression: the engine writes repetitions out."""

ErrorType = type[AdamergexError]
_WORD = re.compile(r"[A-Za-z0-9_-]+")
_SAFE = re.compile(r"(?:[A-Za-z0-9_.-]|\\[.d_-])+")  # no repetition and no choice: nothing to backtrack into
# {…} that is no count is fuzzy matching in the regex package, and plain text in re.
_FUZZY = re.compile(r"(?<!\\)\{(?!\d*,?\d*\})")
_COUNT = re.compile(r"\{(\d+)")

_Matches = Callable[[str], bool]


class _Pattern(NamedTuple):
    text: str
    matches: _Matches


class Patterns:
    """Expressions of one setting, tried in order on names; they share one time limit.

    Args:
        texts: the expressions.
        ending: whether one may also match the whole ending of a name after a dot, as in PEFT's ``rank_pattern`` and
            our ``--modules``; else the whole name, as in ``target_modules``.
        what, where: the setting, for messages.
        error: the class of what is raised.

    Raises: ``error`` for too many or too long expressions, or one that ``re`` does not read.
    """

    def __init__(
        self, texts: Iterable[str], *, ending: bool, what: str, error: ErrorType, where: object = None
    ) -> None:
        self._what, self._where, self._error = what, where, error
        self._left = SECONDS
        known = list(texts)
        if len(known) > MOST:
            raise self._refused(f"{len(known):,} expressions", f"at most {MOST:,}")
        self._patterns = [_Pattern(text, self._compiled(text, ending)) for text in known]

    def first(self, name: str) -> str | None:
        """The first expression that matches, if one does. Raises: the error of the setting when its time is over."""
        begun = time.monotonic()
        try:
            return next((pattern.text for pattern in self._patterns if pattern.matches(name)), None)
        except TimeoutError:
            raise self._too_slow(name) from None
        finally:
            self._left -= time.monotonic() - begun

    def matching(self, names: Iterable[str]) -> list[str]:
        """The names that an expression matches, in their order. Raises: as ``first``."""
        return [name for name in names if self.first(name) is not None]

    def _compiled(self, text: str, ending: bool) -> _Matches:
        if len(text) > LONGEST:
            raise self._refused(f"an expression of {len(text):,} characters", f"at most {LONGEST:,}")
        if _WORD.fullmatch(text):
            end = f".{text}"
            return (lambda name: name == text or name.endswith(end)) if ending else text.__eq__
        whole = rf"(?:.*\.)?(?:{text})" if ending else text
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's users would see them, if they matter, from PEFT
                # Alone too: the text must not close the group around it.
                plain = [re.compile(expression) for expression in dict.fromkeys((text, whole))][-1]
        except (re.error, ValueError, RecursionError, OverflowError, MemoryError) as problem:
            raise self._refused(f"{text!r}: {problem or type(problem).__name__}", "a regular expression") from None
        if _SAFE.fullmatch(text) and len(text) <= 1000:
            return lambda name: plain.fullmatch(name) is not None
        if _FUZZY.search(text):
            raise self._refused(f"{text!r}", "no '{' but of a count: write \\{ for the character")
        if math.prod(max(1, int(count)) for count in _COUNT.findall(text)) > REPEATED:
            raise self._refused(f"{text!r}", f"counts {{n}} whose product is at most {REPEATED:,}")
        return self._timed(whole)

    def _timed(self, expression: str) -> _Matches:
        import regex  # 15 ms to import, and plain names never need it

        try:
            compiled = regex.compile(expression, regex.VERSION0)
        except (regex.error, ValueError, RecursionError, OverflowError, MemoryError) as problem:
            raise self._refused(f"{expression!r}: {problem}", "a regular expression") from None

        def matches(name: str) -> bool:
            if self._left <= 0:
                raise TimeoutError
            return compiled.fullmatch(name, timeout=self._left) is not None

        return matches

    def _refused(self, found: str, expected: str) -> AdamergexError:
        return self._error(
            f"{self._what} cannot be read as a regular expression",
            where=self._where,
            found=found,
            expected=expected,
            fix="list the names of the modules",
        )

    def _too_slow(self, name: str) -> AdamergexError:
        return self._error(
            f"{self._what} takes too long to match",
            where=self._where,
            found=f"more than {SECONDS:g} s, at {name}",
            expected="an expression without repetitions inside repetitions",
            fix="list the names of the modules",
        )


def literal(names: Sequence[str]) -> str:
    """An expression that matches these names alone, without anything to backtrack into."""
    return "|".join(re.escape(name) for name in names) if names else r"(?!)"
