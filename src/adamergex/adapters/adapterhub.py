"""Bottleneck adapter directories: AdapterHub's in any dialect, and ours; read, written, imported, exported.

Ours is AdapterHub's ``adapter_config.json`` beside ``adapter_model.safetensors``, whose tensors are named by structure
(``layers.3.output.down.weight``) so that adapters of different names and bases can be compared tensor by tensor.
"""

from __future__ import annotations

import json
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adamergex.adapters import dialects
from adamergex.adapters.places import find_places
from adamergex.errors import AdapterFileError
from adamergex.lineage import FILE_NAME, Lineage
from adamergex.lineage import read as read_lineage
from adamergex.outputs import staged_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adamergex.adapters.bottleneck import BottleneckConfig

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PICKLE, SAFE = "pytorch_adapter.bin", "adapter.safetensors"
HEAD_CONFIG, HEAD_PICKLE, HEAD_SAFE = "head_config.json", "pytorch_model_head.bin", "model_head.safetensors"
_FILES = (CONFIG, TENSORS, SAFE, PICKLE, HEAD_CONFIG, HEAD_SAFE, HEAD_PICKLE, FILE_NAME)
_METADATA = ("hidden_size", "model_class", "model_name", "model_type")
_MOST_JSON, _MOST_BYTES = 64 << 20, 16 << 30


@dataclass(frozen=True, eq=False)
class HeadFiles:
    """A prediction head beside an adapter: ``head_config.json`` and its tensors, as they are in the file."""

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """An adapter in memory, independent of any model: tensors under our names. ``metadata``: the base's name, class,
    type and hidden size."""

    name: str
    config: BottleneckConfig
    tensors: Mapping[str, torch.Tensor]
    head: HeadFiles | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lineage: Lineage | None = None


def read_adapter(directory: str | Path) -> AdapterFiles:
    """Read a bottleneck adapter: safetensors where there are any, else ``pytorch_adapter.bin`` as plain tensors.

    Nothing in a file is ever executed (``torch.load(weights_only=True)``, torch >= 2.10).
    Raises: AdapterFileError for files that are missing, damaged, malicious, of another kind, or not finite.
    """
    path = Path(directory)
    raw = read_json(path / CONFIG)
    config = dialects.read_config(raw, path / CONFIG)
    file, tensors = _tensors(path, (TENSORS, SAFE, PICKLE))
    name, named = _canonical(tensors, raw.get("name"), file)
    invertible = any(key.startswith("invertible.") for key in named)
    if config.invertible and not invertible and raw.get("type") == "text_task":
        # Task adapters of 2020 name an invertible adapter that they never had.
        config = replace(config, invertible=False)
    metadata = {str(key): raw[key] for key in _METADATA if key in raw}
    return AdapterFiles(name or path.name, config, named, read_head(path), metadata, read_lineage(path))


def write_adapter(directory: str | Path, files: AdapterFiles) -> Path:
    """Write our layout, whole or not at all; the same adapter always gives the same bytes.

    Raises: AdapterFileError when something is there already, or a tensor is not finite.
    """
    with staged_directory(directory) as stage:
        write_files(stage, files)
    return Path(directory)


def write_files(directory: Path, files: AdapterFiles) -> None:
    """The same into a directory that is there. Raises: AdapterFileError when a tensor is not finite."""
    _require_finite(files.tensors, directory)
    _write_json(directory / CONFIG, _config_json(files))
    _save(files.tensors, directory / TENSORS)
    if files.head:
        _write_json(directory / HEAD_CONFIG, files.head.config)
        _save(files.head.tensors, directory / HEAD_SAFE)
    if files.lineage:
        files.lineage.write(directory)


def import_adapter(source: str | Path, output: str | Path) -> AdapterFiles:
    """Convert an AdapterHub directory, or its zip archive, to our layout once.

    Only the known files of an archive are taken, by their own names; one that points outside is refused.
    Raises: AdapterFileError, as ``read_adapter`` and ``write_adapter``.
    """
    with opened(Path(source)) as directory:
        files = read_adapter(directory)
    write_adapter(output, files)
    return files


