"""Bottleneck adapter directories, AdapterHub's in any dialect and ours: read, write, import, export.

Ours has AdapterHub's ``adapter_config.json`` and an ``adapter_model.safetensors`` with tensors named by structure
(``layers.3.output.down.weight``), so that adapters of different names and bases can be compared tensor by tensor.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import torch

from adamergex.adapters.bottleneck.places import find_places
from adamergex.adapters.formats import dialects
from adamergex.adapters.saving import save_tensors
from adamergex.errors import AdapterFileError
from adamergex.files import inputs
from adamergex.files.directory import CONFIG, HEAD_CONFIG, HEAD_PICKLE, HEAD_TENSORS, TENSORS, read_config
from adamergex.files.directory import PICKLE as PEFT_PICKLE
from adamergex.files.lineage import FILE_NAME, Lineage
from adamergex.files.lineage import read as read_lineage
from adamergex.files.outputs import staged_directory
from adamergex.files.tensor_files import (
    MOST_BYTES,
    plain_tensors,
    read_pickle,
    read_safetensors,
    require_finite,
    separate,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adamergex.adapters.bottleneck.modules import BottleneckConfig

PICKLE, SAFE = "pytorch_adapter.bin", "adapter.safetensors"
_FILES = (CONFIG, TENSORS, SAFE, PICKLE, PEFT_PICKLE, HEAD_CONFIG, HEAD_TENSORS, HEAD_PICKLE, FILE_NAME)
_METADATA = ("hidden_size", "model_class", "model_name", "model_type")
_BLOCK, _MOST_RATIO = 1 << 20, 100  # tensors hardly compress


@dataclass(frozen=True, eq=False)
class HeadFiles:
    """A prediction head saved with an adapter: ``head_config.json`` and the tensors as in the file."""

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """An adapter in memory, independent of a model, with our tensor names. ``metadata``: the base's name, class, type
    and hidden size."""

    name: str
    config: BottleneckConfig
    tensors: Mapping[str, torch.Tensor]
    head: HeadFiles | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lineage: Lineage | None = None


def read_adapter(directory: str | Path) -> AdapterFiles:
    """Read a bottleneck adapter: safetensors if present, otherwise ``pytorch_adapter.bin`` as plain tensors.

    Nothing in a file is executed (``torch.load(weights_only=True)``, torch >= 2.10).
    Raises: AdapterFileError for files that are missing, damaged, malicious, of another kind, or not finite.
    """
    path = Path(directory)
    raw = read_config(path)
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
    """Write our layout atomically; equal adapters give equal bytes.

    Raises: AdapterFileError when the directory exists, or a tensor is not finite.
    """
    with staged_directory(directory) as stage:
        write_files(stage, files)
    return Path(directory)


def write_files(directory: Path, files: AdapterFiles, adapter: str = TENSORS, head: str = HEAD_TENSORS) -> None:
    """Write into an existing directory, with these names of the tensor files. Raises: AdapterFileError when a tensor is
    not finite."""
    require_finite(files.tensors, directory)
    _write_json(directory / CONFIG, _config_json(files))
    _save(files.tensors, directory / adapter)
    if files.head:
        _write_json(directory / HEAD_CONFIG, files.head.config)
        _save(files.head.tensors, directory / head)
    if files.lineage:
        files.lineage.write(directory)


def import_adapter(source: str | Path, output: str | Path) -> AdapterFiles:
    """Convert an AdapterHub directory, or its zip archive, to our layout.

    Only the known files of an archive are unpacked; an archive with a path that leads outside is refused.
    Raises: AdapterFileError, as ``read_adapter`` and ``write_adapter``.
    """
    with unpacked_directory(Path(source)) as directory:
        files = read_adapter(directory)
    write_adapter(output, files)
    return files


def export_adapter(
    source: str | Path | AdapterFiles, output: str | Path, model: PreTrainedModel, *, safetensors: bool = False
) -> Path:
    """Write AdapterHub's layout for the library ``adapters``, with its names for ``model``'s architecture.

    ``model`` may be on the meta device: only its structure is read. By default this writes a pickle, which ``adapters``
    reads by default. Raises: AdapterFileError; ModelError when the model's structure is not known.
    """
    files = source if isinstance(source, AdapterFiles) else read_adapter(source)
    metadata = {"hidden_size": model.config.get_text_config().hidden_size, "model_class": type(model).__name__}
    files = replace(files, metadata=metadata | {"model_type": model.config.model_type} | dict(files.metadata))
    tensors = {_adapterhub_name(key, files.name, model): tensor for key, tensor in files.tensors.items()}
    with staged_directory(output) as stage:
        names = (SAFE, HEAD_TENSORS) if safetensors else (PICKLE, HEAD_PICKLE)
        write_files(stage, replace(files, tensors=tensors), *names)
    return Path(output)


def read_head(directory: str | Path) -> HeadFiles | None:
    """The prediction head saved with an adapter, if any. Raises: AdapterFileError for damaged files."""
    path = Path(directory)
    if not os.path.lexists(path / HEAD_CONFIG):
        return None
    return HeadFiles(read_json(path / HEAD_CONFIG), _tensors(path, (HEAD_TENSORS, HEAD_PICKLE))[1])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: AdapterFileError when it is missing, too large, or not one."""
    return inputs.read_json_object(path, what="the adapter's configuration", error=AdapterFileError)


