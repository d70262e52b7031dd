"""Evidence from the run's files: single answers, lineages of adapters, and the similarity of divergences.

Missing files are skipped; unreadable files become a note, so that a partial run still gets a report.
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
    """One answer: the item's name, the gold answer and the prediction; ``share`` of it is right (1: all)."""

    name: str
    gold: str
    predicted: str
    share: float

    @property
    def right(self) -> bool:
        return self.share >= 1 - 1e-9


@dataclass(frozen=True)
class Ancestor:
    """An adapter in a cell's lineage: its role for its child, its title and details, and its parents."""

    role: str
    title: str
    detail: str
    path: str | None
    parents: tuple[Ancestor, ...] = ()


@dataclass(frozen=True)
class CellEvidence:
    """A cell with a few of its answers and the lineage of its adapter."""

    cell: CellResult
    items: tuple[Item, ...]
    made: Ancestor | None


@dataclass(frozen=True)
class Evidence:
    """The evidence of a run's cells. ``similarity``: mean cosines and norms over the seeds."""

    behind: tuple[CellEvidence, ...] = ()
    similarity: Similarity | None = None
    notes: tuple[str, ...] = field(default=())


def gather(results: Results, directory: str | Path) -> Evidence:
    """Read the files that the results' paths name, relative to ``directory``."""
    folder, notes = Path(directory).resolve(), list[str]()
    lineages = _LineageReader(results, folder, notes)
    behind = tuple(
        CellEvidence(cell, _items(cell, folder, notes), lineages.ancestor_of(cell)) for cell in results.cells
    )
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


class _LineageReader:
    """Reads lineages; an adapter that several cells share is read once."""

    def __init__(self, results: Results, folder: Path, notes: list[str]) -> None:
        self.folder, self.notes = folder, notes
        placed = [(item, folder / item.path) for item in results.adapters if item.path]
        self._trained = {os.path.realpath(path): item for item, path in placed}
        self._keys = {path.name: path for _, path in placed}
        self._known: dict[Path, Ancestor] = {}

    def ancestor_of(self, cell: CellResult) -> Ancestor | None:
        """The adapter of a cell, with its ancestors."""
        path = self.folder / cell.adapter if cell.adapter else None
        return None if path is None or not path.is_dir() else self._ancestor("", path, 0)

    def _ancestor(self, role: str, path: Path, depth: int) -> Ancestor:
        if path not in self._known:
            self._known[path] = Ancestor("", "adapter", "", None)  # for a lineage that names itself
            self._known[path] = self._read(path, depth)
        return replace(self._known[path], role=role)

    def _read(self, path: Path, depth: int) -> Ancestor:
        relative, trained = os.path.relpath(path, self.folder), self._trained.get(os.path.realpath(path))
        try:
            record = lineage.read(path)
        except AdamergexError as error:
            self.notes.append(f"{error.lines[0]} ({relative})")
            record = None
        if record is None:  # a stack: its adapters are in subfolders
            folders = sorted(path.iterdir()) if depth == 0 else []
            inner = [item for item in folders if (item / lineage.FILE_NAME).is_file()][:_PARTS]
            parts = tuple(self._ancestor(item.name, item, depth + 1) for item in inner)
            return Ancestor("", "stack" if parts else trained.name if trained else "adapter", "", relative, parts)
        recorded = sorted(record.parents.items(), key=lambda pair: pair[0] != "task") if depth < _DEPTH else []
        known = [(name, parent) for name, parent in recorded if isinstance(parent, Mapping)][:_PARTS]
        parents = tuple(self._parent(name.replace("_", " "), parent, depth) for name, parent in known)
        title = trained.name if trained else "merged" if record.merge else "trained"
        return Ancestor("", title, _detail(record), relative, parents)

    def _parent(self, role: str, record: Mapping[str, object], depth: int) -> Ancestor:
        """The parent at its recorded path, else with the same key in the current store, else its record alone."""
        recorded = Path(str(record.get("path")))
        candidates = (recorded if is_entry(recorded) else None, self._keys.get(recorded.name))
        path = next((path for path in candidates if path and path.is_absolute() and path.is_dir()), None)
        if path is not None:
            return self._ancestor(role, path, depth + 1)
        language = f" · {record['language']}" if record.get("language") else ""
        return Ancestor(role, f"adapter{language}", f"SHA-256 {str(record.get('sha256'))[:12]}…", None)


def _detail(record: Lineage) -> str:
    if record.merge:
        weight, space = _amount(record.merge.get("weight")), record.merge.get("space")
        words = [f"rule {record.merge.get('rule')}"] + ([f"{space} space"] if space else [])
        words.append(f"modules {record.merge.get('modules')}")
        return ", ".join(words + ([f"λ = {weight:g}"] if weight is not None else []))
    training = record.settings.get("training")
    known = training if isinstance(training, Mapping) else {}
    tokens, loss = _amount(known.get("tokens")), _amount(known.get("loss"))
    words = [str((record.task or {}).get("kind", "")), f"language {record.language}" if record.language else ""]
    words += [f"{tokens:,} tokens"] if tokens else []
    words += [f"loss {number(loss, 3)}"] if loss is not None else []
    return ", ".join(word for word in words if word)


def _amount(value: object) -> float | None:
    """A number from a lineage, or None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e15 else None


def _similarity(results: Results, folder: Path, notes: list[str]) -> Similarity | None:
    """The mean over seeds of the cosines between the languages' divergences, if all seeds have the same languages."""
    by_seed = []
    for seed in results.seeds:
        references = _references(results, seed, folder)
        source = references.pop(results.source, None)
        if source is None or len(references) < 2:
            return None
        try:
            by_seed.append(similarity(source, references))
        except AdamergexError as error:
            notes.append(f"No similarity of divergences: {error.lines[0]}")
            return None
    if not by_seed or len({item.languages for item in by_seed}) > 1:
        return None
    size = range(len(by_seed[0].languages))
    cosines = tuple(tuple(_mean([item.cosines[i][j] for item in by_seed]) for j in size) for i in size)
    return replace(by_seed[0], cosines=cosines, norms=tuple(fmean(item.norms[i] for item in by_seed) for i in size))


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
