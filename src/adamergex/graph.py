"""Steps, their keys, and the store of their results. Standard library only: knows nothing of adapters or models.

A step is pure data. Its key is the SHA-256 of its canonical JSON (kind, version of that kind, identity) and of its
inputs' keys, so that two methods which need the same adapter share it, a changed setting re-runs only what it touches,
and corrected code never reuses what earlier code made.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from adamergex.hashing import file_sha256
from adamergex.versions import version

MANIFEST = "manifest.json"
PARTIAL = "partial"
STAGE = ".stage-"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, eq=False)
class Step:
    """One piece of work that nothing has run yet.

    Args:
        kind: which action does it.
        identity: what decides the result, without paths (contents are named by their hashes); part of the key.
        job: what the action is given; may hold paths of this machine; not part of the key.
        inputs: steps whose result directories the action reads.
        label: for people.
    """

    kind: str
    identity: Mapping[str, Any]
    job: Mapping[str, Any]
    inputs: Mapping[str, Step] = field(default_factory=dict)
    label: str = ""

    @cached_property
    def key(self) -> str:
        inputs = {name: step.key for name, step in self.inputs.items()}
        named = {"kind": self.kind, "version": version(self.kind), "identity": self.identity, "inputs": inputs}
        return hashlib.sha256(canonical(named).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


def in_order(wanted: Iterable[Step]) -> list[Step]:
    """The wanted steps and all that they need, each once, inputs first."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in ordered:
            for name in sorted(step.inputs):
                visit(step.inputs[name])
            ordered[step.key] = step

    for step in wanted:
        visit(step)
    return list(ordered.values())


def short(key: str) -> str:
    """The part of a key that names directories."""
    return key[:20]


@contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """An exclusive lock on a file that the kernel releases with the process; the file goes when the lock does.

    Yields whether the lock is ours: without ``wait`` it may be another's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            yield False
            return
        try:  # the holder before us may have removed the file that we waited for
            same = os.fstat(handle).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(handle)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


class Store:
    """Results of steps: ``root/<kind>/<key>/``, committed by one rename with the manifest written last."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[str] = set()

    def path(self, step: Step) -> Path:
        return self.root / step.kind / short(step.key)

    def workdir(self, step: Step) -> Path:
        """Where a running step keeps what lets it resume; removed when it is committed."""
        path = self.root / PARTIAL / short(step.key)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def lock(self, step: Step) -> Iterator[None]:
        """Waits until no other process makes this step, then keeps them off it; a killed process lets go."""
        with held(self.root / PARTIAL / f"{short(step.key)}.lock"):
            yield

    def forget(self, step: Step) -> None:
        """Remove a result and what would let it resume: the step is to be done again."""
        with self.lock(step):
            self._verified.discard(step.key)
            (self.path(step) / MANIFEST).unlink(missing_ok=True)  # first: without it nothing here counts as a result
            shutil.rmtree(self.path(step), ignore_errors=True)
            shutil.rmtree(self.root / PARTIAL / short(step.key), ignore_errors=True)

    def manifest(self, step: Step) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path(step) / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        return found if isinstance(found, dict) and found.get("key") == step.key else None

    def has(self, step: Step) -> bool:
        """Whether the result is there and every file still has the hash that was written; read once a process."""
        if step.key in self._verified:
            return True
        manifest, directory = self.manifest(step), self.path(step)
        if manifest is None:
            return False
        for name, digest in manifest["files"].items():
            if not (directory / name).is_file() or file_sha256(directory / name) != digest:
                return False
        self._verified.add(step.key)
        return True

    @contextmanager
    def producing(self, step: Step) -> Iterator[Path]:
        """A path (not yet there) for the action to make; committed when the block ends without an error."""
        target = self.path(step)
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f"{STAGE}{short(step.key)}-", dir=target.parent))
        began = time.monotonic()
        try:
            output = stage / "result"
            yield output
            self._write_manifest(step, output, time.monotonic() - began)
            if target.exists():  # a corrupt or half-removed entry, or the same result by another process
                shutil.rmtree(target)
            os.replace(output, target)
            self._verified.add(step.key)
            shutil.rmtree(self.root / PARTIAL / short(step.key), ignore_errors=True)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _write_manifest(self, step: Step, output: Path, seconds: float) -> None:
        files = sorted(path for path in output.rglob("*") if path.is_file())
        manifest = {
            "key": step.key,
            "kind": step.kind,
            "version": version(step.kind),
            "label": step.label,
            "identity": step.identity,
            "inputs": {name: other.key for name, other in step.inputs.items()},
            "files": {path.relative_to(output).as_posix(): file_sha256(path) for path in files},
            "bytes": sum(path.stat().st_size for path in files),
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with (output / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
