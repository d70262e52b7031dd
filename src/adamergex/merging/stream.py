"""Streams element-wise merges: one chunk of each tensor at a time, from readers in lockstep into a writer."""

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
from adamergex.merging.lockstep import Chunk, Chunks, TensorRun, located, lockstep, ranges, tensor_runs
from adamergex.merging.report import ModuleChange
from adamergex.merging.rules.rule import Rule
from adamergex.structures.layout import Layout

_BLOCK = 8192
_SAFE = 1e37  # a merged value below this fits float32 and bfloat16


def squares(values: Array) -> float:
    """Σ x² in blocks small enough for one BLAS thread: equal on every machine, and exact enough in float32."""
    whole = len(values) // _BLOCK
    cut = whole * _BLOCK
    total = 0.0
    if whole:
        blocks = values[:cut].reshape(whole, _BLOCK)
        total = sum(np.vecdot(blocks, blocks).tolist())
    total = total if cut == len(values) else total + float(np.dot(values[cut:], values[cut:]))
    # For finite values only the float32 sum can overflow.
    return total if math.isfinite(total) else float(np.sum(np.square(values, dtype=np.float64)))


def finite_squares(chunk: Chunk) -> float:
    """Σ x² of a chunk, which also checks that all values are finite.

    Raises:
        AdapterFileError: with file, tensor and index of the first value that is not finite.
    """
    total = squares(chunk.values)
    if math.isfinite(total):
        return total
    wrong = np.flatnonzero(~np.isfinite(chunk.values))
    index = int(wrong[0]) if len(wrong) else int(np.abs(chunk.values).argmax())
    name, position = located(chunk, index)
    raise AdapterFileError(
        "an adapter holds a number that is not finite"
        if len(wrong)
        else "an adapter holds a number that is too large to compute with",
        where=f"{chunk.reader.directory.tensors_path}: {name}{position}",
        found=chunk.values[index],
        expected="finite numbers" if len(wrong) else "numbers whose squares fit float64",
        fix="its training diverged: train it again",
    )


def load_finite(reader: TensorReader, info: TensorInfo) -> Array:
    """A whole tensor in its compute dtype. Raises: AdapterFileError, as ``finite_squares``."""
    values = reader.load(info)
    flat = values.reshape(-1)
    finite_squares(Chunk(reader, info, 0, flat, flat))
    return values


def require_finite(reader: TensorReader, infos: Iterable[TensorInfo]) -> None:
    """Read these tensors. Raises: AdapterFileError for a number that is not finite."""
    with np.errstate(all="ignore"):
        for info in infos:
            for start, stop in ranges(info.size):
                chunk = Chunk(reader, info, start, *reader.read(info, start, stop))
                if info.dtype in FLOATS:
                    finite_squares(chunk)
                elif info.dtype in _EIGHT:
                    _require_eight(chunk)


# The first bit pattern, without sign, of an eight-bit float that is not a finite number.
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
    """Raises: AdapterFileError when a stored result overflowed its dtype."""
    # In bfloat16 an exponent of all ones is infinity or NaN.
    wrong = (stored & 0x7F80) == 0x7F80 if stored.dtype == np.uint16 else ~np.isfinite(stored)
    if wrong.any():
        raise AdapterFileError(
            f"the result for {info.name} does not fit its dtype",
            where=reader.directory.path,
            found="a value that is not finite",
            expected=f"finite numbers of dtype {info.dtype}",
            fix="use a smaller weight; check that the adapters belong together",
        )


def write_encoded(
    writer: SafetensorsWriter, encode: Encoder, reader: TensorReader, info: TensorInfo, values: Array
) -> None:
    """Write a whole tensor from its compute dtype, rounded once. Raises: AdapterFileError when a value overflows."""
    flat = np.ascontiguousarray(values, compute_dtype(info.dtype)).reshape(-1)
    for start, stop in ranges(len(flat)):
        encoded = encode(flat[start:stop], info.dtype)
        require_fits(reader, info, encoded)
        writer.write(encoded)


def overflowed(reader: TensorReader, what: str) -> AdapterFileError:
    """The error for finite inputs whose combination is not finite."""
    return AdapterFileError(
        f"the numbers in {what} are too large to combine",
        where=reader.directory.path,
        found="a result that is not finite",
        expected="adapters whose sums, products and squares fit float64",
        fix="a training diverged: train it again",
    )


@dataclass
class Tally:
    """The running sums of squares of one module."""

    task: float = 0.0
    divergence: float = 0.0
    change: float = 0.0
    guarded: int = 0
    changed: bool = False

    def add(self, other: Tally) -> None:
        """Add the sums of another part of the module."""
        self.task += other.task
        self.divergence += other.divergence
        self.change += other.change
        self.guarded += other.guarded
        self.changed = self.changed or other.changed

    def closed(self, module: str, merged: bool, where: TensorReader) -> ModuleChange:
        """The module's entry in the report. Raises: AdapterFileError when a sum overflowed."""
        sums = (self.task, self.divergence, self.change)
        if not all(map(math.isfinite, sums)):
            raise overflowed(where, module)
        task, divergence, change = map(math.sqrt, sums)
        return ModuleChange(module, merged, self.changed, task, divergence, change, self.guarded)


