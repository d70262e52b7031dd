"""Steps, their keys, and the store of their results. Standard library only, independent of adapters and models.

A step is pure data. Its key is the SHA-256 of its canonical JSON (kind, version of that kind, identity) and of its
inputs' keys, so that two methods share the adapters that both need, a changed setting re-runs only the affected steps,
and corrected code never reuses results of earlier code.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from adamergex.files.hashing import file_sha256
from adamergex.files.inputs import Json
from adamergex.files.locks import file_lock
from adamergex.files.outputs import remove, sync, sync_tree
from adamergex.graph import manifests
from adamergex.graph.manifests import Manifest, StoreError
from adamergex.graph.versions import version

MANIFEST = manifests.FILE_NAME
PARTIAL = "partial"
STAGE = ".stage-"


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text; rejects NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, eq=False)
class Step:
    """One unit of work, as data.

    Args:
        kind: the action that runs it.
        identity: everything that determines the result, without paths (contents as hashes); part of the key.
        job: the action's argument (see ``jobs``); may hold paths of this machine; not part of the key.
        inputs: steps whose result directories the action reads.
        label: a name for messages.
    """

    kind: str
    identity: Mapping[str, Json]
    job: object
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
    """The wanted steps and their dependencies without duplicates, inputs first."""
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


class Store:
    """Results of steps: ``root/<kind>/<key>/``, committed by one rename with the manifest written last.

    A store is not trusted: a result is valid if its manifest is (see ``manifests``) and every file has the recorded
    hash. ``damaged``: key -> reason, for results that are not valid.

    Raises: StoreError: a folder of the store is a link, which could lead out of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: dict[str, str] = {}
        self._verified: set[str] = set()
        for folder in root.iterdir() if root.is_dir() else ():
            if folder.is_symlink():
                raise StoreError(
                    "a folder of the store is a link",
                    where=folder,
                    found=os.readlink(folder),
                    expected="folders of its own",
                    fix="move the whole store to another place, not a part of it",
                )

    def path(self, step: Step) -> Path:
        return self.root / step.kind / short(step.key)

    def workdir(self, step: Step) -> Path:
        """The folder of a running step's checkpoints; removed when the result is committed."""
        path = self.root / PARTIAL / short(step.key)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def lock(self, step: Step) -> Iterator[None]:
        """Lock the step against other processes, after waiting for them; a killed process releases its lock."""
        with file_lock(
            self.root / PARTIAL / f"{short(step.key)}.lock",
            waiting_for=f"another run that makes {step.kind} {step.label}",
        ):
            yield

    def forget(self, step: Step) -> None:
        """Remove a result and its checkpoints, so that the step runs again."""
        with self.lock(step):
            self._verified.discard(step.key)
            drop_entry(self.path(step))
            remove(self.root / PARTIAL / short(step.key))

    def manifest(self, step: Step) -> Manifest | None:
        """The manifest of a step's result; None if it is missing or damaged."""
        try:
            manifest = manifests.read(self.path(step))
        except StoreError:
            return None
        return manifest if manifest.key == step.key else None

    def has(self, step: Step) -> bool:
        """Whether the result exists and every file still has its recorded hash.

        Files are hashed once per process, at the first call: when a run checks what is done, and when a worker is about
        to use the result as an input. A damaged result is recorded in ``damaged``.
        """
        if step.key in self._verified:
            return True
        if not os.path.lexists(self.path(step)):
            return False
        problem = self._problem(step)
        if problem is None:
            self.damaged.pop(step.key, None)
            self._verified.add(step.key)
        else:
            self.damaged[step.key] = problem
        return problem is None

    def _problem(self, step: Step) -> str | None:
        directory = self.path(step)
        if directory.is_symlink():
            return "it is a link"
        try:
            manifest = manifests.read(directory)
        except StoreError as error:
            return str(error.found) if "damaged" in error.problem else f"{error.problem}: {error.found}"
        if manifest.key != step.key:
            return "its manifest is of another result"
        for name, digest in manifest.files.items():
            if problem := _file_problem(directory, name, digest):
                return problem
        return None

    @contextmanager
    def producing(self, step: Step) -> Iterator[Path]:
        """A path that the action creates; committed when the block ends without an error.

        Only the holder of the step's lock may call this: it removes what a killed run staged for the step."""
        target = self.path(step)
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{STAGE}{short(step.key)}-"
        for left in target.parent.glob(f"{prefix}*"):
            remove(left)
        stage = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        began = time.monotonic()
        try:
            output = stage / "result"
            yield output
            self._write_manifest(step, output, time.monotonic() - began)
            if os.path.lexists(target):  # a damaged or half-removed entry
                drop_entry(target)
            os.replace(output, target)
            sync(target.parent)
            self._verified.add(step.key)
            self.damaged.pop(step.key, None)
            remove(self.root / PARTIAL / short(step.key))
        finally:
            remove(stage)

    def _write_manifest(self, step: Step, output: Path, seconds: float) -> None:
        files = sorted(path for path in output.rglob("*") if path.is_file())
        manifest = Manifest(
            key=step.key,
            kind=step.kind,
            version=version(step.kind),
            label=step.label,
            identity=step.identity,
            inputs={name: parent.key for name, parent in step.inputs.items()},
            files={path.relative_to(output).as_posix(): file_sha256(path) for path in files},
            bytes=sum(path.stat().st_size for path in files),
            seconds=round(seconds, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        (output / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        sync_tree(output)


def drop_entry(entry: Path) -> None:
    """Remove a result from a store, the manifest first: without it, the entry is not a result."""
    if not entry.is_symlink():
        remove(entry / MANIFEST)
    remove(entry)


def _file_problem(directory: Path, name: str, digest: str) -> str | None:
    path = directory / name
    if any(part.is_symlink() for part in (path, *path.parents[: len(Path(name).parts) - 1])):
        return f"{name} is a link"
    if not path.is_file():
        return f"{name} is not there"
    try:
        return None if file_sha256(path) == digest else f"{name} does not have the hash of its manifest"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