def tensors_path(directory: Path, names: tuple[str, ...] = (TENSORS, SAFE, PICKLE)) -> Path:
    """The file of an adapter's tensors. Raises: AdapterFileError when there is none."""
    path = next((directory / name for name in names if os.path.lexists(directory / name)), None)
    if path is None:
        entries = sorted(item.name for item in directory.iterdir())[:8] if directory.is_dir() else ["no such directory"]
        raise AdapterFileError(
            "the adapter has no tensors",
            where=directory,
            found=", ".join(entries),
            expected=" or ".join(names),
            fix="name an adapter directory: AdapterHub's, or one that adamergex wrote",
        )
    return path


def _tensors(directory: Path, names: tuple[str, ...]) -> tuple[Path, dict[str, torch.Tensor]]:
    path = tensors_path(directory, names)
    contents = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    return path, plain_tensors(contents, path)


def _canonical(
    tensors: Mapping[str, torch.Tensor], declared: object, where: Path
) -> tuple[str, dict[str, torch.Tensor]]:
    parsed = {key: dialects.canonical(key) for key in tensors}
    unknown = sorted(key for key, name_and_key in parsed.items() if name_and_key is None)
    names = {name_and_key[0] for name_and_key in parsed.values() if name_and_key} - {None}
    if unknown or not parsed:
        raise AdapterFileError(
            "the file holds tensors that do not belong to a bottleneck adapter",
            where=f"{where}: {unknown[0]}" if unknown else where,
            found=f"{len(unknown)} such tensors" if unknown else "no tensors",
            expected="…adapters.NAME.adapter_down…, …adapters.NAME.adapter_up…, …invertible_adapters.NAME.[FG]…",
            fix="convert a bottleneck adapter; LoRA, prefix and parallel adapters are other structures",
        )
    name = declared if declared in names else next(iter(names), declared)
    if len(names) > 1 and declared not in names:
        raise AdapterFileError(
            "the file holds several adapters",
            where=where,
            found=", ".join(sorted(map(str, names))),
            expected=f"the one that adapter_config.json names: {declared!r}",
            fix="correct the name in adapter_config.json",
        )
    canonical: dict[str, torch.Tensor] = {}
    for key, name_and_key in parsed.items():
        if not name_and_key or name_and_key[0] not in (name, None):
            continue
        if name_and_key[1] in canonical:
            raise AdapterFileError(
                "two tensors of the file have one canonical name",
                where=f"{where}: {key}",
                found=f"a second {name_and_key[1]}",
                expected="every tensor once",
                fix="save the adapter again",
            )
        canonical[name_and_key[1]] = tensors[key]
    return str(name or ""), canonical


def _adapterhub_name(key: str, name: str, model: PreTrainedModel) -> str:
    places, parts = find_places(model), key.split(".")
    if parts[0] == "invertible":
        prefix = f"{places.invertible_path}." if places.invertible_path else ""
        return f"{prefix}invertible_adapters.{name}.{'.'.join(parts[1:])}"
    group, index, location, part, tensor = parts
    layer = places.layer(group, int(index))
    if layer is None:
        raise AdapterFileError(
            "the adapter has a layer that the model lacks",
            where=key,
            found=f"{len(places.layers)} layers",
            fix="give the model that the adapter was trained with",
        )
    part = "adapter_down.0" if part == "down" else "adapter_up"
    return f"{layer.path}.{layer.sub_layer(location)}.{name}.{part}.{tensor}"  # type: ignore[arg-type]


def _config_json(files: AdapterFiles) -> dict[str, Any]:
    settings = dialects.write_config(files.config)
    return {"config": settings, "name": files.name, "version": dialects.VERSION} | dict(files.metadata)


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_tensors(separate(tensors), path)
    else:
        torch.save(separate(tensors), path)


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def unpacked_directory(source: Path) -> Iterator[Path]:
    """The directory itself, or the known files of a zip archive in a temporary directory.

    Raises: AdapterFileError for an archive that cannot be read, or that leads outside.
    """
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory() as directory:
        with inputs.open_regular(source, what="the archive", error=AdapterFileError) as file:
            _unpack(source, file, Path(directory))
        yield Path(directory)


def _unpack(source: Path, file: IO[bytes], directory: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            for member in _members(source, archive):
                with (
                    archive.open(member) as packed,
                    (directory / PurePosixPath(member.filename).name).open("wb") as out,
                ):
                    left = member.file_size + 1  # never more than the archive declares
                    while block := packed.read(min(_BLOCK, left)):
                        left -= out.write(block)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise AdapterFileError(
            "the archive cannot be read",
            where=source,
            found=error,
            expected="a zip archive, or a directory",
            fix="download it again",
        ) from error


def _members(source: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    chosen: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        escapes = path.is_absolute() or ".." in path.parts or ":" in member.filename
        if escapes or stat.S_ISLNK(member.external_attr >> 16) or path.name in chosen:
            raise AdapterFileError(
                "the archive holds a path that leads outside, or a file twice; nothing was unpacked",
                where=source,
                found=member.filename,
                expected="the files of one adapter",
                fix="do not use this archive",
            )
        if path.name in _FILES:
            chosen[path.name] = member
    packed = sum(member.compress_size for member in chosen.values())
    unpacked = sum(member.file_size for member in chosen.values())
    if unpacked > MOST_BYTES or unpacked > _MOST_RATIO * packed + inputs.SETTINGS_BYTES:
        raise AdapterFileError(
            "the archive unpacks to more than an adapter",
            where=source,
            found=f"{packed:,} bytes that unpack to {unpacked:,}",
            expected=f"at most {MOST_BYTES >> 30} GiB, and {_MOST_RATIO} times what is packed",
            fix="do not use this archive",
        )
    return list(chosen.values())
