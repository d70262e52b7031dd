"""Sparse differences of composable fine-tuning: composable-sft's ``pytorch_diff.bin`` and our safetensors.

A difference holds flat row-major indices and the values to add there for some parameters, and whole tensors that
replace the model's for others (a task's head). Source: Ansell et al. 2022 (2110.07560) §3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from adamergex.errors import AdapterFileError, IncompatibleAdaptersError
from adamergex.files import inputs
from adamergex.files.directory import DIFFERENCE, SafetensorsWriter, TensorInfo
from adamergex.files.lineage import Lineage
from adamergex.files.outputs import staged_directory
from adamergex.files.tensor_files import plain_tensors, read_pickle
from adamergex.files.tensor_header import read_header

SFT_FILE, TENSORS = "pytorch_diff.bin", DIFFERENCE
FORMAT = "adamergex-sparse-difference/1"
_DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32",
    torch.int64: "I64",
}  # fmt: skip
# In composable-sft's files the first index of each tensor is a numpy integer: allow its scalar and dtype only.
_NUMPY = (type(np.int64(0)).__reduce__(np.int64(0))[0], np.dtype, np.dtypes.Int64DType)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """``values`` (n,) to add at flat row-major ``indices`` (n,), int64 and increasing, of a tensor of ``shape``."""

    shape: tuple[int, ...]
    indices: torch.Tensor
    values: torch.Tensor

    def dense(self) -> torch.Tensor:
        """The difference as a dense tensor."""
        whole = torch.zeros(self.shape, dtype=self.values.dtype)
        whole.view(-1)[self.indices] = self.values
        return whole


@dataclass(frozen=True, eq=False)
class SparseDifference:
    """Parameter name -> the values to add to it (``sparse``), or the tensor that replaces it (``whole``)."""

    sparse: Mapping[str, SparseTensor]
    whole: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def values(self) -> dict[str, torch.Tensor]:
        """Parameter name -> the values of either."""
        return {**{name: entry.values for name, entry in self.sparse.items()}, **self.whole}


def most_moved(moved: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Masks of the entries that are at least as large as the ``count``-th largest of all (float32, not negative).

    Ties are chosen too, zeros never. No copy of all entries is made: non-negative floats are ordered as their bits, so
    the threshold is found bit by bit.
    """
    threshold = 0
    for bit in range(30, -1, -1):
        trial = threshold | 1 << bit
        if sum(int((tensor.view(torch.int32) >= trial).sum()) for tensor in moved.values()) >= count:
            threshold = trial
    return {name: tensor.view(torch.int32) >= max(threshold, 1) for name, tensor in moved.items()}


