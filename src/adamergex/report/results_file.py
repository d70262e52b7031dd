"""results.json: read with every check, written whole."""

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
    """Checked results from plain data (what ``json.load`` gives).

    Raises:
        DataError: a key is missing, unknown or of the wrong type, or the parts do not fit together; all at once.
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
        DataError: the file cannot be read, is not JSON, or does not hold results.
    """
    return parse(read_json_object(path, what="the file of results", error=DataError, limit=DOCUMENT_BYTES), where=path)


def save(results: Results, path: str | Path) -> Path:
    """Write results as JSON, the same bytes for the same results; returns the path."""
    path = Path(path)
    write_files(path.parent, {path.name: as_json(plain(results))})
    return path


def plain(results: Results) -> dict[str, object]:
    """The results as ``results.json`` has them, which ``parse`` reads."""
    return dataclasses.asdict(results, dict_factory=_written)


_UNUSUAL = {"oracle": False, "own": False, "languages": (), "best": None, "error": None, "measure": None}
"""Written only where they say something else."""


def _written(fields: list[tuple[str, object]]) -> dict[str, object]:
    said = ((name, value) for name, value in fields if name not in _UNUSUAL or value != _UNUSUAL[name])
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in said}
    if "measure" not in found:  # one λ per layer is found by another measure alone
        found.pop("layers", None)
    return found


def _unbounded(data: object) -> str | None:
    """That a number is larger than any measurement, too large to reckon with; or None."""
    waiting: list[object] = [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (int, float)) and _LARGEST < abs(item) != math.inf:
            return "a number is beyond ±10¹⁵"
        waiting += item.values() if isinstance(item, Mapping) else item if isinstance(item, (list, tuple)) else ()
    return None


def _outside(results: Results) -> list[str]:
    """Paths that a run does not write: answers lie inside its folder; adapters too, or in a store."""
    problems = [
        f"cells: predictions {path!r} are not inside the run"
        for path in (cell.predictions for cell in results.cells)
        if path and not inside(path)
    ]
    places = [cell.adapter for cell in results.cells] + [item.path for item in results.adapters]
    return problems + [
        f"adapters: {path!r} is neither inside the run nor in a store"
        for path in places
        if path and not inside(path) and not is_entry(path)
    ]


def inside(path: str) -> bool:
    """Whether a relative path stays in its folder."""
    parts = path.replace("\\", "/").split("/")
    return _plain(path) and not PurePosixPath(path).is_absolute() and ".." not in parts


def is_entry(path: str | Path) -> bool:
    """Whether a path leads to a result in a store, by its last two parts: a kind and a key."""
    return _plain(str(path)) and _ENTRY.fullmatch("/".join(PurePath(path).parts[-2:])) is not None


def _plain(path: str) -> bool:
    return len(path) < 2000 and printable(path) == path and all(len(part.encode()) < 256 for part in path.split("/"))


def _contradictions(results: Results) -> list[str]:
    """What the types cannot say: repeated names and cells, methods nobody listed, intervals upside down."""
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
