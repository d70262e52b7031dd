"""Typed errors. Every message says where, what was found, what was expected, and what to do next."""

from __future__ import annotations

import errno


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
        parts = (("where", where), ("found", found), ("expected", expected), ("next", fix))
        super().__init__("\n".join([problem, *(f"  {name}: {value}" for name, value in parts if value is not None)]))


class AdapterFileError(AdamergexError):
    """An adapter directory cannot be read or written: missing, truncated, not finite, not supported, in use."""


class IncompatibleAdaptersError(AdamergexError):
    """Adapters that cannot be combined: other tensors, shapes, ranks, alphas, bases, starts or reference tasks."""


class NothingMergedError(AdamergexError):
    """A merge that matched no tensor, or that changed none."""


class ConfigError(AdamergexError):
    """Settings that do not validate; all problems of a file at once."""


class DataError(AdamergexError):
    """Data that cannot be read, or lack a column, a label or enough text."""


class ModelError(AdamergexError):
    """A backbone that cannot be loaded, or whose sites cannot be found."""


class TrainingError(AdamergexError):
    """A training that diverged: its loss, a gradient or a trained weight is not finite."""


_ROOM = {
    errno.ENOSPC: "free some room on the disk, or choose an output on another",
    errno.EDQUOT: "free some room, or choose an output where you may write more",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def of_machine(error: OSError) -> AdamergexError:
    """What the operating system refused (a full disk, a limit, a missing right), in our words."""
    return AdamergexError(
        "the machine refused to read or write",
        where=error.filename,
        found=error.strerror or str(error) or type(error).__name__,
        fix=_ROOM.get(error.errno or 0, "check the path, who may read and write there, and that the disk has room"),
    )
