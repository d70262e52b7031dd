"""Names that become parts of paths."""

from __future__ import annotations

import re

from adamergex.errors import AdamergexError

PATH_PART = 100
"""Longest name that becomes a part of a path, in characters."""
PLAIN = f"letters of a to z, digits, '-' and '_' (first and last a letter or digit), at most {PATH_PART}"
"""A description of valid names, for messages."""
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
_DEVICES = re.compile(r"(?i)con|prn|aux|nul|com[0-9]|lpt[0-9]")


def path_part(name: str, *, what: str, error: type[AdamergexError], where: object = None) -> str:
    """Check that ``name`` is safe as one part of a path: letters, digits, ``-`` and ``_``, at most 100 characters.

    Raises: ``error`` for anything else: separators, dots, blanks, empty names, Windows' device names.
    """
    if is_path_part(name):
        return name
    raise error(
        f"{what} cannot be part of a file name",
        where=where,
        found=repr(name),
        expected=PLAIN,
        fix="give it a plain name",
    )


def is_path_part(name: object) -> bool:
    """Whether a name is a valid part of a path."""
    plain = isinstance(name, str) and len(name) <= PATH_PART and _NAME.fullmatch(name)
    return bool(plain) and not _DEVICES.fullmatch(str(name))
