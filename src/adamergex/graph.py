"""Steps, their keys, and the store of their results. Standard library only: knows nothing of adapters or models.

A step is pure data. Its key is the SHA-256 of its canonical JSON (kind, identity) and of its inputs' keys, so that two
methods which need the same adapter share it, and a changed setting re-runs only what it touches.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adamergex.hashing import file_sha256

MANIFEST = "manifest.json"


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
        text = canonical({"kind": self.kind, "identity": self.identity, "inputs": inputs})
        return hashlib.sha256(text.encode()).hexdigest()

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


class Store:
    """Results of steps: ``root/<kind>/<key>/``, committed by one rename with the manifest written last."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[str] = set()

    def path(self, step: Step) -> Path:
        return self.root / step.kind / step.key[:20]

    def workdir(self, step: Step) -> Path:
        """Where a running step keeps what lets it resume; removed when it is committed."""
        path = self.root / "partial" / step.key[:20]
        path.mkdir(parents=True, exist_ok=True)
        return path

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
        stage = Path(tempfile.mkdtemp(prefix=".stage-", dir=target.parent))
        began = time.monotonic()
        try:
            output = stage / "result"
            yield output
            self._write_manifest(step, output, time.monotonic() - began)
            if target.exists():  # a corrupt or half-removed entry, or the same result by another process
                shutil.rmtree(target)
            os.replace(output, target)
            self._verified.add(step.key)
            shutil.rmtree(self.root / "partial" / step.key[:20], ignore_errors=True)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _write_manifest(self, step: Step, output: Path, seconds: float) -> None:
        files = sorted(path for path in output.rglob("*") if path.is_file())
        manifest = {
            "key": step.key,
            "kind": step.kind,
            "label": step.label,
            "identity": step.identity,
            "inputs": {name: other.key for name, other in step.inputs.items()},
            "files": {path.relative_to(output).as_posix(): file_sha256(path) for path in files},
            "seconds": round(seconds, 3),
        }
        with (output / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