def export_adapter(
    source: str | Path | AdapterFiles, output: str | Path, model: PreTrainedModel, *, safetensors: bool = False
) -> Path:
    """Write AdapterHub's layout for the library ``adapters``, with its names for ``model``'s architecture.

    ``model`` may be on the meta device: only its structure is read. A pickle by default, for that is what adapters
    reads without being asked. Raises: AdapterFileError; ModelError when the model's structure is not known.
    """
    files = source if isinstance(source, AdapterFiles) else read_adapter(source)
    own = {"hidden_size": model.config.get_text_config().hidden_size, "model_class": type(model).__name__}
    files = replace(files, metadata=own | {"model_type": model.config.model_type} | dict(files.metadata))
    tensors = {_foreign(key, files.name, model): tensor for key, tensor in files.tensors.items()}
    with staged_directory(output) as stage:
        _write_json(stage / CONFIG, _config_json(files))
        _save(tensors, stage / (SAFE if safetensors else PICKLE))
        if files.head:
            _write_json(stage / HEAD_CONFIG, files.head.config)
            _save(files.head.tensors, stage / (HEAD_SAFE if safetensors else HEAD_PICKLE))
        if files.lineage:
            files.lineage.write(stage)
    return Path(output)


def read_head(directory: str | Path) -> HeadFiles | None:
    """The prediction head beside an adapter, if there is one. Raises: AdapterFileError for damaged files."""
    path = Path(directory)
    if not (path / HEAD_CONFIG).is_file():
        return None
    return HeadFiles(read_json(path / HEAD_CONFIG), _tensors(path, (HEAD_SAFE, HEAD_PICKLE))[1])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: AdapterFileError when it is missing, too large, or not one."""
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes")
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(type(found).__name__)
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(
            "the adapter's configuration cannot be read",
            where=path,
            found=error,
            expected="a JSON object",
            fix="name an adapter directory: AdapterHub's, or one that adamergex wrote",
        ) from error
    return found


def read_pickle(path: Path, allowed: tuple[Any, ...] = ()) -> Any:
    """``torch.load(weights_only=True)``: plain tensors and containers, and the ``allowed`` types; never code.

    Raises: AdapterFileError for anything else, and on torch before 2.10, whose check can be got around.
    """
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < (2, 10):
        raise AdapterFileError(
            "this torch cannot read pickles safely",
            where=path,
            found=torch.__version__,
            expected="torch >= 2.10 (CVE-2026-24747)",
            fix="update torch, or get the file as safetensors",
        )
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the machine's trouble, not the file's
        # A file made by someone else can make the reader fail in any way; all of them mean the same to the user.
        raise AdapterFileError(
            "the file is damaged, or holds more than tensors; nothing in it was run",
            where=path,
            found=str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
            expected="a dictionary of tensors",
            fix="download it again, or ask its author for safetensors",
        ) from error


def tensors_path(directory: Path, names: tuple[str, ...] = (TENSORS, SAFE, PICKLE)) -> Path:
    """The file of an adapter's tensors. Raises: AdapterFileError when there is none."""
    path = next((directory / name for name in names if (directory / name).is_file()), None)
    if path is None:
        there = sorted(item.name for item in directory.iterdir())[:8] if directory.is_dir() else ["no such directory"]
        raise AdapterFileError(
            "the adapter has no tensors",
            where=directory,
            found=", ".join(there),
            expected=" or ".join(names),
            fix="name an adapter directory: AdapterHub's, or one that adamergex wrote",
        )
    return path


def _tensors(directory: Path, names: tuple[str, ...]) -> tuple[Path, dict[str, torch.Tensor]]:
    path = tensors_path(directory, names)
    try:
        found = load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            "the adapter's tensors cannot be read", where=path, found=error, fix="copy or download the adapter again"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise AdapterFileError(
            "the file does not hold tensors by name", where=path, found=type(found).__name__, fix="download it again"
        )
    _require_finite(found, path)
    return path, {str(key): value for key, value in found.items()}


