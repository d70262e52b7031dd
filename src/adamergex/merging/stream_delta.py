"""Merges LoRA in delta space, one module at a time: reads factors, writes concatenated or truncated ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from adamergex.files.directory import Encoder, SafetensorsWriter, TensorInfo, TensorReader
from adamergex.merging import delta
from adamergex.merging.delta import Factors
from adamergex.merging.lockstep import ranges
from adamergex.merging.report import ModuleChange
from adamergex.merging.stream import load_finite, overflowed, require_finite, write_encoded
from adamergex.structures.layout import Layout, Site


class FactorSource(Protocol):
    """A source of ΔD."""

    def load(self, module: str) -> Factors:
        """ΔD of a module as factors."""

    def scan(self, module: str) -> None:
        """Only check that a module's factors are finite."""


def load(reader: TensorReader, site: Site) -> Factors:
    """One module's factors in their compute dtype, checked to be finite."""
    A, B = (load_finite(reader, site.tensors[role]) for role in ("lora_A", "lora_B"))
    return Factors(A, B, site.scaling)


@dataclass(frozen=True)
class ReferenceFactors:
    """ΔD = ΔW[R,g] − ΔW[R,s] of two references; without a source ΔW[R,g]."""

    target: tuple[TensorReader, Layout]
    source: tuple[TensorReader, Layout] | None

    def load(self, module: str) -> Factors:
        target, source = (
            None if side is None else load(side[0], side[1].sites[module]) for side in (self.target, self.source)
        )
        assert target is not None
        return delta.difference(target, source)

    def scan(self, module: str) -> None:
        self.load(module)


@dataclass(frozen=True)
class SavedFactors:
    """ΔD of a saved divergence."""

    reader: TensorReader
    layout: Layout

    def load(self, module: str) -> Factors:
        return load(self.reader, self.layout.sites[module])

    def scan(self, module: str) -> None:
        if module in self.layout.sites:
            self.load(module)


