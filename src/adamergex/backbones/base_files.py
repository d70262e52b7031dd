"""The files of a backbone by its name, and their hash."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from adamergex.backbones.packaged import folder as packaged_folder
from adamergex.base_names import NAMES, PACKAGED, SHIPPED
from adamergex.base_names import folder as shipped_folder
from adamergex.errors import ModelError
from adamergex.files.inputs import DOCUMENT_BYTES, read_json_object

_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def resolve(base: str) -> str:
    """A location for transformers: the folder of a named backbone, a local folder, or the unchanged hub id.

    A packaged backbone is converted at the first call: see ``adamergex.backbones.packaged.folder``.
    Raises: ModelError: a path without a folder, or a packaged backbone that is not installed.
    """
    if base in SHIPPED:
        folder = shipped_folder(base)
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the shipped backbone {base!r} is not part of this installation",
                where=folder,
                fix="install the complete package, or name a folder or a hub id",
            )
        return str(folder)
    if base in PACKAGED:
        return str(packaged_folder(base))
    folder = Path(base).expanduser()
    if folder.is_dir():
        return str(folder)
    if base.startswith(("/", ".", "~")) or base.count("/") > 1 or folder.exists():
        raise ModelError(
            "there is no such model folder",
            where=base,
            expected=f"a folder with config.json and weights, a hub id, or one of {NAMES}",
            fix="check the path",
        )
    return base


def base_sha256(base: str) -> str:
    """SHA-256 over the names and bytes of config.json and the weight files; computed once per process."""
    files = checkpoint_files(base)
    return _hash_files(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


def checkpoint_files(base: str) -> list[Path]:
    """config.json and the weight files of a backbone. Raises: ModelError: one is missing."""
    location = resolve(base)
    config = checkpoint_file(location, "config.json")
    if config is None:
        raise ModelError("there is no config.json", where=location, fix="name a transformers checkpoint")
    for name in _WEIGHTS:
        path = checkpoint_file(location, name)
        if path is None:
            continue
        if not name.endswith(".json"):
            return [config, path]
        shards = (checkpoint_file(location, shard) for shard in _shards(path))
        return [config, *(shard for shard in shards if shard is not None)]
    raise ModelError(
        "there are no weights", where=location, expected=" or ".join(_WEIGHTS[::2]), fix="check the folder"
    )


def _shards(index: Path) -> list[str]:
    """The weight files named in an index. Raises: ModelError: a damaged index, or a name outside the folder."""
    document = read_json_object(index, what="the index of the weights", error=ModelError, limit=DOCUMENT_BYTES)
    names = document.get("weight_map")
    names = list(names.values()) if isinstance(names, dict) else [None]
    invalid = [name for name in names if not (isinstance(name, str) and _SHARD.fullmatch(name))]
    if invalid or not names:
        raise ModelError(
            "the index of the weights does not name files of its folder",
            where=index,
            found=repr(invalid[:1] or names)[:200],
            expected='{"weight_map": {tensor: file}}, each file a plain name',
            fix="copy or download the checkpoint again",
        )
    return sorted(set(names))


def checkpoint_file(location: str, name: str) -> Path | None:
    """A file of a checkpoint in a folder or on the hub; None if there is no such file."""
    if Path(location).is_dir():
        path = Path(location) / name
        return path if path.is_file() else None
    cached = cached_file(location, name, _raise_exceptions_for_missing_entries=False)
    return None if cached is None else Path(cached)


def damaged_file(base: str) -> Path | str:
    """The weight file that cannot be opened, or the only one; the library's error does not name it."""
    weights = checkpoint_files(base)[1:]
    for path in weights:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError:
                return path
    return weights[0] if len(weights) == 1 else base


@functools.lru_cache(maxsize=64)
def _hash_files(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{Path(name).name}\0{size}\0".encode())
        with Path(name).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
