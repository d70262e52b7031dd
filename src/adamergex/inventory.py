"""What a store holds, which studies need it, and what none needs. Standard library only.

Every study leaves a file ``studies/<name>.json`` in the store with the keys that it needs; a key that stands in no such
file is garbage. The file is written before the first step runs, under the lock that ``collect`` takes too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adamergex.errors import ConfigError
from adamergex.graph import MANIFEST, PARTIAL, STAGE, Step, Store, held, in_order, short

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
    contents = {
        "title": title,
        "output": place,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "keys": sorted(step.key for step in in_order(wanted)),
    }
    with held(folder / _LOCK):
        for other, found in _notes(store):
            if found["output"] == place and other != path:
                other.unlink()
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)


def studies(store: Store) -> list[dict[str, Any]]:
    """The notes of all studies: title, output, written, keys."""
    return [found for _, found in _notes(store)]


def entries(store: Store) -> list[Entry]:
    """All results of a store, the oldest first.

    Raises:
        ConfigError: there is no store.
    """
    if not store.root.is_dir():
        raise ConfigError("there is no store", where=store.root, expected="the folder 'store' in a run's output")
    users: dict[str, list[str]] = {}
    for note in studies(store):
        for key in note["keys"]:
            users.setdefault(key, []).append(note["title"])
    found = []
    for path in store.root.glob(f"*/*/{MANIFEST}"):
        if path.parent.parent.name not in (PARTIAL, STUDIES) and not path.parent.name.startswith("."):
            entry = _entry(path, users)
            found += [entry] if entry else []
    return sorted(found, key=lambda entry: (entry.finished, entry.kind, entry.label))


def listing(found: Sequence[Entry]) -> str:
    """Results as a table: kind, label, size, date, seconds, the studies that need them."""
    if not found:
        return "no results"
    wide = max(len(entry.label) for entry in found)
    lines = [f"{'kind':9s} {'label':{wide}s} {'size':>10s}  {'finished (UTC)':16s} {'seconds':>8s}  studies"]
    for entry in found:
        date, needed = entry.finished.astimezone(UTC).strftime("%Y-%m-%d %H:%M"), ", ".join(entry.studies) or "none"
        size = megabytes(entry.bytes)
        lines.append(f"{entry.kind:9s} {entry.label:{wide}s} {size:>10s}  {date} {entry.seconds:8.1f}  {needed}")
    return "\n".join([*lines, f"{len(found)} results, {megabytes(sum(entry.bytes for entry in found))}"])


def megabytes(size: int) -> str:
    """Bytes as text, in MB of 10⁶ bytes."""
    return f"{size / 1e6:.2f} MB"


def forget_study(store: Store, name: str) -> None:
    """Take a study's note away, by its title or its output folder; its results stay until ``collect``.

    Raises:
        ConfigError: no study has this title or output.
    """
    with held(store.root / STUDIES / _LOCK):
        known = _notes(store)
        place = os.path.abspath(name)  # notes hold whole paths, so that no folder of today matters
        chosen = [path for path, found in known if found["title"] == name or os.path.abspath(found["output"]) == place]
        if not chosen:
            titles = ", ".join(sorted({found["title"] for _, found in known})) or "none"
            raise ConfigError("no study of this name is in the store", where=store.root, found=name, expected=titles)
        for path in chosen:
            path.unlink()


def garbage(store: Store) -> Garbage:
    """What no study needs. What a running process holds is no garbage; neither is what lets a wanted step resume."""
    found = entries(store)
    unused = [entry for entry in found if not entry.studies and not _in_progress(store, entry.key)]
    resumable = {short(key) for note in studies(store) for key in note["keys"]} - {short(item.key) for item in found}
    leftovers = []
    for path in store.root.glob(f"*/{STAGE}*"):
        name = path.name.removeprefix(STAGE).partition("-")[0]
        if not _in_progress(store, name):
            leftovers.append(path)
    for path in (store.root / PARTIAL).glob("*"):
        if path.is_dir() and path.name not in resumable and not _in_progress(store, path.name):
            leftovers.append(path)
    return Garbage(tuple(unused), tuple(sorted(leftovers)))


def collect(store: Store, agreed: Garbage) -> Garbage:
    """Remove what was agreed and still is garbage; returns what went."""
    with held(store.root / STUDIES / _LOCK):
        now = garbage(store)
        keys, paths = {entry.key for entry in agreed.entries}, set(agreed.leftovers)
        gone = Garbage(
            tuple(entry for entry in now.entries if entry.key in keys),
            tuple(path for path in now.leftovers if path in paths),
        )
        for entry in gone.entries:
            (entry.path / MANIFEST).unlink(missing_ok=True)  # first: without it nothing here counts as a result
            shutil.rmtree(entry.path, ignore_errors=True)
        for path in gone.leftovers:
            shutil.rmtree(path, ignore_errors=True)
        for path in (store.root / PARTIAL).glob("*.lock"):  # of processes killed between a result and its lock's end
            with held(path, wait=False):
                pass
    return gone


def _notes(store: Store) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in sorted((store.root / STUDIES).glob("*.json")):
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(
                "the note of a study cannot be read", where=path, found=error, fix="run that study again, or delete it"
            ) from error
        found.append((path, note))
    return found


def _entry(path: Path, users: dict[str, list[str]]) -> Entry | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        key = str(found["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no result: the step that it belongs to will be done again
    folder = path.parent
    written = found.get("finished")
    return Entry(
        kind=str(found["kind"]),
        label=str(found["label"]),
        key=key,
        path=folder,
        bytes=int(found["bytes"]) if "bytes" in found else _size(folder),
        finished=datetime.fromisoformat(written) if written else datetime.fromtimestamp(path.stat().st_mtime, UTC),
        seconds=float(found["seconds"]),
        studies=tuple(sorted(set(users.get(key, ())))),
    )


def _in_progress(store: Store, key: str) -> bool:
    path = store.root / PARTIAL / f"{short(key)}.lock"
    if not path.exists():
        return False
    with held(path, wait=False) as free:
        return not free


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