@dataclass
class DeltaMerge:
    """Writes c·ΔW[T,s] + λ·ΔD of the chosen modules as one LoRA, and copies every other tensor of the task.

    ``averaging``: c = 1 − λ, else c = 1. ``rank`` truncates. With a weight of zero, or a divergence that cancels, the
    task's bytes stay.
    """

    averaging: bool
    weight: float
    rank: int | None
    layout: Layout
    chosen: frozenset[str]
    task: TensorReader
    divergence: FactorSource
    _shapes: dict[str, tuple[int, float]] = field(default_factory=dict)
    _last: tuple[str, Factors, ModuleChange] | None = None
    _encode: Encoder = field(default_factory=Encoder)

    def __post_init__(self) -> None:
        for module, site in self.layout.sites.items():
            self._shapes[module] = self._shape(module, site) if module in self.chosen else (site.rank, site.scaling)

    @property
    def shapes(self) -> Mapping[str, tuple[int, float]]:
        """Module -> (rank, scaling) of the result."""
        return self._shapes

    def _shape(self, module: str, site: Site) -> tuple[int, float]:
        concatenated = site.rank
        if self.weight != 0.0:
            divergence = self.divergence.load(module)
            if self.averaging or not delta.vanishes(divergence):
                concatenated += divergence.rank
        rank = self._limit(site, concatenated)
        return (rank, 1.0) if rank < concatenated else (concatenated, site.scaling)

    def _limit(self, site: Site, concatenated: int) -> int:
        if self.rank is None:
            return concatenated
        return min(self.rank, concatenated, site.tensors["lora_A"].shape[1], site.tensors["lora_B"].shape[0])

    def write(self, path: Path) -> list[ModuleChange]:
        """Write the merged tensors file."""
        directory = self.layout.directory
        planned = [self._planned(info) for info in directory.tensors.values()]
        writer = SafetensorsWriter(path, planned, directory.metadata)
        items: dict[str, ModuleChange] = {}
        with np.errstate(all="ignore"):
            for entry in writer.order:
                info, module = directory.tensors[entry.name], self.layout.owner(entry.name)
                if module in self.chosen:
                    factors, items[module] = self._merged(module)
                    values = factors.A if info is self.layout.sites[module].tensors["lora_A"] else factors.B
                    write_encoded(writer, self._encode, self.task, info, values)
                else:
                    copy(writer, self.task, info)
                    if module is not None and info is self.layout.sites[module].tensors["lora_A"]:
                        self.divergence.scan(module)
                        items[module] = self._copied(module)
        writer.close()
        return [items[module] for module in self.layout.sites]

    def _copied(self, module: str) -> ModuleChange:
        return ModuleChange(module, False, False, delta.norm(load(self.task, self.layout.sites[module])))

    def _planned(self, info: TensorInfo) -> TensorInfo:
        module = self.layout.owner(info.name)
        if module is None or module not in self.chosen:
            return info
        rank, (rows, columns) = self._shapes[module][0], info.shape
        shape = (rank, columns) if info is self.layout.sites[module].tensors["lora_A"] else (rows, rank)
        return TensorInfo(info.name, info.dtype, shape)

    def factors(self, module: str) -> Factors:
        """The result of a chosen module."""
        return self._merged(module)[0]

    def _merged(self, module: str) -> tuple[Factors, ModuleChange]:
        if self._last is None or self._last[0] != module:  # A and B come from one computation
            self._last = (module, *self._compute(module))
        return self._last[1], self._last[2]

    def _compute(self, module: str) -> tuple[Factors, ModuleChange]:
        task = load(self.task, self.layout.sites[module])
        divergence = self.divergence.load(module)
        task_weight = 1.0 - self.weight if self.averaging else 1.0
        idle = self.weight == 0.0 or (not self.averaging and delta.vanishes(divergence))
        merged = task if idle else delta.combine(task, divergence, task_weight, self.weight)
        for factors in (divergence, merged):
            if not (np.isfinite(factors.B).all() and math.isfinite(delta.norm(factors))):
                raise overflowed(self.task, module)
        size = delta.norm(divergence) if self.averaging or not delta.vanishes(divergence) else 0.0
        if self.averaging and not idle:
            change = delta.norm(delta.combine(task, divergence, -self.weight, self.weight))
        else:
            change = abs(self.weight) * size
        truncation = None
        rank = self._shapes[module][0]
        if rank < merged.rank:
            merged, truncation = delta.truncate(merged, rank)
        changed = change > 0.0 or truncation is not None
        return merged, ModuleChange(module, True, changed, delta.norm(task), size, change, truncation=truncation)


def copy(writer: SafetensorsWriter, reader: TensorReader, info: TensorInfo) -> None:
    """Copy one tensor; raises: AdapterFileError for a floating-point value that is not finite."""
    require_finite(reader, [info])
    for start, stop in ranges(info.size):
        writer.write(reader.read(info, start, stop)[1])


def write_factors(
    path: Path, references: ReferenceFactors, layout: Layout, chosen: frozenset[str]
) -> tuple[list[ModuleChange], dict[str, tuple[int, float]]]:
    """Write ΔD of the chosen modules as LoRAs of rank r_g + r_s and scaling 1, in their compute dtype."""
    assert references.source is not None
    shapes, planned = {}, []
    for module in sorted(chosen):
        rank = references.target[1].sites[module].rank + references.source[1].sites[module].rank
        shapes[module] = (rank, 1.0)
        for role, info in layout.sites[module].tensors.items():
            shape = (rank, info.shape[1]) if role == "lora_A" else (info.shape[0], rank)
            planned.append(TensorInfo(info.name, "F64" if info.dtype == "F64" else "F32", shape))
    writer = SafetensorsWriter(path, planned)
    items: dict[str, ModuleChange] = {}
    last: tuple[str, Factors] | None = None
    for info in writer.order:
        module = layout.owner(info.name) or ""
        if last is None or last[0] != module:
            last = module, references.load(module)
            norm = 0.0 if delta.vanishes(last[1]) else delta.norm(last[1])
            if not (math.isfinite(norm) and np.isfinite(last[1].B).all()):
                raise overflowed(references.target[0], module)
            items[module] = ModuleChange(module, True, norm > 0, 0.0, norm)
        values = last[1].A if info.name == layout.sites[module].tensors["lora_A"].name else last[1].B
        writer.write(np.ascontiguousarray(values).reshape(-1))
    writer.close()
    return [items[module] for module in sorted(items)], shapes
