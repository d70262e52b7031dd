"""The allowed values of the fields of a ``lineage.json``: texts, numbers and names, and nothing that names code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from adamergex.files.registry import STRUCTURES

TASKS = ("mgsm", "ner", "sib200", "tata", "xcopa", "xlsum", "xnli", "xquad")
"""The shipped tasks (in ``tasks.catalogue``), the only scores that a lineage may name."""
CUSTOM_TASK = re.compile(r"sha256:[0-9a-f]{64}")
"""The score of a user's task file: the hash of the file, which identifies it and runs nothing."""
LONGEST = 100_000
"""Longest text, in characters."""
_PLAIN = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_LARGEST = 1 << 53

Check = Callable[[Any], str | None]
"""value -> what is expected instead, or ``None`` for a valid value."""


def _check(expected: str, holds: Callable[[Any], bool]) -> Check:
    return lambda value: None if value is None or holds(value) else f"{expected}, or null"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


SETTING = "true, false, a number below 2^53 in size, or a printable text"
"""What ``is_setting`` accepts."""


def is_setting(value: object) -> bool:
    """Whether a merging rule's own setting may have this value: a merge writes what a lineage may hold."""
    if type(value) is str:
        return _is_text(value) and value.isprintable()
    return type(value) is bool or (type(value) in (int, float) and _is_number(value))


def _are_settings(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_setting, value.values()))


_text = _check("a text", _is_text)
_texts = _check("a list of texts", _is_texts)
_number = _check("a number", _is_number)
_count = _check("a whole number", lambda value: type(value) is int and 0 <= value < _LARGEST)
_flag = _check("true or false", lambda value: isinstance(value, bool))
_names = _check("texts by name", lambda value: isinstance(value, dict) and all(map(_is_text, value.values())))
_plain = _check(
    "a name of letters, digits and _ . + -", lambda value: _is_text(value) and bool(_PLAIN.fullmatch(value))
)
_score = _check(
    f"a shipped task ({', '.join(TASKS)}): code from an adapter is never run",
    lambda value: value in TASKS or (_is_text(value) and bool(CUSTOM_TASK.fullmatch(value))),
)

_FIELDS: dict[str, dict[str, Check]] = {
    "base": {"name": _text, "sha256": _text},
    "structure": {
        "kind": _check(f"one of {', '.join(STRUCTURES.built_in)}", STRUCTURES.__contains__),
        **dict.fromkeys(("rank", "virtual_tokens"), _count),
        **dict.fromkeys(("alpha", "dropout"), _number),
    },
    "task": {
        **dict.fromkeys(("kind", "metric"), _plain),
        **dict.fromkeys(("name", "prompt", "answer_after", "context", "cut", "reference", "target"), _text),
        **dict.fromkeys(("labels", "types", "choices", "stop"), _texts),
        **dict.fromkeys(("max_length", "stride", "longest_answer", "segment", "segments"), _count),
        **dict.fromkeys(("chat", "normalised"), _flag),
        "measured_as": _score,
        "max_new_tokens": _check(
            "a whole number up to 32,768", lambda value: type(value) is int and 0 < value <= 32_768
        ),
        "words": _names,
        "mask_rate": _number,
    },
    "merge": {
        **dict.fromkeys(("rule", "space", "span", "form"), _plain),
        "modules": _text,
        "weight": _number,
        "rank": _count,
        "settings": _check(f"by name: {SETTING}", _are_settings),
        "layers": _check("a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value))),
    },
}
_PARENT: dict[str, Check] = {"path": _text, "sha256": _text, "language": _text}


def wrong(lineage: Mapping[str, Any]) -> tuple[str, object, str] | None:
    """The first field with an invalid value, as (name, found, expected); ``None`` if all are valid."""
    for group, checks in _FIELDS.items():
        if problem := _in(group, lineage.get(group), checks):
            return problem
    for role, parent in (lineage.get("parents") or {}).items():
        if not isinstance(parent, dict):
            return f"parents.{role}", type(parent).__name__, "path, sha256 and language"
        if problem := _in(f"parents.{role}", parent, _PARENT):
            return problem
    for package, version in (lineage.get("versions") or {}).items():
        if not _is_text(version):
            return f"versions.{package}", version, "a text"
    for name in ("start", "language"):
        if expected := _text(lineage.get(name)):
            return name, lineage[name], expected
    return None


def _in(group: str, values: Mapping[str, Any] | None, checks: Mapping[str, Check]) -> tuple[str, object, str] | None:
    for name, check in checks.items():
        if values and name in values and (expected := check(values[name])):
            return f"{group}.{name}", repr(values[name]), expected
    return None
