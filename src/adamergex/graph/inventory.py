"""The contents of a store, the studies that need them, and garbage. Standard library only.

Every study writes a file ``studies/<name>.json`` to the store with the keys that it needs; a key in no such file is
garbage. The file is written before the first step runs, under the lock that ``collect_garbage`` also takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from adamergex.errors import ConfigError, printable
from adamergex.files.inputs import DOCUMENT_BYTES, read_json_object
from adamergex.files.locks import file_lock
from adamergex.files.outputs import write_files
from adamergex.graph import manifests
from adamergex.graph.manifests import StoreError, is_key
from adamergex.graph.steps import PARTIAL, STAGE, Step, Store, drop_entry, in_order, short

STUDIES = "studies"
_LOCK = ".lock"


@dataclass(frozen=True)
class Entry:
    """One result in a store. ``studies``: the titles of those that need it."""

    kind: str
    label: str
    key: str
    path: Path
    bytes: int
    finished: datetime
    seconds: float
    studies: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """A study's note in the store: the ``keys`` of all steps that it needs."""

    title: str
    output: str
    written: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """The results of a store, and its damaged entries and notes with the reason."""

    entries: tuple[Entry, ...]
    damaged: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class Garbage:
    """Removable contents: results that no study needs, and unusable leftovers of killed runs."""

    entries: tuple[Entry, ...]
    leftovers: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries) + sum(map(_size, self.leftovers))


def record(store: Store, title: str, output: Path, wanted: Iterable[Step]) -> None:
    """Note in the store that a study needs these steps and their inputs; replaces earlier notes of the same output."""
    folder = store.root / STUDIES
    slug = re.sub(r"\W+", "-", title.lower()).strip("-")[:40]
    absolute = str(output.absolute())
    path = folder / f"{slug}-{hashlib.sha256(absolute.encode()).hexdigest()[:8]}.json"
    note = {
        "title": title,
        "output": absolute,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "keys": sorted(step.key for step in in_order(wanted)),
    }
    with file_lock(folder / _LOCK, waiting_for="another run that notes what it needs"):
        for other in _note_files(store):
            with suppress(StoreError):  # a damaged note of another study, which will write it again
                if other != path and _note(other).output == absolute:
                    other.unlink()
        write_files(folder, {path.name: json.dumps(note, indent=1, ensure_ascii=False) + "\n"})


def studies(store: Store) -> list[Note]:
    """The notes of all studies. Raises: StoreError: a note is damaged, so the study's needs are unknown."""
    return [_note(path) for path in _note_files(store)]


def contents(store: Store) -> Contents:
    """The contents of a store, oldest first; does not read the files of the results (see ``Store.has``).

    Raises:
        StoreError: there is no store.
    """
    if not store.root.is_dir():
        raise StoreError("there is no store", where=store.root, expected="the folder 'store' in a run's output")
    damaged: list[tuple[Path, str]] = []
    users: dict[str, list[str]] = {}
    for path in _note_files(store):
        try:
            note = _note(path)
        except StoreError as error:
            damaged.append((path, _reason(error)))
            continue
        for key in note.keys:
            users.setdefault(key, []).append(note.title)
    results = []
    for folder in _entry_folders(store):
        try:
            results.append(_entry(folder, users))
        except StoreError as error:
            damaged.append((folder, _reason(error)))
    ordered = sorted(results, key=lambda entry: (entry.finished, entry.kind, entry.label))
    return Contents(tuple(ordered), tuple(damaged))


def entries(store: Store) -> list[Entry]:
    """All results of a store, oldest first. Raises: StoreError: there is no store."""
    return list(contents(store).entries)


def describe(store_contents: Contents, root: Path) -> str:
    """The contents of a store as a table, followed by damaged entries with the reason."""
    damaged = store_contents.damaged
    lines = [f"damaged: {_one_line(path.relative_to(root))} ({_one_line(reason)})" for path, reason in damaged]
    again = ["the next run of a study that needs a damaged result makes it again"] if lines else []
    return "\n".join([listing(store_contents.entries), *lines, *again])


def listing(results: Sequence[Entry]) -> str:
    """Results as a table: kind, label, size, date, seconds, the studies that need them."""
    if not results:
        return "no results"
    labels = [_one_line(entry.label) for entry in results]
    wide = max(map(len, labels))
    lines = [f"{'kind':9s} {'label':{wide}s} {'size':>10s}  {'finished (UTC)':16s} {'seconds':>8s}  studies"]
    for entry, label in zip(results, labels, strict=True):
        date, needed = entry.finished.strftime("%Y-%m-%d %H:%M"), _one_line(", ".join(entry.studies)) or "none"
        size = megabytes(entry.bytes)
        lines.append(f"{entry.kind:9s} {label:{wide}s} {size:>10s}  {date} {entry.seconds:8.1f}  {needed}")
    return "\n".join([*lines, f"{len(results)} results, {megabytes(sum(entry.bytes for entry in results))}"])


def _one_line(text: object) -> str:
    """A text from a store as one printable line."""
    return printable(text, 200).replace("\n", "\\n")


