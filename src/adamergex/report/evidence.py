"""What lies behind the numbers, read from the run's own files: single answers, ancestors, and divergences alike or not.

Files that are not there are left out; files that cannot be read become a note, because a report of what is there is
better than none.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from adamergex.errors import AdamergexError, DataError
from adamergex.files import lineage
from adamergex.files.lineage import Lineage
from adamergex.files.records import Prediction, predictions
from adamergex.merging import Similarity, similarity
from adamergex.report.numbers import number
from adamergex.report.results import CellResult, Results
from adamergex.report.results_file import is_entry

WRONG, RIGHT, LENGTH = 3, 2, 90
_DEPTH, _PARTS = 8, 16


@dataclass(frozen=True)
class Item:
    """One answer: which item, what was right, what was said; ``share`` of it is right (1: all)."""

    name: str
    gold: str
    predicted: str
    share: float

    @property
    def right(self) -> bool:
        return self.share >= 1 - 1e-9


@dataclass(frozen=True)
class Ancestor:
    """An adapter of a cell's lineage: what it is to its child, what it is itself, and what it was made from."""

    role: str
    title: str
    detail: str
    path: str | None
    parents: tuple[Ancestor, ...] = ()


@dataclass(frozen=True)
class Behind:
    """A cell with a few of its answers and the adapters that made it."""

    cell: CellResult
    items: tuple[Item, ...]
    made: Ancestor | None


@dataclass(frozen=True)
class Evidence:
    """What stands behind a run's cells. ``similarity``: of the seeds' cosines and norms the mean."""

    behind: tuple[Behind, ...] = ()
    similarity: Similarity | None = None
    notes: tuple[str, ...] = field(default=())


def gather(results: Results, directory: str | Path) -> Evidence:
    """Read what the results' paths lead to; they are paths from ``directory``."""
    folder, notes = Path(directory).resolve(), list[str]()
    family = _Family(results, folder, notes)
    behind = tuple(Behind(cell, _items(cell, folder, notes), family.made(cell)) for cell in results.cells)
    return Evidence(behind, _similarity(results, folder, notes), tuple(dict.fromkeys(notes)))


def _items(cell: CellResult, folder: Path, notes: list[str]) -> tuple[Item, ...]:
    """The first wrong and the first right answers."""
    path = folder / cell.predictions if cell.predictions else None
    if path is None or not path.is_file():
        return ()
    wrong, right = list[Item](), list[Item]()
    try:
        for row in predictions(path):
            item = _item(row)
            chosen, most = (right, RIGHT) if item.right else (wrong, WRONG)
            if len(chosen) < most:
                chosen.append(item)
            if len(wrong) == WRONG and len(right) == RIGHT:
                break
    except DataError as error:
        notes.append(f"{cell.predictions} cannot be read: {error.found}.")
        return ()
    return (*wrong, *right)


def _item(row: Prediction) -> Item:
    hits, of = row.get("tally", (row["gold"] == row["predicted"], 1))
    return Item(str(row["id"]), _words(row["gold"]), _words(row["predicted"]), hits / of if of else 1.0)


def _words(value: object) -> str:
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    words = " ".join(words.split())
    return words if len(words) <= LENGTH else words[: LENGTH - 1] + "…"


