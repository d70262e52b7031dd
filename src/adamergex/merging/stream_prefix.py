"""Merges prefixes: each adapter's small P as a whole, in float64, one column range at a time, rounded once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adamergex.errors import IncompatibleAdaptersError
from adamergex.files.directory import Array, Encoder, SafetensorsWriter, TensorInfo, TensorReader
from adamergex.merging.lockstep import ranges
from adamergex.merging.report import ModuleChange
from adamergex.merging.rules import prefix
from adamergex.merging.rules.rule import Rule
from adamergex.merging.stream import load_finite, overflowed, require_fits
from adamergex.merging.stream_delta import copy
from adamergex.structures.layout import Layout
from adamergex.structures.prefix import PROMPT, SAVED, role, shape


def names(layout: Layout, span: str) -> list[str]:
    """The names of a prefix's column ranges, or of those in a saved divergence."""
    saved = [name.removeprefix(SAVED) for name in layout.directory.tensors if name.startswith(SAVED)]
    return saved or list(_column_ranges(layout, span))


def load(reader: TensorReader, layout: Layout) -> Array:
    """P (n, columns), float64 and finite; computed from an encoder as P = W₂·tanh(W₁·E + b₁) + b₂.

    Raises:
        AdapterFileError: numbers that are not finite.
        IncompatibleAdaptersError: a saved divergence instead of an adapter.
    """
    tensors = {role(name): info for name, info in layout.directory.tensors.items()}
    if PROMPT in tensors:
        return _finite(reader, tensors[PROMPT])
    if "embedding.weight" not in tensors:
        raise IncompatibleAdaptersError(
            "a saved divergence is not an adapter",
            where=layout.directory.path,
            found="a divergence",
            expected="an adapter with a prefix",
            fix="pass it as --divergence",
        )
    embedding = _finite(reader, tensors["embedding.weight"])
    if "transform.0.weight" not in tensors:
        return embedding
    first, bias, second, last = (_finite(reader, tensors[f"transform.{role}"]) for role in _TRANSFORM)
    result: Array = np.tanh(embedding @ first.T + bias) @ second.T + last
    return result


_TRANSFORM = ("0.weight", "0.bias", "2.weight", "2.bias")


def _finite(reader: TensorReader, info: TensorInfo) -> Array:
    return load_finite(reader, info).astype(np.float64)


def _column_ranges(layout: Layout, span: str) -> dict[str, slice]:
    prefix_shape = shape(layout.directory.config, layout.directory.path)
    return prefix.spans(prefix_shape.num_layers, prefix_shape.columns, span)


class Divergence:
    """D of every column range: of two references, of the target only for the average, or saved."""

    def __init__(self, rule: Rule, span: str, others: list[tuple[TensorReader, Layout]], saved: bool) -> None:
        self.rule = rule
        self._saved = others[0] if saved else None
        self._readers = [reader for reader, _ in others]
        self._prefixes = [] if saved else [load(*other) for other in others]
        self._ranges = _column_ranges(others[0][1], span)

    def load(self, name: str) -> tuple[Array, ModuleChange]:
        """D of a column range, float64, and its entry in the report."""
        if self._saved is not None:
            values = _finite(self._saved[0], self._saved[1].directory.tensors[SAVED + name])
            return values, self._described(name, values)
        target, source = (P[:, self._ranges[name]] for P in (self._prefixes[0], self._prefixes[-1]))
        with np.errstate(all="ignore"):
            values = self.rule.divergence(target, source)
            if not np.isfinite(np.linalg.norm(values)):
                raise overflowed(self._readers[0], name)
        return values, self._described(name, values, source)

    def _described(self, name: str, values: Array, source: Array | None = None) -> ModuleChange:
        divergence = values - (self.rule.neutral or 0.0)
        item = ModuleChange(name, True, bool(divergence.any()), 0.0, float(np.linalg.norm(divergence)))
        if source is None:
            return item
        if self.rule.name == "prefix":
            inverse = prefix.inverse(source)
            return replace(item, condition=inverse.condition, deficient=len(source) - inverse.rank)
        return replace(item, guarded=int(self.rule.guarded(source).sum()) if self.rule.guarded else 0)


