"""Reads adapter directories as torch tensors, with PEFT's names and finite, from safetensors and from pickles."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from adamergex.errors import AdamergexError, AdapterFileError
from adamergex.files import inputs, tensor_names
from adamergex.files.directory import CONFIG, PROMPT_TYPES, TENSORS, AdapterDirectory, require_gathered
from adamergex.files.inputs import Json
from adamergex.files.tensor_header import TensorInfo, misnamed, read_header

MOST_BYTES = 16 << 30
"""Largest pickle, and largest unpacked size of an archive."""
LARGEST = 1e15
"""Largest absolute value of an adapter tensor; trained adapters stay below a thousand."""
Tensors = dict[str, torch.Tensor]


def read_directory(directory: Path) -> Tensors:
    """Read adapter_model.safetensors to the CPU; with an ``adapter_config.json``, under PEFT's names.

    Raises: AdapterFileError when it is missing or damaged, or a tensor is not finite.
    """
    if os.path.lexists(directory / CONFIG):
        adapter = AdapterDirectory.open(directory)
        tensors = read_safetensors(directory / TENSORS)
        return {name: tensors[adapter.stored.get(name, name)] for name in adapter.tensors}
    return read_safetensors(directory / TENSORS)


def read_safetensors(path: Path) -> Tensors:
    """All tensors of a file by their stored names, finite. Raises: AdapterFileError."""
    read_header(path)  # refuses pipes, devices and headers that the library fails on
    try:
        tensors = dict(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise AdapterFileError(
            "the adapter's tensors cannot be read", where=path, found=error, fix="copy or train the adapter again"
        ) from error
    require_finite(tensors, path)
    return tensors


def require_finite(tensors: Mapping[str, torch.Tensor], where: object) -> None:
    """Raises: AdapterFileError for a tensor with NaN, infinity, or values whose products overflow."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        largest = (
            float((tensor if tensor.element_size() > 1 else tensor.float()).abs().max()) if tensor.numel() else 0.0
        )
        if not largest <= LARGEST:
            finite = math.isfinite(largest)
            raise AdapterFileError(
                "an adapter tensor holds numbers that are too large" if finite else "an adapter tensor is not finite",
                where=f"{where}: {name}",
                found=f"{largest:.3g}" if finite else "NaN or infinity",
                expected=f"finite numbers up to {LARGEST:g}: products of them must fit float32",
                fix="its training diverged: train or download the adapter again",
            )


def require_same(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    where: object,
    *,
    fix: str,
    unlike: type[AdamergexError] = AdapterFileError,
) -> None:
    """Raises: AdapterFileError when the names differ from those of the model's ``expected`` tensors; ``unlike`` for
    another shape or kind of numbers."""
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        raise AdapterFileError(
            "the adapter's tensors do not match its configuration and this model",
            where=where,
            found=f"missing: {_some(missing)}; unexpected: {_some(unexpected)}",
            expected=f"{len(expected)} tensors",
            fix=fix,
        )
    for name, wanted in expected.items():
        tensor = tensors[name]
        floating = (
            tensor.is_floating_point() and tensor.element_size() > 1
        )  # eight-bit numbers are refused, as in a merge
        if wanted.shape != tensor.shape or wanted.is_floating_point() != floating:
            raise unlike(
                "an adapter tensor does not have the model's shape or type",
                where=f"{where}: {name}",
                found=f"{tuple(tensor.shape)} {tensor.dtype}",
                expected=f"{tuple(wanted.shape)} {wanted.dtype}",
                fix=fix,
            )


def _some(names: list[str]) -> str:
    return "none" if not names else names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def read_pickle(path: Path, allowed: tuple[Any, ...] = ()) -> Any:
    """``torch.load(weights_only=True)``: plain tensors and containers, and the ``allowed`` types; never code.

    Raises: AdapterFileError for anything else, and on torch before 2.10, whose check can be bypassed.
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
    _require_bounded(path)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise  # an operating-system error, not the file's
        # A malicious file can make the reader fail in any way; all failures mean the same to the user.
        raise AdapterFileError(
            "the file is damaged, or holds more than tensors; nothing in it was run",
            where=path,
            found=str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
            expected="a dictionary of tensors",
            fix="download it again, or ask its author for safetensors",
        ) from error


def _require_bounded(path: Path) -> None:
    """Require a regular file that does not expand when unpacked: torch stores without compression."""
    with inputs.open_regular(path, what="the tensors file", error=AdapterFileError) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError):
            unpacked = size  # torch's older format, or damaged
    if max(size, unpacked) > MOST_BYTES or unpacked > 2 * size:
        raise AdapterFileError(
            "the file expands when unpacked",
            where=path,
            found=f"{size:,} bytes that unpack to {unpacked:,}",
            expected=f"tensors without compression, at most {MOST_BYTES >> 30} GiB",
            fix="do not use this file",
        )


def plain_tensors(contents: object, where: Path) -> Tensors:
    """The tensors by name in a pickle. Raises: AdapterFileError for any other contents."""
    if not isinstance(contents, dict) or not all(isinstance(value, torch.Tensor) for value in contents.values()):
        raise AdapterFileError(
            "the file does not hold tensors by name",
            where=where,
            found=type(contents).__name__,
            fix="download it again",
        )
    for name, tensor in contents.items():
        try:
            tensor_names.require_plain(str(name))
        except tensor_names.WrongName as problem:
            raise AdapterFileError(
                "the name of a tensor is not valid", where=where, found=f"{name!r}: {problem}", fix="download it again"
            ) from None
        if unusual := _unusual(tensor):
            raise AdapterFileError(
                "the file does not hold plain tensors only",
                where=f"{where}: {name}",
                found=unusual,
                expected="dense tensors, each with its own values",
                fix="download it again, or ask its author for safetensors",
            )
    tensors = {str(name): value for name, value in contents.items()}
    require_gathered((TensorInfo(name, "U8", tuple(value.shape)) for name, value in tensors.items()), where)
    require_finite(tensors, where)
    return tensors


def _unusual(tensor: torch.Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
        return f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:  # a view that repeats its values
        return f"shape {tuple(tensor.shape)} over {stored} bytes"
    return ""


def read_peft_pickle(path: Path, config: Mapping[str, Json]) -> Tensors:
    """The tensors of PEFT's ``adapter_model.bin`` under PEFT's names. Raises: AdapterFileError."""
    tensors = plain_tensors(read_pickle(path), path)
    try:
        names = tensor_names.canonical(tensors, prompt=config.get("peft_type") in PROMPT_TYPES)
    except tensor_names.WrongName as problem:
        raise misnamed(path, problem) from None
    return {names[name]: tensor for name, tensor in tensors.items()}


def separate(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Contiguous copies on the CPU, sorted by name.

    safetensors refuses tensors that share memory, and saves the whole storage of a view."""
    return {key: tensors[key].detach().cpu().contiguous().clone() for key in sorted(tensors)}
