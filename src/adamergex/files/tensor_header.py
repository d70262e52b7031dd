"""The header of a safetensors file, parsed strictly: what the safetensors library refuses is refused here too.

Parsed here because ``safetensors.numpy`` cannot read bfloat16, and reads whole tensors.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
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
"""Dtype -> bytes of an element."""


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
    """Tensors by name, metadata, and the names in the file where they are others (``stored``: ours -> the file's)."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    stored: Mapping[str, str]


class _Damage(Exception):
    """What is wrong with a header: problem, found, expected."""


def read_header(path: Path, *, names: str = "own") -> Header:
    """Tensors and metadata of a safetensors file, its bytes accounted for.

    ``names``: ``own`` as they stand; ``modules`` and ``prompt`` as PEFT gives them (``tensor_names.canonical``).
    Raises: AdapterFileError for a file that is missing, no regular one, truncated or malformed.
    """
    with inputs.open_regular(path, what="the tensors file", error=AdapterFileError) as file:
        total = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(inputs.DOCUMENT_BYTES, total - 8):
            raise broken(path, "The safetensors file is truncated or not one.", f"{total} bytes", "a complete header")
        try:
            header, end = _parsed(file.read(length), names)
        except _Damage as damage:
            raise broken(path, *damage.args) from None
        except tensor_names.WrongName as problem:
            raise AdapterFileError(
                "the tensors are not named as PEFT names them",
                where=path,
                found=problem,
                expected=f"{tensor_names.PREFIX}<module>.lora_A.weight and the like, each once",
                fix="unwrap the model before saving (accelerate.unwrap_model), and save it with save_pretrained",
            ) from None
    if end != total:
        raise broken(path, "The safetensors file is truncated, or longer than its header says.", total, end)
    return header


def broken(path: Path, problem: str, found: object, expected: object) -> AdapterFileError:
    """A tensors file that is damaged."""
    return AdapterFileError(
        problem, where=path, found=found, expected=expected, fix="the file is damaged: copy, download or save it again"
    )


@lru_cache(maxsize=4)  # the adapters of one merge nearly always have the same header
def _parsed(text: bytes, names: str) -> tuple[Header, int]:
    if text[:1] != b"{":
        raise _Damage("The safetensors header is not valid.", repr(text[:8]), "a JSON object")
    try:
        header = inputs.parse_json(text)
    except inputs.Malformed as error:
        raise _Damage("The safetensors header is not valid.", error, "a JSON object") from None
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Damage("The metadata of the safetensors header are not valid.", repr(metadata), "texts by name")
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
    if names != "own":
        found = tensor_names.canonical((info.name for info in tensors), prompt=names == "prompt")
        stored = {own: name for name, own in found.items() if own != name}
        tensors = [
            info if info.name == found[info.name] else TensorInfo(found[info.name], info.dtype, info.shape, info.offset)
            for info in tensors
        ]
    return Header({info.name: info for info in sorted(tensors, key=lambda info: info.name)}, metadata, stored)


def _entry(name: str, entry: Any, start: int) -> TensorInfo:
    try:
        tensor_names.require_plain(name)
    except tensor_names.WrongName as problem:
        raise _Damage("The name of a tensor is not valid.", f"{name!r}: {problem}", "a name that can be read") from None
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        valid = all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid or not isinstance(dtype, str):
        raise _Damage(f"The header entry of {name} is not valid.", entry, "dtype, shape and data_offsets")
    if dtype not in ITEM_SIZES:
        raise _Damage(f"The dtype of {name} is not known.", dtype, ", ".join(sorted(ITEM_SIZES)))
    info = TensorInfo(name, dtype, shape, start + begin)
    if end - begin != info.size * info.item_size:
        raise _Damage(f"The bytes of {name} do not fit its shape.", end - begin, f"{info.size * info.item_size} bytes")
    return info
