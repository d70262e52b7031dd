"""What a store holds, which studies need it, and what none needs. Standard library only.

Every study leaves a file ``studies/<name>.json`` in the store with the keys that it needs; a key that stands in no such
file is garbage. The file is written before the first step runs, under the lock that ``collect`` takes too.
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
from adamergex.graph.steps import PARTIAL, STAGE, Step, Store, drop, in_order, short

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
    """What a study has noted: the ``keys`` of all steps that it needs."""

    title: str
    output: str
    written: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """The results of a store, and the entries and notes that are damaged, with the reason."""

    entries: tuple[Entry, ...]
    damaged: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class Garbage:
    """What can go: results that no study needs, and what killed runs left and nothing will use."""

    entries: tuple[Entry, ...]
    leftovers: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries) + sum(map(_size, self.leftovers))


def record(store: Store, title: str, output: Path, wanted: Iterable[Step]) -> None:
    """Note in the store that a study needs these steps and their inputs; an earlier note of the same output goes."""
    folder = store.root / STUDIES
    slug = re.sub(r"\W+", "-", title.lower()).strip("-")[:40]
    place = str(output.absolute())
    path = folder / f"{slug}-{hashlib.sha256(place.encode()).hexdigest()[:8]}.json"
    note = {
        "title": title,
        "output": place,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "keys": sorted(step.key for step in in_order(wanted)),
    }
    with file_lock(folder / _LOCK, waiting_for="another run that notes what it needs"):
        for other in _note_files(store):
            with suppress(StoreError):  # of another study, which will write it again
                if other != path and _note(other).output == place:
                    other.unlink()
        write_files(folder, {path.name: json.dumps(note, indent=1, ensure_ascii=False) + "\n"})


def studies(store: Store) -> list[Note]:
    """The notes of all studies. Raises: StoreError: one of them is damaged, so it is not known what it needs."""
    return [_note(path) for path in _note_files(store)]


def contents(store: Store) -> Contents:
    """What a store holds, the oldest first; the files of the results are not read (see ``Store.has``).

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
    found = []
    for folder in _entry_folders(store):
        try:
            found.append(_entry(folder, users))
        except StoreError as error:
            damaged.append((folder, _reason(error)))
    ordered = sorted(found, key=lambda entry: (entry.finished, entry.kind, entry.label))
    return Contents(tuple(ordered), tuple(damaged))


def entries(store: Store) -> list[Entry]:
    """All results of a store, the oldest first. Raises: StoreError: there is no store."""
    return list(contents(store).entries)


def describe(found: Contents, root: Path) -> str:
    """What a store holds as a table, and the names of what is damaged in it, with the reason."""
    lines = [f"damaged: {_plain(path.relative_to(root))} ({_plain(reason)})" for path, reason in found.damaged]
    again = ["the next run of a study that needs a damaged result makes it again"] if lines else []
    return "\n".join([listing(found.entries), *lines, *again])


def listing(found: Sequence[Entry]) -> str:
    """Results as a table: kind, label, size, date, seconds, the studies that need them."""
    if not found:
        return "no results"
    labels = [_plain(entry.label) for entry in found]
    wide = max(map(len, labels))
    lines = [f"{'kind':9s} {'label':{wide}s} {'size':>10s}  {'finished (UTC)':16s} {'seconds':>8s}  studies"]
    for entry, label in zip(found, labels, strict=True):
        date, needed = entry.finished.strftime("%Y-%m-%d %H:%M"), _plain(", ".join(entry.studies)) or "none"
        size = megabytes(entry.bytes)
        lines.append(f"{entry.kind:9s} {label:{wide}s} {size:>10s}  {date} {entry.seconds:8.1f}  {needed}")
    return "\n".join([*lines, f"{len(found)} results, {megabytes(sum(entry.bytes for entry in found))}"])


def _plain(text: object) -> str:
    """A text of a store on one line of a terminal."""
    return printable(text, 200).replace("\n", "\\n")


def megabytes(size: int) -> str:
    """Bytes as text, in MB of 10⁶ bytes."""
    return f"{size / 1e6:.2f} MB"


