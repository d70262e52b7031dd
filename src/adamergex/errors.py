"""Typed errors. Every message says where, what was found, what was expected, and what to do next."""

from __future__ import annotations


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
