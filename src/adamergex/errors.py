"""Typed errors, with a problem, where it is, what was found, what was expected, and what to do next."""

from __future__ import annotations

import errno
import re

SHOWN_PROBLEM = 16_000
"""Longest problem text in a message, in characters; each other part is cut at ``SHOWN_PART``."""
SHOWN_PART = 2_000
# Characters that move a terminal's cursor, colour it or reverse the text direction: C0, C1 and bidi controls; and
# halves of surrogate pairs, which no terminal can print.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(value: object, limit: int = SHOWN_PART) -> str:
    """``value`` as text for a terminal or a page: controls escaped (not line ends), cut at ``limit`` characters."""
    text = str(value)
    if len(text) > limit:
        text = f"{text[: limit * 3 // 4]} … ({len(text):,} characters in all) … {text[-limit // 4 :]}"
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


class AdamergexError(Exception):
    """A problem that the user can act on. The command line prints it without a traceback and exits with 2.

    Args:
        problem: one sentence, what is wrong.
        where: file, tensor, module or setting.
        found: what is there.
        expected: what should be there.
        fix: what to do next.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.problem, self.where, self.found, self.expected, self.fix = problem, where, found, expected, fix
        parts = (("where", where), ("found", found), ("expected", expected), ("next", fix))
        self.lines = [printable(problem, SHOWN_PROBLEM)]
        self.lines += [f"{name}: {printable(value)}" for name, value in parts if value is not None]
        super().__init__("\n  ".join(self.lines))


class AdapterFileError(AdamergexError):
    """An adapter directory that cannot be read or written: missing, truncated, not finite, unsupported, existing."""


class IncompatibleAdaptersError(AdamergexError):
    """Adapters that cannot be combined: different tensors, shapes, ranks, alphas, bases, starts or reference tasks."""


class NothingMergedError(AdamergexError):
    """A merge that matched or changed no tensor."""


class ConfigError(AdamergexError):
    """Invalid settings; lists all problems of a file."""


class DataError(AdamergexError):
    """Data that cannot be read, or that lack a column, a label or enough text."""


class ModelError(AdamergexError):
    """A backbone that cannot be loaded, or whose modules cannot be identified."""


class TrainingError(AdamergexError):
    """Training that diverged: its loss, a gradient or a trained parameter is not finite."""


_FIXES = {
    errno.ENOSPC: "free space on the disk, or choose an output on another disk",
    errno.EDQUOT: "free space, or choose an output outside this disk quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def of_memory(error: MemoryError) -> AdamergexError:
    """The typed error for a MemoryError."""
    return AdamergexError(
        "the machine has no memory left",
        found=str(error) or "MemoryError",
        fix="close other programs, or use fewer workers, smaller batches or a smaller model",
    )


def of_machine(error: OSError) -> AdamergexError:
    """The typed error for an operating-system error (a full disk, a limit, a missing permission)."""
    return AdamergexError(
        "the machine refused to read or write",
        where=error.filename,
        found=error.strerror or str(error) or type(error).__name__,
        fix=_FIXES.get(error.errno or 0, "check the path, who may read and write there, and that the disk has room"),
    )
