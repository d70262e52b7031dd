"""Reads several adapters in lockstep, chunk by chunk.

Each thread reads what it merges: passing chunks from a reading to a merging thread was slower (measured).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import numpy as np

from adamergex.files.directory import CHUNK, Array, TensorInfo, TensorReader
from adamergex.structures.layout import Layout


class Chunk(NamedTuple):
    """A range of one tensor of one adapter: values in float32 (float64 for F64), and as stored."""

    reader: TensorReader
    info: TensorInfo
    start: int
    values: Array
    stored: Array


class TensorRun(NamedTuple):
    """Adjacent tensors of one module (``None``: one head tensor) as one flat tensor per adapter that has them.

    ``sources``: index of the adapter, and the tensor; ``position``: its first byte among the written tensors."""

    module: str | None
    sources: list[tuple[int, TensorInfo]]
    position: int


Chunks = list[Chunk]


def ranges(size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the chunks of a tensor of ``size`` elements."""
    for start in range(0, size, CHUNK):
        yield start, min(start + CHUNK, size)


def tensor_runs(layout: Layout, order: Iterable[TensorInfo], readers: Sequence[TensorReader]) -> Iterator[TensorRun]:
    """The tensors to read together, in the order of writing; heads from the first adapter only."""
    # Adapters with equal headers share the parsed tensors, so they are looked up and joined once.
    headers = {id(reader.directory.tensors): reader.directory.tensors for reader in readers}
    position = 0
    for module, group in groupby(order, key=lambda info: layout.owner(info.name)):
        written = list(group)
        starts = list(accumulate((info.size * info.item_size for info in written), initial=position))
        position = starts[-1]
        if module is None:
            first = readers[0].directory.tensors
            for info, start in zip(written, starts, strict=False):
                yield TensorRun(None, [(0, first[info.name])], start)
            continue
        stored = {key: [tensors.get(info.name) for info in written] for key, tensors in headers.items()}
        flat = {key: _joined(module, infos) for key, infos in stored.items() if any(infos)}
        keys = [(number, id(reader.directory.tensors)) for number, reader in enumerate(readers)]
        joined = [(number, flat[key]) for number, key in keys if key in flat]
        if all(whole is not None for _, whole in joined):
            yield TensorRun(module, [(number, whole) for number, whole in joined if whole is not None], starts[0])
            continue
        for index, start in enumerate(starts[:-1]):
            sources = [(number, stored[key][index]) for number, key in keys]
            yield TensorRun(module, [(number, info) for number, info in sources if info is not None], start)


def _joined(module: str, infos: Sequence[TensorInfo | None]) -> TensorInfo | None:
    """Adjacent tensors as one flat tensor, which halves the number of chunks of small tensors; None if not adjacent."""
    known = [info for info in infos if info is not None]
    first, position = known[0], known[0].offset
    for info in known:
        if info.offset != position or info.dtype != first.dtype:
            return None
        position += info.size * info.item_size
    size = sum(info.size for info in known)
    return TensorInfo(module, first.dtype, (size,), first.offset) if len(known) == len(infos) else None


def lockstep(run: TensorRun, readers: Sequence[TensorReader]) -> Iterator[Chunks]:
    """Every range of a run, as one chunk per adapter. The next step overwrites the chunks."""
    sources = [(readers[number], info) for number, info in run.sources]
    for start, stop in ranges(sources[0][1].size):
        yield [Chunk(reader, info, start, *reader.read(info, start, stop)) for reader, info in sources]


def located(chunk: Chunk, index: int) -> tuple[str, list[int]]:
    """The tensor's name in the file and the index in it of an element of a chunk."""
    position = chunk.info.offset + (chunk.start + index) * chunk.info.item_size
    for info in chunk.reader.directory.tensors.values():
        if info.offset <= position < info.offset + info.size * info.item_size:
            flat = (position - info.offset) // info.item_size
            return info.name, [int(axis) for axis in np.unravel_index(flat, info.shape)]
    raise AssertionError(f"no tensor at byte {position} of {chunk.reader.directory.tensors_path}")