def read_difference(path: str | Path) -> SparseDifference:
    """Read a directory or a file; in a directory our file takes precedence over composable-sft's.

    Raises: AdapterFileError when it is missing, damaged, malicious, not finite, or points outside its tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = path / TENSORS if (path / TENSORS).is_file() else path / SFT_FILE
    if not path.is_file():
        raise _broken(path, "no sparse difference found", "nothing", f"{TENSORS} or {SFT_FILE}")
    difference = _read_ours(path) if path.suffix == ".safetensors" else _read_composable_sft(path)
    for name, entry in difference.sparse.items():
        size, where = int(np.prod(entry.shape)), f"{path}: {name}"
        increasing = bool((entry.indices[1:] > entry.indices[:-1]).all())
        if entry.indices.shape != entry.values.shape or entry.values.ndim != 1 or not increasing:
            raise _broken(where, "indices and values do not match", tuple(entry.indices.shape), "increasing, one each")
        if len(entry.indices) and not 0 <= int(entry.indices[0]) <= int(entry.indices[-1]) < size:
            raise _broken(where, "an index lies outside its tensor", int(entry.indices[-1]), f"below {size}")
    for name, tensor in difference.values().items():
        if not torch.isfinite(tensor).all():
            raise _broken(f"{path}: {name}", "a value is not finite", "NaN or infinity", "numbers")
    return difference


def write_difference(directory: str | Path, difference: SparseDifference, *, lineage: Lineage | None = None) -> Path:
    """Write ``sparse_difference.safetensors``, atomically. Raises: AdapterFileError when it exists."""
    with staged_directory(directory) as stage:
        write_file(stage, difference)
        if lineage:
            lineage.write(stage)
    return Path(directory)


def write_file(directory: Path, difference: SparseDifference) -> None:
    """Write ``sparse_difference.safetensors`` into an existing directory; equal differences give equal bytes.

    Indices take 4 bytes in tensors of fewer than 2³¹ entries."""
    tensors = {f"whole.{name}": tensor for name, tensor in difference.whole.items()}
    for name, entry in difference.sparse.items():
        short = np.prod(entry.shape, dtype=np.int64) < 1 << 31
        indices = entry.indices.to(torch.int32) if short else entry.indices
        tensors |= {f"indices.{name}": indices, f"values.{name}": entry.values}
    shapes = {name: list(entry.shape) for name, entry in sorted(difference.sparse.items())}
    # Our own writer fixes the order of the metadata; the safetensors library does not.
    infos = [TensorInfo(name, _DTYPES[tensor.dtype], tuple(tensor.shape), 0) for name, tensor in tensors.items()]
    about = {"format": FORMAT, "shapes": json.dumps(shapes)}
    writer = SafetensorsWriter(directory / TENSORS, infos, about)
    for info in writer.order:
        flat = tensors[info.name].detach().cpu().contiguous().view(-1)
        writer.write(flat.view(torch.uint8).numpy())
    writer.close()


def export_difference(directory: str | Path, difference: SparseDifference, *, lineage: Lineage | None = None) -> Path:
    """Write composable-sft's ``pytorch_diff.bin``. Raises: AdapterFileError when the directory exists."""
    diffs = {}
    for name, entry in difference.sparse.items():
        flat, order = torch.sort(_to_columns(entry.indices, entry.shape))
        steps = torch.diff(flat, prepend=torch.zeros(1, dtype=torch.int64)).tolist()
        diffs[name] = {"size": torch.Size(entry.shape), "index_steps": steps, "values": entry.values[order].cpu()}
    whole = {name: tensor.detach().cpu() for name, tensor in difference.whole.items()}
    with staged_directory(directory) as stage:
        torch.save({"diffs": diffs, "abs": whole}, stage / SFT_FILE)
        if lineage:
            lineage.write(stage)
    return Path(directory)


@torch.no_grad()
def apply_difference(model: nn.Module, difference: SparseDifference, *, with_whole: bool = True) -> None:
    """θ <- θ + δ in place, and the whole tensors copied unless ``with_whole`` is false (a language difference).

    A tied output matrix changes with the embeddings unless ``untie_output`` is called first.
    Raises: IncompatibleAdaptersError, before any change, for a missing parameter or another shape.
    """
    parameters, whole = _parameters(model), difference.whole if with_whole else {}
    _require(parameters, difference, whole)
    for name, entry in difference.sparse.items():
        flat = parameters[name].view(-1)
        flat.index_add_(0, entry.indices.to(flat.device), entry.values.to(flat))
    for name, tensor in whole.items():
        parameters[name].copy_(tensor)


def untie_output(model: Any) -> bool:
    """Replace an output matrix tied to the embeddings by a frozen copy; returns whether it was tied.

    A sparse difference changes the embeddings for reading tokens only; the matrix that predicts them stays the base's,
    in training (Ansell et al. untie and freeze it) and in use. Without untying, a difference still fits the model but
    changes its output matrix too. Models with a task's head have no output matrix.
    """
    outputs = model.get_output_embeddings()
    if outputs is None:
        return False
    shared = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    tied = {name: tensor for name, tensor in outputs.named_parameters(recurse=False) if id(tensor) in shared}
    for name, tensor in tied.items():
        setattr(outputs, name, nn.Parameter(tensor.detach().clone(), requires_grad=False))
    return bool(tied)


