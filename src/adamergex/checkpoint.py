"""Adapter directories on disk: PEFT's files read lazily in chunks, and written tensor by tensor. numpy only.

The safetensors header is parsed here because ``safetensors.numpy`` cannot read bfloat16; nothing of an adapter is ever
executed, and nothing outside its declared byte ranges is read. Little-endian hosts, like the format.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamergex.errors import AdapterFileError

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CHUNK = 256 * 1024  # elements: enough that the interpreter's part is small, few enough for caches and memory
_MAX_JSON = 64 * 1024 * 1024
_ITEM_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
# How a dtype lies in memory before conversion; bfloat16 is the upper half of a float32.
_STORED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
FLOATS = frozenset(_STORED)

Array = NDArray[Any]


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
        return _ITEM_SIZES[self.dtype]


def compute_dtype(dtype: str) -> type[np.float32] | type[np.float64]:
    """The dtype in which a stored dtype is computed: float64 for F64, else float32."""
    return np.float64 if dtype == "F64" else np.float32


@dataclass(frozen=True)
class AdapterDirectory:
    """An adapter as PEFT saved it: its parsed config and the layout of its tensors, none of them loaded."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    file: str = TENSORS

    @classmethod
    def open(cls, path: str | Path) -> AdapterDirectory:
        """Parse ``adapter_config.json`` and the header of ``adapter_model.safetensors``.

        Raises:
            AdapterFileError: a file is missing, truncated, malformed, or only a pickle (``adapter_model.bin``).
        """
        directory = Path(path)
        if not directory.is_dir():
            raise AdapterFileError(
                "There is no adapter directory here.",
                where=directory,
                found="a file" if directory.exists() else "nothing",
                expected=f"a directory with {CONFIG} and {TENSORS}",
                fix="give the directory that save_pretrained wrote",
            )
        config = _read_config(directory / CONFIG)
        tensors, metadata = read_header(_tensors_path(directory))
        return cls(directory, config, tensors, metadata)

    @property
    def tensors_path(self) -> Path:
        """The safetensors file."""
        return self.path / self.file


