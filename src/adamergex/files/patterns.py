"""Regular expressions from files and command lines, matched in bounded time with PEFT's semantics.

Expressions have the syntax of ``re``. Those that cannot backtrack run in ``re``; all others run in the ``regex``
package, which has a time limit (linear-time engines such as RE2 lack the look-aheads in published configs).
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
"""Time limit for all matches of one setting together."""
REPEATED = 1000
"""Largest product of the minimum counts in ``{n}`` and ``{n,m}``: the engine expands repetitions."""

ErrorType = type[AdamergexError]
_WORD = re.compile(r"[A-Za-z0-9_-]+")
_SAFE = re.compile(r"(?:[A-Za-z0-9_.-]|\\[.d_-])+")  # no repetition and no choice: nothing to backtrack into
# {…} without a count is fuzzy matching in the regex package, and plain text in re.
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
        ending: whether an expression may also match the ending of a name after a dot, as in PEFT's ``rank_pattern``
            and our ``--modules``; otherwise it must match the whole name, as in ``target_modules``.
        what, where: the setting, for messages.
        error: the class of the errors.

    Raises: ``error`` for too many or too long expressions, or one that is not valid in ``re``.
    """

    def __init__(
        self, texts: Iterable[str], *, ending: bool, what: str, error: ErrorType, where: object = None
    ) -> None:
        self._what, self._where, self._error = what, where, error
        self._left = SECONDS
        expressions = list(texts)
        if len(expressions) > MOST:
            raise self._refused(f"{len(expressions):,} expressions", f"at most {MOST:,}")
        self._patterns = [_Pattern(text, self._compiled(text, ending)) for text in expressions]

    def first(self, name: str) -> str | None:
        """The first expression that matches, if any. Raises: the setting's error when the time limit is exceeded."""
        begun = time.monotonic()
        try:
            return next((pattern.text for pattern in self._patterns if pattern.matches(name)), None)
        except TimeoutError:
            raise self._too_slow(name) from None
        finally:
            self._left -= time.monotonic() - begun

    def matching(self, names: Iterable[str]) -> list[str]:
        """The names that match an expression, in their order. Raises: as ``first``."""
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
                warnings.simplefilter("ignore")  # PEFT shows the relevant ones
                # The text must be valid alone too: it must not close the group around it.
                plain = [re.compile(expression) for expression in dict.fromkeys((text, whole))][-1]
        except (re.error, ValueError, RecursionError, OverflowError, MemoryError) as problem:
            raise self._refused(f"{text!r}: {problem or type(problem).__name__}", "a regular expression") from None
        if _SAFE.fullmatch(text) and len(text) <= 1000:
            return lambda name: plain.fullmatch(name) is not None
        if _FUZZY.search(text):
            raise self._refused(f"{text!r}", "'{' only in a count: write \\{ for the character")
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
    """An expression that matches exactly these names and cannot backtrack."""
    return "|".join(re.escape(name) for name in names) if names else r"(?!)"
