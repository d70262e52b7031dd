"""Parses the header of a safetensors file at least as strictly as the safetensors library.

Needed because ``safetensors.numpy`` cannot read bfloat16, and reads whole tensors.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from adamergex.errors import AdapterFileError
from adamergex.files import inputs, tensor_names

ITEM_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Dtype -> bytes per element."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: name, dtype, shape, and its first byte in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def item_size(self) -> int:
        """Bytes of one element."""
        return ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Header:
    """Tensors by name, metadata, and ``stored``: our name -> the name in the file, where they differ."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    stored: Mapping[str, str]


class _Damage(Exception):
    """A damaged header: problem, found, expected."""


def read_header(path: Path, *, names: str = "as stored") -> Header:
    """Tensors and metadata of a safetensors file, with every byte accounted for.

    ``names``: ``as stored``, or PEFT's names for ``modules`` and for ``prompt`` (``tensor_names.canonical``).
    Raises: AdapterFileError for a file that is missing, not regular, truncated or malformed.
    """
    with inputs.open_regular(path, what="the tensors file", error=AdapterFileError) as file:
        total = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(inputs.DOCUMENT_BYTES, total - 8):
            raise broken(path, "the safetensors file is truncated or not one", f"{total} bytes", "a complete header")
        try:
            header, end = _parsed(file.read(length), names)
        except _Damage as damage:
            raise broken(path, *damage.args) from None
        except tensor_names.WrongName as problem:
            raise misnamed(path, problem) from None
    if end != total:
        raise broken(path, "the safetensors file is truncated, or longer than its header declares", total, end)
    return header


def broken(path: Path, problem: str, found: object, expected: object) -> AdapterFileError:
    """A damaged tensors file."""
    return AdapterFileError(
        problem, where=path, found=found, expected=expected, fix="the file is damaged: copy, download or save it again"
    )


def misnamed(path: Path, problem: tensor_names.WrongName) -> AdapterFileError:
    """Tensors without PEFT's names."""
    return AdapterFileError(
        "the tensors do not have PEFT's names",
        where=path,
        found=problem,
        expected=f"{tensor_names.PREFIX}<module>.lora_A.weight and the like, each once",
        fix="unwrap the model before saving (accelerate.unwrap_model), and save it with save_pretrained",
    )


@lru_cache(maxsize=4)  # the adapters of one merge nearly always have the same header
def _parsed(text: bytes, names: str) -> tuple[Header, int]:
    if text[:1] != b"{":
        raise _Damage("the safetensors header is not valid", repr(text[:8]), "a JSON object")
    try:
        header = inputs.parse_json(text)
    except inputs.Malformed as error:
        raise _Damage("the safetensors header is not valid", error, "a JSON object") from None
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Damage("the metadata of the safetensors header are not valid", repr(metadata), "texts by name")
    start = 8 + len(text)
    tensors = [_entry(name, entry, start) for name, entry in header.items()]
    position = start
    for info in sorted(tensors, key=lambda info: (info.offset, info.size)):
        if info.offset != position:
            raise _Damage(f"the bytes of {info.name} overlap others or leave a hole", info.offset, f"offset {position}")
        position += info.size * info.item_size
    return _named(tensors, metadata, names), position


def _named(tensors: list[TensorInfo], metadata: Mapping[str, str], names: str) -> Header:
    stored = {}
    if names != "as stored":
        canonical = tensor_names.canonical((info.name for info in tensors), prompt=names == "prompt")
        stored = {peft_name: name for name, peft_name in canonical.items() if peft_name != name}
        tensors = [
            info if canonical[info.name] == info.name else replace(info, name=canonical[info.name]) for info in tensors
        ]
    return Header({info.name: info for info in sorted(tensors, key=lambda info: info.name)}, metadata, stored)


def _entry(name: str, entry: Any, start: int) -> TensorInfo:
    try:
        tensor_names.require_plain(name)
    except tensor_names.WrongName as problem:
        raise _Damage("the name of a tensor is not valid", f"{name!r}: {problem}", "a printable name") from None
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        valid = all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid or not isinstance(dtype, str):
        raise _Damage(f"the header entry of {name} is not valid", entry, "dtype, shape and data_offsets")
    if dtype not in ITEM_SIZES:
        raise _Damage(f"the dtype of {name} is not known", dtype, ", ".join(sorted(ITEM_SIZES)))
    info = TensorInfo(name, dtype, shape, start + begin)
    if end - begin != info.size * info.item_size:
        raise _Damage(f"the bytes of {name} do not fit its shape", end - begin, f"{info.size * info.item_size} bytes")
    return info
