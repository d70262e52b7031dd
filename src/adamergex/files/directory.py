"""Adapter directories on disk: PEFT's files read lazily in chunks, and written tensor by tensor. numpy only.

Nothing in an adapter is executed, and nothing outside its declared byte ranges is read. Hosts must be little-endian,
as the format is.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamergex.errors import AdapterFileError
from adamergex.files import adapter_config
from adamergex.files.tensor_header import ITEM_SIZES, broken, read_header
from adamergex.files.tensor_header import TensorInfo as TensorInfo

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PICKLE = "adapter_model.bin"
HEAD_CONFIG, HEAD_TENSORS, HEAD_PICKLE = "head_config.json", "model_head.safetensors", "pytorch_model_head.bin"
DIFFERENCE = "sparse_difference.safetensors"
CARD = "README.md"
PROMPT_TYPES = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT")
CHUNK = 256 * 1024  # elements: enough to make the interpreter's overhead small, few enough for caches and memory
# The numpy dtype of stored elements; bfloat16 is the upper half of a float32.
_STORED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
FLOATS = frozenset(_STORED)

Array = NDArray[Any]


def compute_dtype(dtype: str) -> type[np.float32] | type[np.float64]:
    """The dtype for computing with a stored dtype: float64 for F64, else float32."""
    return np.float64 if dtype == "F64" else np.float32


@dataclass(frozen=True)
class AdapterDirectory:
    """An adapter as PEFT saved it: its parsed config and the layout of its tensors, without their values.

    Tensors have PEFT's names; ``stored``: our name -> the name in the file, where they differ."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    file: str = TENSORS
    stored: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> AdapterDirectory:
        """Parse ``adapter_config.json`` and the header of ``adapter_model.safetensors``.

        Raises:
            AdapterFileError: a file that is missing, truncated, malformed, or only a pickle (``adapter_model.bin``); an
                invalid config; tensor names of a wrapped model, or empty tensors of a sharded one.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise AdapterFileError(
                "no adapter directory found",
                where=directory,
                found="a file" if directory.exists() else "nothing",
                expected=f"a directory with {CONFIG} and {TENSORS}",
                fix="name the directory that save_pretrained wrote",
            )
        config = read_config(directory)
        kind = config.get("peft_type")
        names = "as stored" if kind is None else "prompt" if kind in PROMPT_TYPES else "modules"
        header = read_header(_tensors_path(directory), names=names)
        require_gathered(header.tensors.values(), directory / TENSORS)
        return cls(directory, config, header.tensors, header.metadata, stored=header.stored)

    @property
    def tensors_path(self) -> Path:
        """The safetensors file."""
        return self.path / self.file


def _tensors_path(directory: Path) -> Path:
    path = directory / TENSORS
    if os.path.lexists(path):
        return path  # opening refuses anything but a regular file
    others = sorted(item.name for item in directory.iterdir() if item.suffix in (".bin", ".pt", ".pth", ".safetensors"))
    convertible = {PICKLE, "pytorch_adapter.bin", "adapter.safetensors"} & set(others)  # PEFT's pickle, AdapterHub's
    raise AdapterFileError(
        "the adapter has no safetensors file",
        where=directory,
        found=", ".join(others[:8]) or "no tensors",
        expected=TENSORS,
        fix="convert it once with adamergex convert (a pickle could run code, so only its plain tensors are read), or "
        "save it again with safe_serialization=True"
        if convertible
        else "train or download the adapter again",
    )


def read_config(directory: Path) -> dict[str, Any]:
    """The checked ``adapter_config.json`` of a directory. Raises: AdapterFileError."""
    path = directory / CONFIG
    if not os.path.lexists(path):
        entries = sorted(item.name for item in directory.iterdir())[:8] if directory.is_dir() else ["no such directory"]
        raise AdapterFileError(
            "the adapter has no config",
            where=directory,
            found=", ".join(entries) or "an empty directory",
            expected=CONFIG,
            fix="name the directory that save_pretrained wrote",
        )
    return adapter_config.read(path)


def require_gathered(tensors: Iterable[TensorInfo], where: object) -> None:
    """Raises: AdapterFileError for an empty tensor: a shard of a model that was saved without gathering it."""
    empty = [info for info in tensors if not info.size]
    if empty:
        raise AdapterFileError(
            "the adapter holds empty tensors: it was saved before gathering its shards (DeepSpeed ZeRO-3, FSDP)",
            where=f"{where}: {empty[0].name}" + (f" and {len(empty) - 1} more" if len(empty) > 1 else ""),
            found=f"shape {empty[0].shape}",
            expected="tensors with values",
            fix="gather before saving (stage3_gather_16bit_weights_on_model_save, zero_to_fp32.py, or "
            "accelerator.get_state_dict), and save the adapter again",
        )


class TensorReader:
    """Reads ranges of one safetensors file into its own buffers, which the next read overwrites.

    ``shared``: a reader of the same file whose handle this one uses; it must stay open longer."""

    def __init__(self, directory: AdapterDirectory, shared: TensorReader | None = None) -> None:
        self.directory = directory
        self._file: FileIO = shared._file if shared else directory.tensors_path.open("rb", buffering=0)
        raw = np.empty(CHUNK, np.float64)
        self._bytes = raw.data.cast("B")
        self._stored = {dtype: raw.view(_STORED.get(dtype, np.uint8)) for dtype in ITEM_SIZES}
        self._floats = np.empty(CHUNK, np.float32)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def read(self, info: TensorInfo, start: int, stop: int) -> tuple[Array, Array]:
        """Elements ``start:stop`` (at most ``CHUNK``) as (float32, or float64 for F64; as stored), both (n,).

        For a dtype that is not floating point both are the stored bytes."""
        size = stop - start
        position, view = info.offset + start * info.item_size, self._bytes[: size * info.item_size]
        while view:
            count = os.preadv(self._file.fileno(), [view], position)
            if count == 0:
                raise broken(
                    self.directory.tensors_path, f"the file ends within {info.name}", "end of file", "more bytes"
                )
            view, position = view[count:], position + count
        stored = self._stored[info.dtype][: size if info.dtype in FLOATS else size * info.item_size]
        return decode(stored, info.dtype, self._floats[:size]), stored

    def load(self, info: TensorInfo) -> Array:
        """The whole tensor in its shape and compute dtype."""
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
    """Rounds values once to a stored dtype, to nearest with ties to even, into a buffer that it reuses."""

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

    Tensors are ordered by decreasing item size, then by name, as in the safetensors library: every offset is aligned,
    and equal tensors give equal bytes.
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
        """Close the file and check that it has the bytes that the header declares."""
        self._file.close()
        if self._written != self._end:
            raise AssertionError(f"{self._path}: wrote {self._written} bytes, declared {self._end}")

    def _put(self, view: memoryview, position: int) -> None:
        while view:
            count = os.pwrite(self._file.fileno(), view, position)
            view, position = view[count:], position + count
