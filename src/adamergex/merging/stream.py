"""Element-wise merging, streamed: one chunk of each tensor at a time, from readers in lockstep into a writer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adamergex.checkpoint import (
    FLOATS,
    Array,
    Encoder,
    SafetensorsWriter,
    TensorInfo,
    TensorReader,
    compute_dtype,
    first_not_finite,
)
from adamergex.errors import AdapterFileError
from adamergex.merging.layout import Layout
from adamergex.merging.lockstep import Chunk, Chunks, located, lockstep, spans
from adamergex.merging.report import ModuleChange
from adamergex.merging.rule import Rule

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
    return total if cut == len(values) else total + float(np.dot(values[cut:], values[cut:]))


def finite_squares(chunk: Chunk) -> float:
    """Σ x² of a chunk, which also tells whether all of it is finite.

    Raises:
        AdapterFileError: naming file, tensor and index of the first value that is not.
    """
    total = squares(chunk.values)
    if math.isfinite(total):
        return total
    index = first_not_finite(chunk.values)
    if index is None:
        return float(np.sum(np.square(chunk.values, dtype=np.float64)))  # only the float32 sum overflowed
    name, place = located(chunk, index)
    raise AdapterFileError(
        "An adapter holds a number that is not finite.",
        where=f"{chunk.reader.directory.tensors_path}: {name}{place}",
        found=chunk.values[index],
        expected="finite numbers",
        fix="its training diverged: train it again",
    )


def require_fits(reader: TensorReader, info: TensorInfo, stored: Array) -> None:
    """Raises AdapterFileError where a result, as stored, overflowed its dtype."""
    # Of bfloat16 the exponent tells: all ones is infinite or NaN.
    wrong = (stored & 0x7F80) == 0x7F80 if stored.dtype == np.uint16 else ~np.isfinite(stored)
    if wrong.any():
        raise AdapterFileError(
            f"The result for {info.name} does not fit its dtype.",
            where=reader.directory.path,
            found="a value that is not finite",
            expected=f"finite numbers of dtype {info.dtype}",
            fix="use a smaller weight; check that the adapters belong together",
        )


@dataclass
class Tally:
    """Sums of squares of one module, as its tensors pass by."""

    task: float = 0.0
    divergence: float = 0.0
    change: float = 0.0
    guarded: int = 0
    changed: bool = False

    def closed(self, module: str, merged: bool) -> ModuleChange:
        task, divergence, change = (math.sqrt(value) for value in (self.task, self.divergence, self.change))
        return ModuleChange(module, merged, self.changed, task, divergence, change, self.guarded)


def reference_divergence(rule: Rule, references: Chunks, tally: Tally) -> tuple[Array, float]:
    """D of one chunk and Σ D², from the target and the source reference (of the average, the target alone).

    Raises:
        AdapterFileError: an input that is not finite, or a divergence that overflows.
    """
    target, source = references[0], references[-1]
    divergence = rule.divergence(target.values, source.values)
    total = squares(divergence)
    # Only a linear rule shows every value that is not finite in D; a ratio may hide an infinite denominator.
    if not (rule.linear and math.isfinite(total)):
        for chunk in references:
            finite_squares(chunk)
        require_fits(target.reader, target.info, divergence)
        total = float(np.sum(np.square(divergence, dtype=np.float64)))
    if rule.guarded:
        tally.guarded += int(rule.guarded(source.values).sum())
    return divergence, total


@dataclass(frozen=True)
class ElementwiseMerge:
    """The merge of every chosen tensor by a rule, and a copy of every other tensor of the task.

    ``others``: target and source reference, the target alone for the average, or one ``saved`` divergence."""

    rule: Rule
    weight: float
    layout: Layout
    chosen: frozenset[str]
    task: TensorReader
    others: tuple[TensorReader, ...]
    saved: bool = False

    def write(self, path: Path) -> list[ModuleChange]:
        """Write the merged tensors file."""
        directory = self.layout.directory
        writer = SafetensorsWriter(path, list(directory.tensors.values()), directory.metadata)
        tallies, encode = {module: Tally() for module in self.layout.sites}, Encoder()
        with np.errstate(all="ignore"):  # what is not finite is found and named
            for module, (task, *others) in lockstep(spans(self.layout, writer.order, (self.task, *self.others))):
                tally = tallies.get(module or "", Tally())
                if module in self.chosen:
                    writer.write(self._merged(task, others, tally, encode))
                else:
                    tally.task += finite_squares(task) if task.info.dtype in FLOATS else 0.0
                    for chunk in others:
                        finite_squares(chunk)
                    writer.write(task.stored)
        writer.close()
        return [tally.closed(module, module in self.chosen) for module, tally in tallies.items()]

    def _merged(self, task: Chunk, others: Chunks, tally: Tally, encode: Encoder) -> Array:
        """One chunk of the result as stored, its sums added to the tally."""
        rule, weight = self.rule, self.weight
        if self.saved:
            divergence, d_squares = others[0].values, finite_squares(others[0])
        else:
            divergence, d_squares = reference_divergence(rule, others, tally)
        task_squares = finite_squares(task)
        tally.task += task_squares
        tally.divergence += squares(divergence - rule.neutral) if rule.neutral else d_squares
        # -0 + 0 is +0: a divergence of nothing must leave the very bits of the task.
        if weight == 0.0 or (rule.linear and d_squares == 0.0 and not divergence.any()):
            return task.stored
        merged = rule.shift(task.values, divergence, weight)
        tally.change += weight * weight * d_squares if rule.linear else squares(merged - task.values)
        encoded = encode(merged, task.info.dtype)
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
    tallies, neutral = {module: Tally() for module in sorted(chosen)}, rule.neutral or 0.0
    with np.errstate(all="ignore"):
        for module, references in lockstep(spans(layout, writer.order, readers)):
            tally = tallies[module or ""]
            divergence, total = reference_divergence(rule, references, tally)
            tally.divergence += squares(divergence - neutral) if neutral else total
            tally.changed = tally.changed or bool((divergence != neutral).any())
            writer.write(divergence)
    writer.close()
    return [tally.closed(module, merged=True) for module, tally in tallies.items()]


def _computed(info: TensorInfo) -> TensorInfo:
    return TensorInfo(info.name, "F64" if compute_dtype(info.dtype) is np.float64 else "F32", info.shape)


def _differs(encoded: Array, stored: Array) -> bool:
    """Whether any bit differs; the first elements nearly always tell."""
    one, two = encoded.view(np.uint8), stored.view(np.uint8)
    return not np.array_equal(one[:2048], two[:2048]) or not np.array_equal(one, two)
