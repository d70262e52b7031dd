"""The manifest of a result in a store: its key, its files, and its own hash. Standard library only.

A store may be damaged or untrusted: a manifest is bounded and typed, its names stay inside its entry, and one with a
changed bit is rejected.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from adamergex.errors import AdamergexError
from adamergex.files.inputs import read_json_object
from adamergex.files.names import path_part

FILE_NAME = "manifest.json"
_DIGEST = re.compile("[0-9a-f]{64}")
_MOST = 2**63


class StoreError(AdamergexError):
    """A store, an entry, or a study's note that cannot be used."""


@dataclass(frozen=True)
class Manifest:
    """One result: ``files`` are paths inside the entry with their SHA-256, ``inputs`` the keys of its inputs."""

    key: str
    kind: str
    version: int
    label: str
    identity: Mapping[str, object]
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    bytes: int
    seconds: float
    finished: str

    @property
    def date(self) -> datetime:
        """The time at which the step finished, in UTC."""
        return _utc(self.finished)

    def to_json(self) -> str:
        """The manifest's text, with the SHA-256 of everything else in it."""
        contents = json.loads(json.dumps(asdict(self)))  # exactly as it will be read
        return json.dumps(contents | {"sha256": digest(contents)}, indent=1, sort_keys=True, ensure_ascii=False)


def read(entry: Path) -> Manifest:
    """The manifest of an entry. Raises: StoreError: it is missing or damaged, or names files outside the entry."""
    path = entry / FILE_NAME
    contents = read_json_object(path, what="the manifest of a stored result", error=StoreError)
    stated = contents.pop("sha256", None)
    if problem := _problem(contents, stated):
        raise StoreError(
            "the manifest of a stored result is damaged",
            where=path,
            found=problem,
            fix="run the study again, which recreates the result",
        )
    return Manifest(**contents)


def is_key(value: object) -> bool:
    """Whether this is a step's key: 64 hexadecimal digits."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def digest(contents: Mapping[str, object]) -> str:
    """SHA-256 of a manifest without its own hash."""
    text = json.dumps(contents, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _problem(contents: dict[str, object], stated: object) -> str | None:
    """The problem of a manifest, or None."""
    expected = set(Manifest.__dataclass_fields__)
    if missing := sorted(expected - set(contents)):
        return f"no {', '.join(missing)}"
    if stated is None:
        return "no hash of its own: an earlier version wrote it"
    if stated != digest(contents):
        return "its text does not have the hash that it names"
    if unknown := sorted(set(contents) - expected):
        return f"unknown: {', '.join(unknown)}"
    return next(
        (f"{name} is {str(contents[name])[:80]!r}" for name, valid in _RULES if not valid(contents[name])), None
    )


def _is_part(value: object) -> bool:
    try:
        path_part(str(value), what="a kind", error=StoreError)
    except StoreError:
        return False
    return isinstance(value, str)


def _is_inside(name: object) -> bool:
    """Whether this is the plain relative path of a file below the entry."""
    if not isinstance(name, str) or not name or len(name) > 1000 or "\\" in name or "\0" in name:
        return False
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).as_posix() == name and not PurePosixPath(name).is_absolute() and ".." not in parts


def _utc(text: str) -> datetime:
    date = datetime.fromisoformat(text)
    if date.tzinfo is None:
        raise ValueError("a date without a time zone")
    return date.astimezone(UTC)


def _is_date(text: object) -> bool:
    try:
        return isinstance(text, str) and _utc(text) is not None
    except (ValueError, OverflowError):
        return False


_RULES = (
    ("key", is_key),
    ("kind", _is_part),
    ("version", lambda value: type(value) is int and 0 < value < _MOST),
    ("label", lambda value: isinstance(value, str) and len(value) <= 1000),
    ("identity", lambda value: isinstance(value, dict)),
    ("inputs", lambda value: isinstance(value, dict) and all(map(is_key, value.values()))),
    (
        "files",
        lambda value: isinstance(value, dict) and all(map(_is_inside, value)) and all(map(is_key, value.values())),
    ),
    ("bytes", lambda value: type(value) is int and 0 <= value < _MOST),
    ("seconds", lambda value: type(value) in (int, float) and math.isfinite(value) and 0 <= value < _MOST),
    ("finished", _is_date),
)