def megabytes(size: int) -> str:
    """Bytes as text, in MB of 10⁶ bytes."""
    return f"{size / 1e6:.2f} MB"


def forget_study(store: Store, name: str) -> None:
    """Remove a study's note, by its title or its output folder; its results stay until ``collect_garbage``.

    Raises:
        ConfigError: no study has this title or output.
        StoreError: a note is damaged.
    """
    with file_lock(store.root / STUDIES / _LOCK):
        known = [(path, _note(path)) for path in _note_files(store)]
        absolute = os.path.abspath(name)  # notes hold absolute paths, independent of the current folder
        chosen = [path for path, note in known if note.title == name or os.path.abspath(note.output) == absolute]
        if not chosen:
            titles = ", ".join(sorted({note.title for _, note in known})) or "none"
            raise ConfigError("no study of this name is in the store", where=store.root, found=name, expected=titles)
        for path in chosen:
            path.unlink()


def garbage(store: Store) -> Garbage:
    """Contents that no study needs, without those locked by a running process or needed to resume a wanted step.

    Raises: StoreError: there is no store, or a study's note is damaged.
    """
    store_contents = contents(store)
    wanted = {short(key) for note in studies(store) for key in note.keys}
    results, damaged = store_contents.entries, (path for path, _ in store_contents.damaged)
    unused = [entry for entry in results if not entry.studies and not _in_progress(store, entry.key)]
    resumable = wanted - {short(entry.key) for entry in results}
    leftovers = [path for path in damaged if path.name not in wanted and not _in_progress(store, path.name)]
    for path in store.root.glob(f"*/{STAGE}*"):
        name = path.name.removeprefix(STAGE).partition("-")[0]
        if not _in_progress(store, name):
            leftovers.append(path)
    for path in (store.root / PARTIAL).glob("*"):
        if path.suffix != ".lock" and path.name not in resumable and not _in_progress(store, path.name):
            leftovers.append(path)
    return Garbage(tuple(unused), tuple(sorted(leftovers)))


def collect_garbage(store: Store, agreed: Garbage) -> Garbage:
    """Remove the agreed contents that are still garbage; returns what was removed."""
    with file_lock(store.root / STUDIES / _LOCK):
        current = garbage(store)
        keys, paths = {entry.key for entry in agreed.entries}, set(agreed.leftovers)
        removed = Garbage(
            tuple(entry for entry in current.entries if entry.key in keys),
            tuple(path for path in current.leftovers if path in paths),
        )
        for path in (*(entry.path for entry in removed.entries), *removed.leftovers):
            drop_entry(path)
        for path in (store.root / PARTIAL).glob("*.lock"):  # of processes killed before they released their lock
            with file_lock(path, wait=False):
                pass
    return removed


def _note_files(store: Store) -> list[Path]:
    return sorted((store.root / STUDIES).glob("*.json"))


def _note(path: Path) -> Note:
    """A study's note. Raises: StoreError."""
    note = read_json_object(path, what="the note of a study", error=StoreError, limit=DOCUMENT_BYTES)
    texts = all(isinstance(note.get(name), str) for name in ("title", "output", "written"))
    keys = note.get("keys")
    if not texts or not isinstance(keys, list) or not all(map(is_key, keys)):
        raise StoreError(
            "the note of a study is damaged",
            where=path,
            found=", ".join(f"{name}: {type(value).__name__}" for name, value in note.items()) or "nothing",
            expected="title, output, written and keys",
            fix="run that study again, or delete the note",
        )
    return Note(note["title"], note["output"], note["written"], tuple(keys))


def _entry_folders(store: Store) -> Iterable[Path]:
    """The folders of results, including damaged ones."""
    for kind in sorted(store.root.iterdir()):
        if kind.is_dir() and kind.name not in (PARTIAL, STUDIES) and not kind.name.startswith("."):
            yield from (path for path in sorted(kind.iterdir()) if not path.name.startswith("."))


def _entry(folder: Path, users: dict[str, list[str]]) -> Entry:
    if folder.is_symlink() or not folder.is_dir():
        raise StoreError("a result is a link or a file", where=folder, found="a link or a file")
    manifest = manifests.read(folder)
    kind, key = manifest.kind, manifest.key
    if (kind, short(key)) != (folder.parent.name, folder.name):
        raise StoreError("a manifest is of another result", where=folder, found=f"{kind}/{short(key)}")
    needed_by = tuple(sorted(set(users.get(key, ()))))
    return Entry(kind, manifest.label, key, folder, manifest.bytes, manifest.date, float(manifest.seconds), needed_by)


def _reason(error: StoreError) -> str:
    return f"{error.problem}: {error.found}"


def _in_progress(store: Store, key: str) -> bool:
    path = store.root / PARTIAL / f"{short(key)}.lock"
    if not path.exists():
        return False
    with file_lock(path, wait=False) as free:
        return not free


def _size(root: Path) -> int:
    """Bytes of a file or of all files in a folder; links are not followed."""
    return sum(path.lstat().st_size for path in (root, *root.rglob("*")) if path.is_symlink() or path.is_file())
