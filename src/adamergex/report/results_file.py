"""Reading, checking and writing of results.json."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePath, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from adamergex.errors import DataError, printable
from adamergex.files.inputs import DOCUMENT_BYTES, read_json_object
from adamergex.files.outputs import write_files
from adamergex.files.records import as_json
from adamergex.report.results import Results

_LARGEST = 1e15


_ENTRY = re.compile("[A-Za-z0-9_-]+/[0-9a-f]{20}")


@cache
def _adapter() -> TypeAdapter[Results]:
    return TypeAdapter(Results)


def parse(data: Mapping[str, object], where: object = "results") -> Results:
    """Checked results from plain data (as from ``json.load``).

    Raises:
        DataError: keys are missing, unknown or of the wrong type, or the parts are inconsistent; lists all problems.
    """
    if problem := _unbounded(data):
        raise _invalid(where, [problem])
    try:
        results = _adapter().validate_json(json.dumps(data))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise _invalid(where, problems) from None
    if problems := _contradictions(results) + _outside(results):
        raise _invalid(where, problems)
    return results


def load(path: str | Path) -> Results:
    """Results from a ``results.json``.

    Raises:
        DataError: the file cannot be read, is not JSON, or does not contain results.
    """
    return parse(read_json_object(path, what="the file of results", error=DataError, limit=DOCUMENT_BYTES), where=path)


def save(results: Results, path: str | Path) -> Path:
    """Write results as JSON, deterministically; returns the path."""
    path = Path(path)
    write_files(path.parent, {path.name: as_json(as_dict(results))})
    return path


def as_dict(results: Results) -> dict[str, object]:
    """The results as plain data for ``results.json``; the inverse of ``parse``."""
    return dataclasses.asdict(results, dict_factory=_fields)


_DEFAULTS = {"oracle": False, "own": False, "languages": (), "best": None, "error": None, "measure": None}
"""Fields that are written only if they differ from these values."""


def _fields(fields: list[tuple[str, object]]) -> dict[str, object]:
    written = ((name, value) for name, value in fields if name not in _DEFAULTS or value != _DEFAULTS[name])
    data = {name: list(value) if isinstance(value, tuple) else value for name, value in written}
    if "measure" not in data:  # one λ per layer always has a measure of its own
        data.pop("layers", None)
    return data


def _unbounded(data: object) -> str | None:
    """A problem if a number is too large for arithmetic; else None."""
    waiting: list[object] = [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (int, float)) and _LARGEST < abs(item) != math.inf:
            return "a number is beyond ±10¹⁵"
        waiting += item.values() if isinstance(item, Mapping) else item if isinstance(item, (list, tuple)) else ()
    return None


def _outside(results: Results) -> list[str]:
    """Problems of paths: predictions must be inside the run's folder, adapters there or in a store."""
    problems = [
        f"cells: predictions {path!r} are not inside the run"
        for path in (cell.predictions for cell in results.cells)
        if path and not inside(path)
    ]
    adapters = [cell.adapter for cell in results.cells] + [item.path for item in results.adapters]
    return problems + [
        f"adapters: {path!r} is neither inside the run nor in a store"
        for path in adapters
        if path and not inside(path) and not is_entry(path)
    ]


def inside(path: str) -> bool:
    """Whether a relative path stays in its folder."""
    parts = path.replace("\\", "/").split("/")
    return _plain(path) and not PurePosixPath(path).is_absolute() and ".." not in parts


def is_entry(path: str | Path) -> bool:
    """Whether a path names a result in a store: its last two parts are a kind and a key."""
    return _plain(str(path)) and _ENTRY.fullmatch("/".join(PurePath(path).parts[-2:])) is not None


def _plain(path: str) -> bool:
    return len(path) < 2000 and printable(path) == path and all(len(part.encode()) < 256 for part in path.split("/"))


def _contradictions(results: Results) -> list[str]:
    """Problems that the types cannot express: repeated names and cells, unlisted methods, reversed intervals."""
    names = {method.name for method in results.methods}
    problems = [
        f"methods: {name!r} is listed {count} times"
        for name, count in Counter(method.name for method in results.methods).items()
        if count > 1
    ]
    keys = Counter((cell.method, cell.language, cell.seed) for cell in results.cells)
    problems += [f"cells: {key} is there {count} times" for key, count in keys.items() if count > 1]
    used = {cell.method for cell in results.cells} | {tuning.method for tuning in results.tuning}
    used |= {item.method for item in results.missing} | {item.method for item in results.pooled}
    used |= {item.method for item in results.comparisons} | {item.method for item in results.weights}
    gaps = {(item.method, item.language, item.seed) for item in results.missing}
    problems += [f"missing: {key} has a result" for key in sorted(gaps & set(keys))]
    problems += [f"methods: {name!r} has results and is not listed" for name in sorted(used - names)]
    problems += [
        f"cells: {cell.method}, {cell.language}, seed {cell.seed}: interval {list(cell.interval)} is upside down"
        for cell in results.cells
        if cell.interval[0] > cell.interval[1]
    ]
    problems += [
        f"{name}: {item.method}, {item.language}: interval {list(item.interval)} is upside down"
        for name, items in (("pooled", results.pooled), ("comparisons", results.comparisons))
        for item in items
        if item.interval[0] > item.interval[1]
    ]
    return problems


def _invalid(where: object, problems: list[str]) -> DataError:
    return DataError(
        "the results are not valid", where=where, found="; ".join(problems), fix="write them with `adamergex transfer`"
    )