class _Family:
    """Reads lineages; an adapter that many cells share is read once."""

    def __init__(self, results: Results, folder: Path, notes: list[str]) -> None:
        self.folder, self.notes = folder, notes
        placed = [(item, folder / item.path) for item in results.adapters if item.path]
        self._trained = {os.path.realpath(path): item for item, path in placed}
        self._keys = {path.name: path for _, path in placed}
        self._known: dict[Path, Ancestor] = {}

    def made(self, cell: CellResult) -> Ancestor | None:
        """What answered in a cell, with all that it was made from."""
        path = self.folder / cell.adapter if cell.adapter else None
        return None if path is None or not path.is_dir() else self._ancestor("", path, 0)

    def _ancestor(self, role: str, path: Path, depth: int) -> Ancestor:
        if path not in self._known:
            self._known[path] = Ancestor("", "adapter", "", None)  # what a lineage that names itself leads to
            self._known[path] = self._read(path, depth)
        return replace(self._known[path], role=role)

    def _read(self, path: Path, depth: int) -> Ancestor:
        relative, trained = os.path.relpath(path, self.folder), self._trained.get(os.path.realpath(path))
        try:
            own = lineage.read(path)
        except AdamergexError as error:
            self.notes.append(f"{error.lines[0]} ({relative})")
            own = None
        if own is None:  # a stack: its adapters lie in folders of their own
            folders = sorted(path.iterdir()) if depth == 0 else []
            inner = [item for item in folders if (item / lineage.FILE_NAME).is_file()][:_PARTS]
            parts = tuple(self._ancestor(item.name, item, depth + 1) for item in inner)
            return Ancestor("", "stack" if parts else trained.name if trained else "adapter", "", relative, parts)
        records = sorted(own.parents.items(), key=lambda pair: pair[0] != "task") if depth < _DEPTH else []
        known = [(name, record) for name, record in records if isinstance(record, Mapping)][:_PARTS]
        parents = tuple(self._parent(name.replace("_", " "), record, depth) for name, record in known)
        title = trained.name if trained else "merged" if own.merge else "trained"
        return Ancestor("", title, _detail(own), relative, parents)

    def _parent(self, role: str, record: Mapping[str, object], depth: int) -> Ancestor:
        """Where it was, else the adapter of the same key in today's store, else what was recorded of it."""
        was = Path(str(record.get("path")))
        places = (was if is_entry(was) else None, self._keys.get(was.name))
        place = next((path for path in places if path and path.is_absolute() and path.is_dir()), None)
        if place is not None:
            return self._ancestor(role, place, depth + 1)
        language = f" · {record['language']}" if record.get("language") else ""
        return Ancestor(role, f"adapter{language}", f"SHA-256 {str(record.get('sha256'))[:12]}…", None)


def _detail(own: Lineage) -> str:
    if own.merge:
        weight, space = _amount(own.merge.get("weight")), own.merge.get("space")
        words = [
            f"rule {own.merge.get('rule')}",
            f"{space} space" if space else "",
            f"modules {own.merge.get('modules')}",
        ]
        return ", ".join([word for word in words if word] + ([f"λ = {weight:g}"] if weight is not None else []))
    training = own.settings.get("training")
    known = training if isinstance(training, Mapping) else {}
    tokens, loss = _amount(known.get("tokens")), _amount(known.get("loss"))
    words = [str((own.task or {}).get("kind", "")), f"language {own.language}" if own.language else ""]
    words += [f"{tokens:,} tokens"] if tokens else []
    words += [f"loss {number(loss, 3)}"] if loss is not None else []
    return ", ".join(word for word in words if word)


def _amount(value: object) -> float | None:
    """A number of a lineage, or None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e15 else None


def _similarity(results: Results, folder: Path, notes: list[str]) -> Similarity | None:
    """The mean over seeds of the cosines between the divergences of the languages that every seed has."""
    found = []
    for seed in results.seeds:
        places = _references(results, seed, folder)
        source = places.pop(results.source, None)
        if source is None or len(places) < 2:
            return None
        try:
            found.append(similarity(source, places))
        except AdamergexError as error:
            notes.append(f"No similarity of divergences: {error.lines[0]}")
            return None
    if not found or len({item.languages for item in found}) > 1:
        return None
    size = range(len(found[0].languages))
    cosines = tuple(tuple(_mean([item.cosines[i][j] for item in found]) for j in size) for i in size)
    return replace(found[0], cosines=cosines, norms=tuple(fmean(item.norms[i] for item in found) for i in size))


def _references(results: Results, seed: int, folder: Path) -> dict[str, Path]:
    """Language -> the reference adapter of a seed, in the order of the targets."""
    several = len(results.seeds) > 1
    chosen = [
        item
        for item in results.adapters
        if item.path
        and item.name.startswith("reference")
        and (not several or re.search(rf"\bseed {seed}\b", item.name))
    ]
    order = {language: index for index, language in enumerate((results.source, *results.targets))}
    chosen.sort(key=lambda item: order.get(item.language, len(order)))
    return {item.language: folder / str(item.path) for item in chosen if (folder / str(item.path)).is_dir()}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) and all(map(math.isfinite, known)) else None