def _tensors_path(directory: Path) -> Path:
    path = directory / TENSORS
    if path.is_file():
        return path
    others = sorted(item.name for item in directory.iterdir() if item.suffix in (".bin", ".pt", ".pth", ".safetensors"))
    pickled = any(not name.endswith(".safetensors") for name in others)
    hub = {"pytorch_adapter.bin", "adapter.safetensors"} & set(others)  # AdapterHub's names
    raise AdapterFileError(
        "The adapter has no safetensors file.",
        where=directory,
        found=", ".join(others) or "no tensors",
        expected=TENSORS,
        fix="convert it once with adamergex convert"
        if hub
        else "save it again with safe_serialization=True (a pickle could run code, so it is never read)"
        if pickled
        else "train or download the adapter again",
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        config = json.loads(path.read_bytes()) if size <= _MAX_JSON else None
    except FileNotFoundError:
        raise AdapterFileError(
            "The adapter has no config.",
            where=path.parent,
            found=", ".join(sorted(item.name for item in path.parent.iterdir())[:8]) or "an empty directory",
            expected=CONFIG,
            fix="give the directory that save_pretrained wrote",
        ) from None
    except (OSError, ValueError) as error:
        raise AdapterFileError(
            "The adapter's config is not JSON.", where=path, found=error, expected="a JSON object", fix="save it again"
        ) from error
    if not isinstance(config, dict):
        raise AdapterFileError(
            "The adapter's config is not a JSON object.", where=path, expected="a JSON object", fix="save it again"
        )
    return config


def _broken(path: Path, problem: str, found: object, expected: object) -> AdapterFileError:
    return AdapterFileError(
        problem, where=path, found=found, expected=expected, fix="the file is damaged: copy, download or save it again"
    )


class _Damage(Exception):
    """What is wrong with a header: problem, found, expected."""


def read_header(path: Path) -> tuple[Mapping[str, TensorInfo], Mapping[str, str]]:
    """Tensors and metadata of a safetensors file, its bytes accounted for. Raises: AdapterFileError."""
    total = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(_MAX_JSON, total - 8):
            raise _broken(path, "The safetensors file is truncated or not one.", f"{total} bytes", "a complete header")
        try:
            tensors, metadata, end = _parse_header(file.read(length))
        except _Damage as damage:
            raise _broken(path, *damage.args) from None
    if end != total:
        raise _broken(path, "The safetensors file is truncated, or longer than its header says.", total, end)
    return tensors, metadata


@lru_cache(maxsize=4)  # the adapters of one merge nearly always have the same header
def _parse_header(text: bytes) -> tuple[Mapping[str, TensorInfo], Mapping[str, str], int]:
    try:
        header = json.loads(text)  # a name that occurs twice leaves a hole, found below
    except ValueError as error:
        raise _Damage("The safetensors header is not valid.", error, "a JSON object") from error
    metadata = header.pop("__metadata__", None) or {} if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise _Damage("The safetensors header is not valid.", type(header).__name__, "a JSON object")
    start = 8 + len(text)
    tensors = [_parse_entry(name, entry, start) for name, entry in header.items()]
    position = start
    for info in sorted(tensors, key=lambda info: (info.offset, info.size)):
        if info.offset != position:
            raise _Damage(
                f"The bytes of {info.name} overlap others or leave a hole.", info.offset, f"offset {position}"
            )
        position += info.size * info.item_size
    return {info.name: info for info in sorted(tensors, key=lambda info: info.name)}, metadata, position


def _parse_entry(name: str, entry: Any, start: int) -> TensorInfo:
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        valid = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise _Damage(f"The header entry of {name} is not valid.", entry, "dtype, shape and data_offsets")
    if dtype not in _ITEM_SIZES:
        raise _Damage(f"The dtype of {name} is not known.", dtype, ", ".join(sorted(_ITEM_SIZES)))
    info = TensorInfo(name, dtype, shape, start + begin)
    if end - begin != info.size * info.item_size:
        raise _Damage(f"The bytes of {name} do not fit its shape.", end - begin, f"{info.size * info.item_size} bytes")
    return info


class TensorReader:
    """Reads one safetensors file a range at a time into buffers of its own, which the next read overwrites.

    ``shared``: a reader of the same file whose handle to use, and to leave open longer than this one is in use."""

    def __init__(self, directory: AdapterDirectory, shared: TensorReader | None = None) -> None:
        self.directory = directory
        self._file: FileIO = shared._file if shared else directory.tensors_path.open("rb", buffering=0)
        raw = np.empty(CHUNK, np.float64)
        self._bytes = raw.data.cast("B")
        self._stored = {dtype: raw.view(_STORED.get(dtype, np.uint8)) for dtype in _ITEM_SIZES}
        self._floats = np.empty(CHUNK, np.float32)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read(self, info: TensorInfo, start: int, stop: int) -> tuple[Array, Array]:
        """Elements ``start:stop`` (at most ``CHUNK``) as (float32, or float64 for F64; as stored), both (n,).

        Of a dtype that is not floating point both are the stored bytes."""
        size = stop - start
        position, view = info.offset + start * info.item_size, self._bytes[: size * info.item_size]
        while view:
            count = os.preadv(self._file.fileno(), [view], position)
            if count == 0:
                raise _broken(
                    self.directory.tensors_path, f"The file ends within {info.name}.", "end of file", "more bytes"
                )
            view, position = view[count:], position + count
        stored = self._stored[info.dtype][: size if info.dtype in FLOATS else size * info.item_size]
        return decode(stored, info.dtype, self._floats[:size]), stored

    def load(self, info: TensorInfo) -> Array:
        """The whole tensor in its compute dtype, in its shape."""
        values = np.empty(info.size, compute_dtype(info.dtype))
        for start in range(0, info.size, CHUNK):
            stop = min(start + CHUNK, info.size)
            values[start:stop] = self.read(info, start, stop)[0]
        return values.reshape(info.shape)


_SIXTEEN, _ONE, _HALF = np.uint32(16), np.uint32(1), np.uint32(0x7FFF)


def decode(stored: Array, dtype: str, out: Array) -> Array:
    """Stored elements as float32 in ``out`` (exact); F32 and F64 are returned as they are."""
    if dtype == "BF16":
        bits = out.view(np.uint32)
        bits[...] = stored
        np.left_shift(bits, _SIXTEEN, out=bits)
        return out
    if dtype == "F16":
        out[...] = stored
        return out
    return stored


class Encoder:
    """Rounds values once to a stored dtype, to nearest and ties to even; its results lie in a buffer that it reuses."""

    def __init__(self) -> None:
        self._wide = np.empty(CHUNK, np.uint32)
        self._half = np.empty(CHUNK, np.uint16)

    def __call__(self, values: Array, dtype: str) -> Array:
        """At most ``CHUNK`` finite values, contiguous, float32 (float64 for F64), as stored: shape (n,)."""
        if dtype != "BF16":
            return values.astype(_STORED[dtype], copy=False)
        bits, wide, half = values.view(np.uint32), self._wide[: len(values)], self._half[: len(values)]
        np.right_shift(bits, _SIXTEEN, out=wide)
        np.bitwise_and(wide, _ONE, out=wide)
        np.add(wide, _HALF, out=wide)
        np.add(wide, bits, out=wide)
        np.right_shift(wide, _SIXTEEN, out=wide)
        np.copyto(half, wide, casting="unsafe")
        return half


class SafetensorsWriter:
    """Writes a safetensors file front to back: the header from known shapes, then the tensors in ``order``.

    Tensors lie by falling item size, then by name, as the safetensors library lays them: every offset is aligned, and
    the same tensors always give the same bytes.
    """

    def __init__(self, path: Path, tensors: list[TensorInfo], metadata: Mapping[str, str] | None = None) -> None:
        self.order = sorted(tensors, key=lambda info: (-info.item_size, info.name))
        header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
        end = 0
        for info in self.order:
            begin, end = end, end + info.size * info.item_size
            header[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._path, self._start, self._end = path, 8 + len(text), end
        self._lock, self._written, self._position = Lock(), 0, 0
        self._file = path.open("wb", buffering=0)
        self._put(memoryview(struct.pack("<Q", len(text)) + text), 0)

    def write(self, stored: Array) -> None:
        """Append the next elements, as stored."""
        self.write_at(self._position, stored)
        self._position += stored.nbytes

    def write_at(self, position: int, stored: Array) -> None:
        """Write elements, as stored, ``position`` bytes after the start of the first tensor; from any thread."""
        self._put(stored.data.cast("B"), self._start + position)
        with self._lock:
            self._written += stored.nbytes

    def close(self) -> None:
        """Finish the file; the bytes must be those that the header promised."""
        self._file.close()
        if self._written != self._end:
            raise AssertionError(f"{self._path}: wrote {self._written} bytes, promised {self._end}")

    def _put(self, view: memoryview, position: int) -> None:
        while view:
            count = os.pwrite(self._file.fileno(), view, position)
            view, position = view[count:], position + count