def forget_study(store: Store, name: str) -> None:
    """Take a study's note away, by its title or its output folder; its results stay until ``collect``.

    Raises:
        ConfigError: no study has this title or output.
        StoreError: a note is damaged.
    """
    with file_lock(store.root / STUDIES / _LOCK):
        known = [(path, _note(path)) for path in _note_files(store)]
        place = os.path.abspath(name)  # notes hold whole paths, so that no folder of today matters
        chosen = [path for path, found in known if found.title == name or os.path.abspath(found.output) == place]
        if not chosen:
            titles = ", ".join(sorted({found.title for _, found in known})) or "none"
            raise ConfigError("no study of this name is in the store", where=store.root, found=name, expected=titles)
        for path in chosen:
            path.unlink()


def garbage(store: Store) -> Garbage:
    """What no study needs. What a running process holds is no garbage; neither is what lets a wanted step resume.

    Raises: StoreError: there is no store, or a study's note is damaged.
    """
    found = contents(store)
    wanted = {short(key) for note in studies(store) for key in note.keys}
    unused = [entry for entry in found.entries if not entry.studies and not _in_progress(store, entry.key)]
    resumable = wanted - {short(item.key) for item in found.entries}
    leftovers = [path for path, _ in found.damaged if path.name not in wanted and not _in_progress(store, path.name)]
    for path in store.root.glob(f"*/{STAGE}*"):
        name = path.name.removeprefix(STAGE).partition("-")[0]
        if not _in_progress(store, name):
            leftovers.append(path)
    for path in (store.root / PARTIAL).glob("*"):
        if path.suffix != ".lock" and path.name not in resumable and not _in_progress(store, path.name):
            leftovers.append(path)
    return Garbage(tuple(unused), tuple(sorted(leftovers)))


def collect(store: Store, agreed: Garbage) -> Garbage:
    """Remove what was agreed and still is garbage; returns what went."""
    with file_lock(store.root / STUDIES / _LOCK):
        now = garbage(store)
        keys, paths = {entry.key for entry in agreed.entries}, set(agreed.leftovers)
        gone = Garbage(
            tuple(entry for entry in now.entries if entry.key in keys),
            tuple(path for path in now.leftovers if path in paths),
        )
        for path in (*(entry.path for entry in gone.entries), *gone.leftovers):
            drop(path)
        for path in (store.root / PARTIAL).glob("*.lock"):  # of processes killed between a result and its lock's end
            with file_lock(path, wait=False):
                pass
    return gone


def _note_files(store: Store) -> list[Path]:
    return sorted((store.root / STUDIES).glob("*.json"))


def _note(path: Path) -> Note:
    """A study's note. Raises: StoreError."""
    found = read_json_object(path, what="the note of a study", error=StoreError, limit=DOCUMENT_BYTES)
    texts = all(isinstance(found.get(name), str) for name in ("title", "output", "written"))
    keys = found.get("keys")
    if not texts or not isinstance(keys, list) or not all(map(is_key, keys)):
        raise StoreError(
            "the note of a study is damaged",
            where=path,
            found=", ".join(f"{name}: {type(value).__name__}" for name, value in found.items()) or "nothing",
            expected="title, output, written and keys",
            fix="run that study again, or delete the note",
        )
    return Note(found["title"], found["output"], found["written"], tuple(keys))


def _entry_folders(store: Store) -> Iterable[Path]:
    """The folders that are results, or were."""
    for kind in sorted(store.root.iterdir()):
        if kind.is_dir() and kind.name not in (PARTIAL, STUDIES) and not kind.name.startswith("."):
            yield from (path for path in sorted(kind.iterdir()) if not path.name.startswith("."))


def _entry(folder: Path, users: dict[str, list[str]]) -> Entry:
    if folder.is_symlink() or not folder.is_dir():
        raise StoreError("a result is a link or a file", where=folder, found="a link or a file")
    found = manifests.read(folder)
    if (found.kind, short(found.key)) != (folder.parent.name, folder.name):
        raise StoreError("a manifest is of another result", where=folder, found=f"{found.kind}/{short(found.key)}")
    needed_by = tuple(sorted(set(users.get(found.key, ()))))
    return Entry(found.kind, found.label, found.key, folder, found.bytes, found.date, float(found.seconds), needed_by)


def _reason(error: StoreError) -> str:
    return f"{error.problem}: {error.found}"


def _in_progress(store: Store, key: str) -> bool:
    path = store.root / PARTIAL / f"{short(key)}.lock"
    if not path.exists():
        return False
    with file_lock(path, wait=False) as free:
        return not free


def _size(place: Path) -> int:
    """Bytes below a folder, or of a file; links count as themselves."""
    return sum(path.lstat().st_size for path in (place, *place.rglob("*")) if path.is_symlink() or path.is_file())
