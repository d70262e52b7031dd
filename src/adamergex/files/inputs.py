"""Reads all files from outside: regular files of bounded size, strict JSON and YAML.

Nothing read here runs code, and the limits below bound the work before anything is built from the text.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from adamergex.errors import AdamergexError

if TYPE_CHECKING:
    import yaml

DOCUMENT_BYTES = 64 << 20
"""Largest JSON document written by adamergex (results, predictions, tensor headers): 64 MiB."""
SETTINGS_BYTES = 4 << 20
"""Largest settings or configuration file (YAML, adapter_config.json, lineage.json): 4 MiB."""
DEPTH = 64
"""Deepest nesting of lists and mappings."""
YAML_NODES = 100_000
"""Most values of a YAML document, aliases expanded."""
LINE_CHARACTERS = 16 << 20
"""Longest line of a data file, and longest field of a csv file: 16 Mi characters."""
JSON_CHARACTERS = 1 << 30
"""Largest data file that is one JSON list; jsonl has no such limit."""
UNPACKED_BYTES, UNPACKED_RATIO = 64 << 20, 200
"""Compressed data may expand to 64 MiB, and beyond that to 200 times their size (text expands 3 to 10 times)."""
DIGITS = 1000
"""Most digits of a whole number in YAML."""

Json: TypeAlias = "str | int | float | bool | None | Sequence[Json] | Mapping[str, Json]"
"""A value of JSON, YAML or a row of data; for reading."""
ErrorType = type[AdamergexError]
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NESTED = (dict, list)
_MERGE = "tag:yaml.org,2002:merge"


class Malformed(ValueError):
    """A text that is not valid; ``str()`` gives the reason. Callers turn it into their own typed error."""


def open_regular(path: str | Path, *, what: str, error: ErrorType) -> IO[bytes]:
    """Open a regular file for reading; links are followed, but not to pipes, devices, sockets or folders.

    Raises: ``error`` for a missing file, one that is not regular, or one without read permission.
    """
    try:
        # O_NONBLOCK: opening a pipe without a writer would block forever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise error(f"{what} does not exist", where=path, found="nothing", fix="check the path") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the path
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise error(
            f"{what} cannot be opened", where=path, found=reason, fix="check the path and its permissions"
        ) from None
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise error(
                f"{what} is not a regular file", where=path, found=_file_type(mode), expected="a file", fix="check it"
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | Path, *, what: str, error: ErrorType, limit: int = SETTINGS_BYTES) -> bytes:
    """The whole of a regular file of at most ``limit`` bytes. Raises: ``error``."""
    with open_regular(path, what=what, error=error) as file:
        try:
            content = file.read(limit + 1)
        except OSError as problem:
            raise error(f"{what} cannot be read", where=path, found=problem.strerror, fix="check the disk") from None
    if len(content) > limit:
        raise error(
            f"{what} is too large",
            where=path,
            found=f"more than {limit:,} bytes",
            expected=f"at most {limit:,} bytes",
            fix="check that this is the right file",
        )
    return content


def read_text(path: str | Path, *, what: str, error: ErrorType, limit: int = SETTINGS_BYTES) -> str:
    """A text file in UTF-8 (a byte order mark is dropped). Raises: ``error``."""
    content = read_bytes(path, what=what, error=error, limit=limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{what} is not UTF-8", where=path, found=problem, expected="UTF-8 text", fix="save it as UTF-8"
        ) from None


def read_json(path: str | Path, *, what: str, error: ErrorType, limit: int = SETTINGS_BYTES) -> Any:
    """A strict JSON file: see ``parse_json``. Raises: ``error``."""
    content = read_bytes(path, what=what, error=error, limit=limit)
    try:
        return parse_json(content)
    except Malformed as problem:
        raise error(f"{what} is not valid JSON", where=path, found=problem, fix="repair it or write it again") from None


def read_json_object(path: str | Path, *, what: str, error: ErrorType, limit: int = SETTINGS_BYTES) -> dict[str, Any]:
    """A JSON file that holds an object. Raises: ``error``."""
    document = read_json(path, what=what, error=error, limit=limit)
    if not isinstance(document, dict):
        raise error(
            f"{what} is not a JSON object",
            where=path,
            found=type(document).__name__,
            expected='{"name": value}',
            fix="repair it or write it again",
        )
    return document


def parse_json(text: str | bytes) -> Any:
    """Strict JSON (RFC 8259): no NaN or infinity, no duplicate name, no lone surrogate, at most ``DEPTH`` deep.

    Raises: Malformed, with the reason.
    """
    try:
        document = _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise Malformed(f"it is nested more than {DEPTH} deep") from None
    except UnicodeDecodeError as problem:
        raise Malformed(f"it is not UTF-8: {problem}") from None
    except Malformed:
        raise
    except ValueError as problem:
        raise Malformed(str(problem)) from None
    # Every row of a data file passes here, so checks that cannot fail for most texts are skipped.
    if (isinstance(text, bytes) or "\\u" in text or not text.isascii()) and _may_hold_surrogates(text):
        _require_plain(document)
    openings = text.count("{") + text.count("[") if isinstance(text, str) else text.count(b"{") + text.count(b"[")
    if openings > DEPTH:
        _require_depth(document)
    return document


def _may_hold_surrogates(text: str | bytes) -> bool:
    try:
        raw = text if isinstance(text, bytes) else text.encode()
    except UnicodeEncodeError:
        return True
    return b"\\u" in raw and _ESCAPED_SURROGATE.search(raw) is not None


def read_yaml(path: str | Path, *, what: str, error: ErrorType) -> Any:
    """A YAML file: see ``parse_yaml``. Raises: ``error``."""
    text = read_text(path, what=what, error=error)
    try:
        return parse_yaml(text)
    except Malformed as problem:
        raise error(f"{what} is not valid YAML", where=path, found=problem, fix="repair it") from None


def parse_yaml(text: str) -> Any:
    """YAML as plain values, by the 1.2 core schema: ``no`` is a text (Norwegian), ``5e-4`` a number, dates are texts.

    Refused: duplicate keys, keys that are not texts or whole numbers, tags outside the core schema, more than ``DEPTH``
    levels or ``YAML_NODES`` values (aliases expanded), recursive aliases, NaN and infinity.
    Raises: Malformed, with the reason and line.
    """
    import yaml

    try:
        _require_bounded_events(text)
        document = yaml.load(text, _yaml_loader())  # a SafeLoader
    except yaml.YAMLError as problem:
        raise Malformed(str(problem)) from None
    except RecursionError:
        raise Malformed(f"it is nested more than {DEPTH} deep") from None
    except Malformed:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as problem:
        # The library's constructors do not catch the errors of int(), float() and the like on odd scalars.
        raise Malformed(f"a value cannot be read: {problem}") from None
    _require_plain(document)
    return document


def _file_type(mode: int) -> str:
    types: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in types if test(mode)), "something else")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise Malformed(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return document


def _no_constant(text: str) -> Any:
    raise Malformed(f"{text} is not a JSON number" + (" (a missing value is null)" if text == "NaN" else ""))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Malformed(f"the number {text[:40]} is too large")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant, parse_float=_finite)


def _require_depth(document: Any) -> None:
    """Raises: Malformed for a document that is too deep."""
    if type(document) not in _NESTED:
        return
    level = [document]
    for _ in range(DEPTH):
        inside = (item.values() if type(item) is dict else item for item in level)
        level = [inner for items in inside for inner in items if type(inner) in _NESTED]
        if not level:
            return
    raise Malformed(f"it is nested more than {DEPTH} deep")


def _require_plain(document: Any) -> None:
    """Raises: Malformed for a document that is too deep, or holds a lone surrogate, NaN or infinity."""
    _require_depth(document)
    level = [document]
    while level:
        next_level: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                next_level += [*item, *item.values()]
            elif isinstance(item, list):
                next_level += item
            elif isinstance(item, str) and _SURROGATE.search(item):
                raise Malformed("a text holds half of a surrogate pair, which is not a character")
            elif isinstance(item, float) and not math.isfinite(item):
                raise Malformed(f"{item} is not a finite number")
        level = next_level


def _require_bounded_events(text: str) -> None:
    """Check depth and size of a YAML text before anything is built from it (the parser does not recurse)."""
    import yaml

    depth = count = 0
    sizes: dict[str, int] = {}  # values under each anchor, aliases expanded
    open_anchors: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_anchors):
                raise Malformed(f"the alias *{event.anchor} contains itself ({_line(event.start_mark)})")
            count += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth, count = depth + 1, count + 1
            open_anchors.append((event.anchor, count))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, before = open_anchors.pop()
            if anchor:
                sizes[anchor] = count - before + 1
        if depth > DEPTH:
            raise Malformed(f"it is nested more than {DEPTH} deep ({_line(event.start_mark)})")
        if count > YAML_NODES:
            raise Malformed(f"it holds more than {YAML_NODES:,} values, aliases expanded")


def _yaml_loader() -> type[yaml.SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses duplicate keys and reads scalars by the YAML 1.2 core schema."""

        yaml_implicit_resolvers: dict[str, Any] = {}

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            first: dict[Hashable, int] = {}
            for key_node, _ in node.value:
                if key_node.tag == _MERGE:
                    continue
                line = key_node.start_mark.line + 1
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str) and type(key) is not int:
                    raise Malformed(f"the key {str(key)[:60]!r} is neither a text nor a whole number (line {line})")
                if key in first:
                    raise Malformed(f"the key {key!r} occurs twice, in line {first[key]} and in line {line}")
                first[key] = line
            return super().construct_mapping(node, deep=deep)

    core = "tag:yaml.org,2002:"
    for tag, pattern, firsts in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+0123456789."),
        ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("merge", "<<", "<"),
    ):
        Loader.add_implicit_resolver(core + tag, re.compile(rf"^(?:{pattern})$"), list(firsts))
    Loader.add_constructor(core + "int", _yaml_int)
    for name in ("timestamp", "binary", "set", "omap", "pairs"):
        Loader.add_constructor(core + name, _yaml_refused)
    return Loader


def _line(mark: Any) -> str:
    return "line unknown" if mark is None else f"line {mark.line + 1}"


def _yaml_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > DIGITS:
        raise Malformed(f"a number has {len(text):,} digits ({_line(node.start_mark)}), at most {DIGITS} are allowed")
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _yaml_refused(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise Malformed(f"the tag {node.tag!r} is not supported ({_line(node.start_mark)})")
