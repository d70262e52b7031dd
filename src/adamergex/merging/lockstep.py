"""Reading several adapters in lockstep, a chunk at a time.

One thread: at these chunk sizes handing chunks from a reading thread to a merging one cost more than it hid (measured).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from adamergex.checkpoint import CHUNK, Array, TensorInfo, TensorReader
from adamergex.merging.layout import Layout


class Chunk(NamedTuple):
    """A range of one tensor of one adapter: values in float32 (float64 for F64), and as stored."""

    reader: TensorReader
    info: TensorInfo
    start: int
    values: Array
    stored: Array


class Span(NamedTuple):
    """Neighbouring tensors of one module (``None``: one head), as one flat tensor of each adapter that has them."""

    module: str | None
    sources: list[tuple[TensorReader, TensorInfo]]


Chunks = list[Chunk]


def ranges(size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the chunks of a tensor of ``size`` elements."""
    for start in range(0, size, CHUNK):
        yield start, min(start + CHUNK, size)


def spans(layout: Layout, order: Iterable[TensorInfo], readers: Sequence[TensorReader]) -> Iterator[Span]:
    """What is read together, in the order of writing; heads from the first adapter only."""
    for module, group in groupby(order, key=lambda info: layout.owner(info.name)):
        names = [info.name for info in group]
        if module is None:
            yield from (Span(None, [(readers[0], readers[0].directory.tensors[name])]) for name in names)
            continue
        # Adapters with the same header share its parsed tensors: looked up and joined once.
        same = {id(reader.directory.tensors): reader.directory.tensors for reader in readers}
        looked = {key: [tensors.get(name) for name in names] for key, tensors in same.items()}
        wholes = {key: _joined(module, infos) for key, infos in looked.items() if any(infos)}
        found = [(reader, looked[id(reader.directory.tensors)]) for reader in readers]
        joined = [(reader, wholes[id(reader.directory.tensors)]) for reader, infos in found if any(infos)]
        if all(whole is not None for _, whole in joined):
            yield Span(module, [(reader, whole) for reader, whole in joined if whole is not None])
            continue
        for index in range(len(names)):
            sources = [(reader, infos[index]) for reader, infos in found]
            yield Span(module, [(reader, info) for reader, info in sources if info is not None])


def _joined(module: str, infos: Sequence[TensorInfo | None]) -> TensorInfo | None:
    """Tensors that lie one after the other as one flat tensor: half as many chunks where tensors are small."""
    known = [info for info in infos if info is not None]
    first, position = known[0], known[0].offset
    for info in known:
        if info.offset != position or info.dtype != first.dtype:
            return None
        position += info.size * info.item_size
    size = sum(info.size for info in known)
    return TensorInfo(module, first.dtype, (size,), first.offset) if len(known) == len(infos) else None


def lockstep(plan: Iterable[Span]) -> Iterator[tuple[str | None, Chunks]]:
    """Every range of every span: its module, and the chunk of each adapter. The next step overwrites the chunks."""
    for module, sources in plan:
        for start, stop in ranges(sources[0][1].size):
            yield module, [Chunk(reader, info, start, *reader.read(info, start, stop)) for reader, info in sources]


def located(chunk: Chunk, index: int) -> tuple[str, list[int]]:
    """Name and index, in the file, of an element of a chunk."""
    position = chunk.info.offset + (chunk.start + index) * chunk.info.item_size
    for info in chunk.reader.directory.tensors.values():
        if info.offset <= position < info.offset + info.size * info.item_size:
            flat = (position - info.offset) // info.item_size
            return info.name, [int(axis) for axis in np.unravel_index(flat, info.shape)]
    raise AssertionError(f"no tensor at byte {position} of {chunk.reader.directory.tensors_path}")
