"""Mixes task vectors, one module at a time: the dense ΔW of LoRA, l − 1 of (IA)³."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adamergex.files.directory import Array, Encoder, SafetensorsWriter, TensorReader, compute_dtype
from adamergex.merging import stream_delta
from adamergex.merging.delta import Factors
from adamergex.merging.report import ModuleChange
from adamergex.merging.stream import load_finite, write_encoded
from adamergex.merging.stream_delta import DeltaMerge
from adamergex.merging.task_vectors import Mix, dense, low_rank, whole
from adamergex.structures.layout import Layout, Site


@dataclass(kw_only=True)
class VectorMerge(DeltaMerge):
    """Writes the mixture of ΔW[T,s] and ΔW[R,g] of every module as one LoRA: exact at full rank, or truncated to
    ``rank`` by SVD. The task's scaling α/r stays, its rank does not."""

    mix: Mix

    def _shape(self, module: str, site: Site) -> tuple[int, float]:
        full = min(site.tensors["lora_A"].shape[1], site.tensors["lora_B"].shape[0])
        return (min(self.rank or full, full), site.scaling)

    def _compute(self, module: str) -> tuple[Factors, ModuleChange]:
        task = stream_delta.load(self.task, self.layout.sites[module])
        vectors = [dense(task), dense(self.divergence.load(module))]
        mixed = self.mix(module, vectors)
        rank, scaling = self._shapes[module]
        error = None
        if rank < min(mixed.shape):
            factors, error = low_rank(mixed, rank, scaling)
        else:
            factors = whole(mixed, scaling)
        first, second, change = (float(np.linalg.norm(part)) for part in (*vectors, mixed - vectors[0]))
        return factors, ModuleChange(module, True, change > 0 or bool(error), first, second, change, truncation=error)

    @property
    def bytes(self) -> int:
        """The size of the resulting tensors."""
        planned = [self._planned(info) for info in self.layout.directory.tensors.values()]
        return sum(info.size * info.item_size for info in planned)


def write_gates(
    path: Path, layout: Layout, task: TensorReader, reference: tuple[TensorReader, Layout], mix: Mix
) -> list[ModuleChange]:
    """Write 1 + the mixture of l[T,s] − 1 and l[R,g] − 1 of every module, and copy every other tensor."""
    directory, encode = layout.directory, Encoder()
    writer = SafetensorsWriter(path, list(directory.tensors.values()), directory.metadata)
    items: dict[str, ModuleChange] = {}
    for entry in writer.order:
        info, module = directory.tensors[entry.name], layout.owner(entry.name)
        if module is None:
            stream_delta.copy(writer, task, info)
            continue
        stored: Array = load_finite(task, info).astype(np.float64)
        other: Array = load_finite(reference[0], reference[1].sites[module].tensors["ia3_l"]).astype(np.float64)
        vectors = [stored - 1.0, other - 1.0]
        merged = np.ascontiguousarray(1.0 + mix(module, vectors), compute_dtype(info.dtype)).reshape(-1)
        write_encoded(writer, encode, task, info, merged)
        changed = bool((merged != stored.reshape(-1)).any())
        parts = (*vectors, merged.reshape(stored.shape) - stored)
        first, second, change = (float(np.linalg.norm(part)) for part in parts)
        items[module] = ModuleChange(module, True, changed, first, second, change)
    writer.close()
    return [items[module] for module in layout.sites]