@dataclass
class PrefixMerge:
    """Merges the chosen column ranges of a prefix by any rule; other ranges and the heads are the task's."""

    rule: Rule
    weight: float
    span: str
    layout: Layout
    chosen: frozenset[str]
    task: TensorReader
    divergence: Divergence
    _items: list[ModuleChange] = field(default_factory=list)

    def write(self, path: Path) -> list[ModuleChange]:
        """Write the materialised merged prefix and the task's heads."""
        [site] = self.layout.sites.values()
        info, task = site.tensors[PROMPT], load(self.task, self.layout)
        merged = task.copy()
        for name, columns in _column_ranges(self.layout, self.span).items():
            if name in self.chosen:
                merged[:, columns] = self._merged(name, task[:, columns])
            else:
                self._items.append(ModuleChange(name, False, False, float(np.linalg.norm(task[:, columns]))))
        writer = SafetensorsWriter(path, [info, *self.layout.heads.values()], self.layout.directory.metadata)
        for entry in writer.order:
            if entry is info:
                put(writer, self.task, info, merged)
            else:
                copy(writer, self.task, entry)
        writer.close()
        return [self._with_change(item, task, merged, info) for item in self._items]

    def _merged(self, name: str, task: Array) -> Array:
        values, item = self.divergence.load(name)
        merged = task
        # -0 + 0 is +0: a divergence of zero must keep the task's bits.
        neutral = self.rule.neutral is not None and not (values - self.rule.neutral).any()
        if not neutral and (self.weight != 0.0 or self.rule.shift is prefix.literal):
            with np.errstate(all="ignore"):
                merged = self.rule.shift(task, values, self.weight)
        size, change = float(np.linalg.norm(task)), float(np.linalg.norm(merged - task))
        self._items.append(replace(item, task=size, change=change))
        return merged

    def _with_change(self, item: ModuleChange, task: Array, merged: Array, info: TensorInfo) -> ModuleChange:
        columns = _column_ranges(self.layout, self.span)[item.module]
        before, after = (rounded(values[:, columns], info.dtype) for values in (task, merged))
        return replace(item, changed=before.tobytes() != after.tobytes())


def rounded(values: Array, dtype: str) -> Array:
    """Flat float64 values as stored, rounded once to nearest."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if dtype != "BF16":
        return Encoder()(flat, dtype)
    return np.concatenate([Encoder()(to_odd(flat[start:stop]), dtype) for start, stop in ranges(len(flat))])


def to_odd(values: Array) -> Array:
    """float32 rounded to odd, so that a second rounding to bfloat16 equals one rounding of the float64."""
    nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    outward = np.abs(nearest.astype(np.float64)) > np.abs(values)
    truncated = bits - outward.astype(np.uint32)  # toward zero
    inexact = truncated.view(np.float32).astype(np.float64) != values
    odd: Array = (truncated | inexact.astype(np.uint32)).view(np.float32)
    return odd


def put(writer: SafetensorsWriter, reader: TensorReader, info: TensorInfo, values: Array) -> None:
    """Write a tensor of float64 values, rounded once. Raises: AdapterFileError when a value overflows its dtype."""
    with np.errstate(all="ignore"):
        stored = rounded(values, info.dtype)
    require_fits(reader, info, stored)
    writer.write(stored)


def write_divergence(
    path: Path, rule: Rule, span: str, chosen: frozenset[str], readers: list[tuple[TensorReader, Layout]]
) -> list[ModuleChange]:
    """Write D of the chosen column ranges in float64, its compute dtype."""
    source = Divergence(rule, span, readers, saved=False)
    divergences = {name: source.load(name) for name in sorted(chosen)}
    planned = [TensorInfo(SAVED + name, "F64", values.shape) for name, (values, _) in divergences.items()]
    writer = SafetensorsWriter(path, planned)
    for info in writer.order:
        writer.write(np.ascontiguousarray(divergences[info.name.removeprefix(SAVED)][0]).reshape(-1))
    writer.close()
    return [item for _, item in divergences.values()]