def _canonical(tensors: Mapping[str, torch.Tensor], wanted: object, where: Path) -> tuple[str, dict[str, torch.Tensor]]:
    parsed = {key: dialects.canonical(key) for key in tensors}
    strange = sorted(key for key, found in parsed.items() if found is None)
    names = {found[0] for found in parsed.values() if found} - {None}
    if strange or not parsed:
        raise AdapterFileError(
            "the file holds tensors that are no bottleneck adapter's",
            where=f"{where}: {strange[0]}" if strange else where,
            found=f"{len(strange)} such tensors" if strange else "no tensors",
            expected="…adapters.NAME.adapter_down…, …adapters.NAME.adapter_up…, …invertible_adapters.NAME.[FG]…",
            fix="convert a bottleneck adapter; LoRA, prefix and parallel adapters are other structures",
        )
    name = wanted if wanted in names else next(iter(names), wanted)
    if len(names) > 1 and wanted not in names:
        raise AdapterFileError(
            "the file holds several adapters",
            where=where,
            found=", ".join(sorted(map(str, names))),
            expected=f"the one that adapter_config.json names: {wanted!r}",
            fix="correct the name in adapter_config.json",
        )
    own = {found[1]: tensors[key] for key, found in parsed.items() if found and found[0] in (name, None)}
    return str(name or ""), own


def _foreign(key: str, name: str, model: PreTrainedModel) -> str:
    places, parts = find_places(model), key.split(".")
    if parts[0] == "invertible":
        prefix = f"{places.invertible_path}." if places.invertible_path else ""
        return f"{prefix}invertible_adapters.{name}.{'.'.join(parts[1:])}"
    group, index, where, part, tensor = parts
    layer = places.layer(group, int(index))
    if layer is None:
        raise AdapterFileError(
            "the adapter has a layer that this model does not have",
            where=key,
            found=f"{len(places.layers)} layers",
            fix="give the model that the adapter was trained with",
        )
    part = "adapter_down.0" if part == "down" else "adapter_up"
    return f"{layer.path}.{layer.sub_layer(where)}.{name}.{part}.{tensor}"  # type: ignore[arg-type]


def _config_json(files: AdapterFiles) -> dict[str, Any]:
    settings = dialects.write_config(files.config)
    return {"config": settings, "name": files.name, "version": dialects.VERSION} | dict(files.metadata)


def _require_finite(tensors: Mapping[str, torch.Tensor], where: object) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AdapterFileError(
                "an adapter tensor is not finite",
                where=f"{where}: {name}",
                found="NaN or infinity",
                fix="train or download the adapter again",
            )


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # clone: safetensors refuses tensors that share memory, and a view would drag its storage along.
    return {key: tensors[key].detach().cpu().contiguous().clone() for key in sorted(tensors)}


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    if path.suffix != ".safetensors":
        torch.save(_plain(tensors), path)
        return
    try:
        save_file(_plain(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise AdapterFileError(
            "the tensors cannot be written", where=path, found=error, fix="see that the disk has room, or go elsewhere"
        ) from error


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """The directory itself, or the known files of a zip archive in a directory of their own.

    Raises: AdapterFileError for an archive that cannot be read, or leads outside.
    """
    if not source.is_file():
        yield source
        return
    with tempfile.TemporaryDirectory() as directory:
        try:
            with zipfile.ZipFile(source) as archive:
                for member in _members(source, archive):
                    (Path(directory) / PurePosixPath(member.filename).name).write_bytes(archive.read(member))
        except (zipfile.BadZipFile, OSError) as error:
            raise AdapterFileError(
                "the archive cannot be read",
                where=source,
                found=error,
                expected="a zip archive, or a directory",
                fix="download it again",
            ) from error
        yield Path(directory)


def _members(source: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    chosen: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        escapes = path.is_absolute() or ".." in path.parts or ":" in member.filename
        if escapes or stat.S_ISLNK(member.external_attr >> 16) or path.name in chosen:
            raise AdapterFileError(
                "the archive holds a path that leads elsewhere, or the same file twice; nothing was unpacked",
                where=source,
                found=member.filename,
                expected="the files of one adapter",
                fix="do not use this archive",
            )
        if path.name in _FILES:
            chosen[path.name] = member
    if sum(member.file_size for member in chosen.values()) > _MOST_BYTES:
        raise AdapterFileError("the archive unpacks to more than an adapter", where=source, expected="at most 16 GiB")
    return list(chosen.values())