@contextmanager
def applied(model: nn.Module, *differences: SparseDifference) -> Iterator[nn.Module]:
    """Apply several differences, in order, for a while; afterwards every changed entry has its old bits again.

    Raises: as ``apply_difference``.
    """
    parameters = _parameters(model)
    for difference in differences:
        _require(parameters, difference, difference.whole)
    names = {name for difference in differences for name in difference.sparse}
    replaced = {name for difference in differences for name in difference.whole}
    old: dict[str, tuple[torch.Tensor | None, torch.Tensor]] = {}
    for name in names | replaced:
        touched = [entry.sparse[name].indices for entry in differences if name in entry.sparse]
        indices = None if name in replaced else torch.unique(torch.cat(touched)).to(parameters[name].device)
        flat = parameters[name].detach().reshape(-1)
        old[name] = indices, flat.clone() if indices is None else flat[indices]
    try:
        for difference in differences:
            apply_difference(model, difference)
        yield model
    finally:
        with torch.no_grad():
            for name, (indices, values) in old.items():
                flat = parameters[name].view(-1)
                flat[slice(None) if indices is None else indices] = values


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _require(
    parameters: Mapping[str, nn.Parameter], difference: SparseDifference, whole: Mapping[str, torch.Tensor]
) -> None:
    wanted = {name: entry.shape for name, entry in difference.sparse.items()}
    wanted |= {name: tuple(tensor.shape) for name, tensor in whole.items()}
    for name, shape in wanted.items():
        present = tuple(parameters[name].shape) if name in parameters else "no such parameter"
        if present != tuple(shape):
            raise IncompatibleAdaptersError(
                "the sparse difference does not fit this model; nothing was changed",
                where=name,
                found=present,
                expected=tuple(shape),
                fix="use the base it was trained from; apply a language difference with with_whole=False",
            )
    seen = {id(parameters[name]): name for name in wanted}
    if len(seen) < len(wanted):
        raise IncompatibleAdaptersError(
            "the sparse difference holds one tied parameter under two names and would be applied twice",
            found=sorted(set(wanted) - set(seen.values())),
            fix="drop one of the names",
        )


def _read_ours(path: Path) -> SparseDifference:
    read_header(path)
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        shapes = inputs.parse_json(metadata.get("shapes", "null"))
        if metadata.get("format") != FORMAT or not isinstance(shapes, dict):
            raise ValueError(f"format {metadata.get('format')!r}")
        if not all(isinstance(shape, list) and all(map(_is_size, shape)) for shape in shapes.values()):
            raise ValueError(f"shapes {metadata['shapes'][:80]}")
        sparse = {
            name: SparseTensor(tuple(shape), tensors[f"indices.{name}"].to(torch.int64), tensors[f"values.{name}"])
            for name, shape in shapes.items()
        }
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, "the sparse difference cannot be read", error, FORMAT) from error
    whole = {key.removeprefix("whole."): tensor for key, tensor in tensors.items() if key.startswith("whole.")}
    return SparseDifference(sparse, whole)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 40


def _read_composable_sft(path: Path) -> SparseDifference:
    contents = read_pickle(path, _NUMPY)
    try:
        sparse = {str(name): _decode(entry) for name, entry in contents["diffs"].items()}
        whole = plain_tensors(contents.get("abs", {}), path)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        raise _broken(path, "the file is not one of composable-sft", repr(error), "diffs and abs") from error
    return SparseDifference(sparse, whole)


def _decode(entry: Mapping[str, Any]) -> SparseTensor:
    """Steps between column-major flat indices, the first one absolute -> increasing row-major indices."""
    shape = tuple(int(size) for size in entry["size"])
    flat = torch.tensor([int(step) for step in entry["index_steps"]], dtype=torch.int64).cumsum(0)
    inside = int(np.prod(shape))
    if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < inside:
        raise ValueError(f"index {int(flat.max())} in a tensor of {inside}")
    values = torch.as_tensor(entry["values"])
    if values.shape != flat.shape:
        raise ValueError(f"{len(flat)} indices for values of shape {tuple(values.shape)}")
    indices, order = torch.sort(_from_columns(flat, shape))
    return SparseTensor(shape, indices, values[order])


def _from_columns(flat: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Column-major (first dimension fastest) to row-major flat indices."""
    rows, stride = torch.zeros_like(flat), int(np.prod(shape))
    for size in shape:
        stride //= size
        rows, flat = rows + (flat % size) * stride, flat // size
    return rows


def _to_columns(flat: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Row-major to column-major flat indices."""
    columns, stride = torch.zeros_like(flat), int(np.prod(shape))
    for size in reversed(shape):
        stride //= size
        columns, flat = columns + (flat % size) * stride, flat // size
    return columns


def _broken(where: object, problem: str, found: object, expected: object) -> AdapterFileError:
    return AdapterFileError(
        problem, where=where, found=found, expected=expected, fix="download or export the difference again"
    )
