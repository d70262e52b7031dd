"""Element-wise merging, streamed: one chunk of each tensor at a time, from readers in lockstep into a writer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from adamergex.errors import AdapterFileError
from adamergex.files.directory import (
    CHUNK,
    FLOATS,
    Array,
    Encoder,
    SafetensorsWriter,
    TensorInfo,
    TensorReader,
    compute_dtype,
)
from adamergex.merging.cores import cores, shared
from adamergex.merging.lockstep import Chunk, Chunks, Span, located, lockstep, ranges, spans
from adamergex.merging.report import ModuleChange
from adamergex.merging.rules.rule import Rule
from adamergex.structures.layout import Layout

_BLOCK = 8192
_SAFE = 1e37  # a merged value below this fits float32 and bfloat16


def squares(values: Array) -> float:
    """Σ x², in blocks so small that BLAS takes one thread: the same on every machine, and exact enough in float32."""
    whole = len(values) // _BLOCK
    cut = whole * _BLOCK
    total = 0.0
    if whole:
        blocks = values[:cut].reshape(whole, _BLOCK)
        total = sum(np.vecdot(blocks, blocks).tolist())
    total = total if cut == len(values) else total + float(np.dot(values[cut:], values[cut:]))
    # Of finite values only the float32 sum overflows.
    return total if math.isfinite(total) else float(np.sum(np.square(values, dtype=np.float64)))


def finite_squares(chunk: Chunk) -> float:
    """Σ x² of a chunk, which also tells whether all of it is finite.

    Raises:
        AdapterFileError: naming file, tensor and index of the first value that is not.
    """
    total = squares(chunk.values)
    if math.isfinite(total):
        return total
    wrong = np.flatnonzero(~np.isfinite(chunk.values))
    index = int(wrong[0]) if len(wrong) else int(np.abs(chunk.values).argmax())
    name, place = located(chunk, index)
    raise AdapterFileError(
        "an adapter holds a number that is not finite"
        if len(wrong)
        else "an adapter holds a number that is too large to be computed with",
        where=f"{chunk.reader.directory.tensors_path}: {name}{place}",
        found=chunk.values[index],
        expected="finite numbers" if len(wrong) else "numbers whose squares float64 holds",
        fix="its training diverged: train it again",
    )


def load_finite(reader: TensorReader, info: TensorInfo) -> Array:
    """A whole tensor in its compute dtype. Raises: AdapterFileError, as ``finite_squares``."""
    values = reader.load(info)
    flat = values.reshape(-1)
    finite_squares(Chunk(reader, info, 0, flat, flat))
    return values


def require_finite(reader: TensorReader, infos: Iterable[TensorInfo]) -> None:
    """Read these tensors and raise AdapterFileError where one holds a number that is not finite."""
    with np.errstate(all="ignore"):
        for info in infos:
            for start, stop in ranges(info.size):
                chunk = Chunk(reader, info, start, *reader.read(info, start, stop))
                if info.dtype in FLOATS:
                    finite_squares(chunk)
                elif info.dtype in _EIGHT:
                    _require_eight(chunk)


# Of eight-bit floats the bits tell: a mask without the sign, and the first pattern that is no number.
_EIGHT = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}


def _require_eight(chunk: Chunk) -> None:
    if ((chunk.stored.view(np.uint8) & 0x7F) >= _EIGHT[chunk.info.dtype]).any():
        raise AdapterFileError(
            "an adapter holds a number that is not finite",
            where=f"{chunk.reader.directory.tensors_path}: {chunk.info.name}",
            found="NaN or infinity",
            expected="finite numbers",
            fix="its training diverged: train it again",
        )


def require_fits(reader: TensorReader, info: TensorInfo, stored: Array) -> None:
    """Raises AdapterFileError where a result, as stored, overflowed its dtype."""
    # Of bfloat16 the exponent tells: all ones is infinite or NaN.
    wrong = (stored & 0x7F80) == 0x7F80 if stored.dtype == np.uint16 else ~np.isfinite(stored)
    if wrong.any():
        raise AdapterFileError(
            f"the result for {info.name} does not fit its dtype",
            where=reader.directory.path,
            found="a value that is not finite",
            expected=f"finite numbers of dtype {info.dtype}",
            fix="use a smaller weight; check that the adapters belong together",
        )


def overflowed(reader: TensorReader, what: str) -> AdapterFileError:
    """Finite inputs whose combination is not."""
    return AdapterFileError(
        f"the numbers of {what} are too large to be combined",
        where=reader.directory.path,
        found="a result that is not finite",
        expected="adapters whose sums, products and their squares float64 holds",
        fix="a training diverged: train it again",
    )


@dataclass
class Tally:
    """Sums of squares of one module, as its tensors pass by."""

    task: float = 0.0
    divergence: float = 0.0
    change: float = 0.0
    guarded: int = 0
    changed: bool = False

    def add(self, other: Tally) -> None:
        """Another part of the same module."""
        self.task += other.task
        self.divergence += other.divergence
        self.change += other.change
        self.guarded += other.guarded
        self.changed = self.changed or other.changed

    def closed(self, module: str, merged: bool, where: TensorReader) -> ModuleChange:
        """What the report says of the module. Raises: AdapterFileError where a sum overflowed."""
        sums = (self.task, self.divergence, self.change)
        if not all(map(math.isfinite, sums)):
            raise overflowed(where, module)
        task, divergence, change = map(math.sqrt, sums)
        return ModuleChange(module, merged, self.changed, task, divergence, change, self.guarded)


class Buffers:
    """What one thread works with: readers of its own of the adapters, and room for a divergence and what is stored."""

    def __init__(self, readers: Sequence[TensorReader]) -> None:
        self.readers, self.encode = readers, Encoder()
        self._room = np.empty(CHUNK, np.float64)

    def room(self, chunk: Chunk) -> Array:
        """Room for as many values as a chunk has, of their dtype."""
        return self._room.view(chunk.values.dtype)[: len(chunk.values)]


def buffers(readers: Sequence[TensorReader], pieces: int) -> list[Buffers]:
    """A buffer a thread, at most one a piece; all of them read through the files of ``readers``."""
    threads = min(cores(), pieces)
    others = [[TensorReader(reader.directory, reader) for reader in readers] for _ in range(threads - 1)]
    return [Buffers(readers), *map(Buffers, others)]


def reference_divergence(rule: Rule, references: Chunks, tally: Tally, room: Array) -> tuple[Array, float]:
    """D of one chunk, in ``room`` or not, and Σ D²; from the target and the source reference (of the average, the
    target alone).

    Raises:
        AdapterFileError: an input that is not finite, or a divergence that overflows.
    """
    target, source = references[0], references[-1]
    divergence = rule.divergence(target.values, source.values, out=room)
    total = squares(divergence)
    # Only a linear rule shows every value that is not finite in D; a ratio may hide an infinite denominator.
    if not (rule.linear and math.isfinite(total)):
        for chunk in references:
            finite_squares(chunk)
        require_fits(target.reader, target.info, divergence)
        total = float(np.sum(np.square(divergence, dtype=np.float64)))
        if not math.isfinite(total):
            raise overflowed(target.reader, target.info.name)
    if rule.guarded:
        tally.guarded += int(rule.guarded(source.values).sum())
    return divergence, total


@dataclass(frozen=True)
class ElementwiseMerge:
    """The merge of every chosen tensor by a rule, and a copy of every other tensor of the task.

    ``weight``: one, or by module. ``others``: target and source reference, the target alone for the average, or one
    ``saved`` divergence."""

    rule: Rule
    weight: float | Mapping[str, float]
    layout: Layout
    chosen: frozenset[str]
    task: TensorReader
    others: tuple[TensorReader, ...]
    saved: bool = False

    def write(self, path: Path) -> list[ModuleChange]:
        """Write the merged tensors file."""
        directory = self.layout.directory
        writer = SafetensorsWriter(path, list(directory.tensors.values()), directory.metadata)
        readers = (self.task, *self.others)
        plan = list(spans(self.layout, writer.order, readers))
        found = shared(partial(self._written, writer), buffers(readers, len(plan)), plan)
        writer.close()
        return [
            tally.closed(name, name in self.chosen, self.task) for name, tally in summed(self.layout.sites, plan, found)
        ]

    def _written(self, writer: SafetensorsWriter, buffer: Buffers, span: Span) -> Tally:
        """The merge of one span."""
        tally, position = Tally(), span.position
        with np.errstate(all="ignore"):  # what is not finite is found and named
            for task, *others in lockstep(span, buffer.readers):
                if span.module in self.chosen:
                    stored = self._merged(span.module, task, others, tally, buffer)
                else:
                    if task.info.dtype in FLOATS:
                        tally.task += finite_squares(task)
                    elif task.info.dtype in _EIGHT:
                        _require_eight(task)
                    for chunk in others:
                        finite_squares(chunk)
                    stored = task.stored
                writer.write_at(position, stored)
                position += stored.nbytes
        return tally

    def _merged(self, module: str, task: Chunk, others: Chunks, tally: Tally, buffer: Buffers) -> Array:
        """One chunk of the result as stored, its sums added to the tally."""
        rule, room = self.rule, buffer.room(task)
        weight = self.weight[module] if isinstance(self.weight, Mapping) else self.weight
        if self.saved:
            divergence, d_squares = others[0].values, finite_squares(others[0])
        else:
            divergence, d_squares = reference_divergence(rule, others, tally, room)
        task_squares = finite_squares(task)
        tally.task += task_squares
        tally.divergence += squares(divergence - rule.neutral) if rule.neutral else d_squares
        # -0 + 0 is +0: a divergence of nothing must leave the very bits of the task.
        if weight == 0.0 or (rule.linear and d_squares == 0.0 and not divergence.any()):
            return task.stored
        merged = rule.shift(task.values, divergence, weight, out=room)
        tally.change += weight * weight * d_squares if rule.linear else squares(merged - task.values)
        encoded = buffer.encode(merged, task.info.dtype)
        bound = math.sqrt(task_squares) + abs(weight) * math.sqrt(d_squares)
        if not rule.linear or bound > _SAFE or task.info.dtype == "F16":
            require_fits(task.reader, task.info, encoded)
        tally.changed = tally.changed or _differs(encoded, task.stored)
        return encoded


def write_divergence(
    path: Path, rule: Rule, layout: Layout, chosen: frozenset[str], readers: tuple[TensorReader, TensorReader]
) -> list[ModuleChange]:
    """Write D of the chosen modules in the dtype it is computed in; ``changed``: whether D is other than neutral."""
    kept = [info for module in sorted(chosen) for info in layout.sites[module].tensors.values()]
    writer = SafetensorsWriter(path, [_computed(info) for info in kept])
    neutral, plan = rule.neutral or 0.0, list(spans(layout, writer.order, readers))

    def written(buffer: Buffers, span: Span) -> Tally:
        tally, position = Tally(), span.position
        with np.errstate(all="ignore"):
            for references in lockstep(span, buffer.readers):
                divergence, total = reference_divergence(rule, references, tally, buffer.room(references[0]))
                tally.divergence += squares(divergence - neutral) if neutral else total
                tally.changed = tally.changed or bool((divergence != neutral).any())
                writer.write_at(position, divergence)
                position += divergence.nbytes
        return tally

    found = shared(written, buffers(readers, len(plan)), plan)
    writer.close()
    return [tally.closed(module, True, readers[0]) for module, tally in summed(sorted(chosen), plan, found)]


def summed(modules: Iterable[str], plan: Iterable[Span], found: Iterable[Tally]) -> Iterable[tuple[str, Tally]]:
    """Module -> its tally, added up in the order of the plan: the same sums, however many threads made them."""
    tallies = {module: Tally() for module in modules}
    for span, tally in zip(plan, found, strict=True):
        if span.module is not None:
            tallies[span.module].add(tally)
    return tallies.items()


def _computed(info: TensorInfo) -> TensorInfo:
    return TensorInfo(info.name, "F64" if compute_dtype(info.dtype) is np.float64 else "F32", info.shape)


def _differs(encoded: Array, stored: Array) -> bool:
    """Whether any bit differs; the first elements nearly always tell."""
    return encoded[:1024].tobytes() != stored[:1024].tobytes() or encoded.tobytes() != stored.tobytes()
