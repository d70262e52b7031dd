"""Reading several adapters in lockstep, a chunk at a time.

A thread reads what it merges: handing chunks from a reading thread to a merging one cost more than it hid (measured).
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


class Span(NamedTuple):
    """Neighbouring tensors of one module (``None``: one head), as one flat tensor of each adapter that has them.

    ``sources``: which of the adapters, and the tensor; ``position``: its first byte among the tensors written."""

    module: str | None
    sources: list[tuple[int, TensorInfo]]
    position: int


Chunks = list[Chunk]


def ranges(size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the chunks of a tensor of ``size`` elements."""
    for start in range(0, size, CHUNK):
        yield start, min(start + CHUNK, size)


def spans(layout: Layout, order: Iterable[TensorInfo], readers: Sequence[TensorReader]) -> Iterator[Span]:
    """What is read together, in the order of writing; heads from the first adapter only."""
    # Adapters with the same header share its parsed tensors: looked up and joined once.
    same = {id(reader.directory.tensors): reader.directory.tensors for reader in readers}
    position = 0
    for module, group in groupby(order, key=lambda info: layout.owner(info.name)):
        written = list(group)
        starts = list(accumulate((info.size * info.item_size for info in written), initial=position))
        position = starts[-1]
        if module is None:
            own = readers[0].directory.tensors
            yield from (Span(None, [(0, own[info.name])], start) for info, start in zip(written, starts, strict=False))
            continue
        looked = {key: [tensors.get(info.name) for info in written] for key, tensors in same.items()}
        wholes = {key: _joined(module, infos) for key, infos in looked.items() if any(infos)}
        found = [(number, id(reader.directory.tensors)) for number, reader in enumerate(readers)]
        joined = [(number, wholes[key]) for number, key in found if key in wholes]
        if all(whole is not None for _, whole in joined):
            yield Span(module, [(number, whole) for number, whole in joined if whole is not None], starts[0])
            continue
        for index, start in enumerate(starts[:-1]):
            sources = [(number, looked[key][index]) for number, key in found]
            yield Span(module, [(number, info) for number, info in sources if info is not None], start)


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


def lockstep(span: Span, readers: Sequence[TensorReader]) -> Iterator[Chunks]:
    """Every range of a span, as the chunk of each adapter. The next step overwrites the chunks."""
    sources = [(readers[number], info) for number, info in span.sources]
    for start, stop in ranges(sources[0][1].size):
        yield [Chunk(reader, info, start, *reader.read(info, start, stop)) for reader, info in sources]


def located(chunk: Chunk, index: int) -> tuple[str, list[int]]:
    """Name and index, in the file, of an element of a chunk."""
    position = chunk.info.offset + (chunk.start + index) * chunk.info.item_size
    for info in chunk.reader.directory.tensors.values():
        if info.offset <= position < info.offset + info.size * info.item_size:
            flat = (position - info.offset) // info.item_size
            return info.name, [int(axis) for axis in np.unravel_index(flat, info.shape)]
    raise AssertionError(f"no tensor at byte {position} of {chunk.reader.directory.tensors_path}")