class Buffers:
    """The buffers of one thread: its own readers of the adapters, and space for a divergence and stored values."""

    def __init__(self, readers: Sequence[TensorReader]) -> None:
        self.readers, self.encode = readers, Encoder()
        self._room = np.empty(CHUNK, np.float64)

    def room(self, chunk: Chunk) -> Array:
        """Space for the values of a chunk, in their dtype."""
        return self._room.view(chunk.values.dtype)[: len(chunk.values)]


def buffers(readers: Sequence[TensorReader], runs: int) -> list[Buffers]:
    """One set of buffers per thread, at most one per run; all read the open files of ``readers``."""
    threads = min(cores(), runs)
    others = [[TensorReader(reader.directory, reader) for reader in readers] for _ in range(threads - 1)]
    return [Buffers(readers), *map(Buffers, others)]


def reference_divergence(rule: Rule, references: Chunks, tally: Tally, room: Array) -> tuple[Array, float]:
    """D of one chunk, possibly in ``room``, and Σ D²; from target and source reference (for the average, the target
    only).

    Raises:
        AdapterFileError: an input that is not finite, or a divergence that overflows.
    """
    target, source = references[0], references[-1]
    divergence = rule.divergence(target.values, source.values, out=room)
    total = squares(divergence)
    # Only with a linear rule D shows every value that is not finite; a ratio may hide an infinite denominator.
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
    """Merges the chosen modules by a rule, and copies every other tensor of the task.

    ``weight``: one, or by module. ``others``: target and source reference, only the target for the average, or one
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
        runs = list(tensor_runs(self.layout, writer.order, readers))
        tallies = shared(partial(self._write_run, writer), buffers(readers, len(runs)), runs)
        writer.close()
        by_module = summed(self.layout.sites, runs, tallies)
        return [tally.closed(name, name in self.chosen, self.task) for name, tally in by_module]

    def _write_run(self, writer: SafetensorsWriter, buffer: Buffers, run: TensorRun) -> Tally:
        """Merge or copy one run of tensors."""
        tally, position = Tally(), run.position
        with np.errstate(all="ignore"):  # values that are not finite are reported
            for task, *others in lockstep(run, buffer.readers):
                if run.module in self.chosen:
                    stored = self._merged(run.module, task, others, tally, buffer)
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
        """Merge one chunk, as stored, and add its sums to the tally."""
        rule, room = self.rule, buffer.room(task)
        weight = self.weight[module] if isinstance(self.weight, Mapping) else self.weight
        if self.saved:
            divergence, d_squares = others[0].values, finite_squares(others[0])
        else:
            divergence, d_squares = reference_divergence(rule, others, tally, room)
        task_squares = finite_squares(task)
        tally.task += task_squares
        tally.divergence += squares(divergence - rule.neutral) if rule.neutral else d_squares
        # -0 + 0 is +0: a divergence of zero must keep the task's bits.
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
    """Write D of the chosen modules in its compute dtype; ``changed``: whether D differs from neutral."""
    infos = [info for module in sorted(chosen) for info in layout.sites[module].tensors.values()]
    writer = SafetensorsWriter(path, [_computed(info) for info in infos])
    neutral, runs = rule.neutral or 0.0, list(tensor_runs(layout, writer.order, readers))

    def write_run(buffer: Buffers, run: TensorRun) -> Tally:
        tally, position = Tally(), run.position
        with np.errstate(all="ignore"):
            for references in lockstep(run, buffer.readers):
                divergence, total = reference_divergence(rule, references, tally, buffer.room(references[0]))
                tally.divergence += squares(divergence - neutral) if neutral else total
                tally.changed = tally.changed or bool((divergence != neutral).any())
                writer.write_at(position, divergence)
                position += divergence.nbytes
        return tally

    tallies = shared(write_run, buffers(readers, len(runs)), runs)
    writer.close()
    return [tally.closed(module, True, readers[0]) for module, tally in summed(sorted(chosen), runs, tallies)]


def summed(modules: Iterable[str], runs: Iterable[TensorRun], tallies: Iterable[Tally]) -> Iterable[tuple[str, Tally]]:
    """Module -> its tally, summed in the order of the runs, so that the sums do not depend on the threads."""
    sums = {module: Tally() for module in modules}
    for run, tally in zip(runs, tallies, strict=True):
        if run.module is not None:
            sums[run.module].add(tally)
    return sums.items()


def _computed(info: TensorInfo) -> TensorInfo:
    return TensorInfo(info.name, "F64" if compute_dtype(info.dtype) is np.float64 else "F32", info.shape)


def _differs(encoded: Array, stored: Array) -> bool:
    """Whether any bit differs; usually one of the first elements does."""
    return encoded[:1024].tobytes() != stored[:1024].tobytes() or encoded.tobytes() != stored.tobytes()
