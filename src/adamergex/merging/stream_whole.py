"""Streams merges by a rule of whole tensors: one tensor of each adapter at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adamergex.errors import ConfigError
from adamergex.files.directory import Array, Encoder, SafetensorsWriter, TensorInfo, TensorReader
from adamergex.merging.lockstep import ranges
from adamergex.merging.report import ModuleChange
from adamergex.merging.stream import Tally, load_finite, require_finite, require_fits, squares
from adamergex.structures.layout import Layout

Function = Callable[[Array, Array, Array, float], Array]


@dataclass(frozen=True)
class WholeMerge:
    """Merges the chosen modules by a function of whole tensors, and copies every other tensor of the task.

    ``weight``: one, or by module. ``others``: target and source reference."""

    function: Function
    weight: float | Mapping[str, float]
    layout: Layout
    chosen: frozenset[str]
    task: TensorReader
    others: tuple[TensorReader, ...]

    def write(self, path: Path) -> list[ModuleChange]:
        """Write the merged tensors file. Raises: AdapterFileError, ConfigError."""
        directory = self.layout.directory
        writer = SafetensorsWriter(path, list(directory.tensors.values()), directory.metadata)
        tallies = {module: Tally() for module in self.layout.sites}
        for info in writer.order:
            module = self.layout.owner(info.name)
            merged = self._merged(module, info, tallies[module]) if module in self.chosen else None
            self._copy(writer, info, merged, tallies[module] if module else Tally())
        writer.close()
        return [tally.closed(name, name in self.chosen, self.task) for name, tally in tallies.items()]

    def _merged(self, module: str, info: TensorInfo, tally: Tally) -> Array | None:
        """The result in the compute dtype; ``None`` for the task's own."""
        weight = self.weight[module] if isinstance(self.weight, Mapping) else self.weight
        readers = (self.task, *self.others)
        given = tuple(load_finite(reader, reader.directory.tensors[info.name]) for reader in readers)
        task, target, source = given
        tally.divergence += squares((target - source).reshape(-1))
        if weight == 0.0:
            return None
        merged = applied(self.function, given, weight)
        tally.change += squares((merged - task).reshape(-1))
        return merged.reshape(-1)

    def _copy(self, writer: SafetensorsWriter, info: TensorInfo, merged: Array | None, tally: Tally) -> None:
        if merged is None:  # otherwise ``_merged`` has checked all of it
            require_finite(self.task, [info])
        encode = Encoder()
        for start, stop in ranges(info.size):
            values, stored = self.task.read(info, start, stop)
            if stored.dtype.itemsize > 1:
                tally.task += squares(values)
            if merged is not None:
                encoded = encode(merged[start:stop], info.dtype)
                require_fits(self.task, info, encoded)
                tally.changed = tally.changed or encoded.tobytes() != stored.tobytes()
                stored = encoded
            writer.write(stored)


def applied(function: Function, given: tuple[Array, ...], weight: float) -> Array:
    """The result of a rule's function of task, target and source reference, in the task's dtype.

    Raises: ConfigError for another shape, or a value that is not finite."""
    task, target, source = given
    merged = np.ascontiguousarray(function(task, target, source, weight), task.dtype)
    if merged.shape != task.shape or not np.isfinite(merged).all():
        raise ConfigError(
            "the rule's function returns a tensor that cannot be written",
            where=f"rule {function.__name__}",
            found=f"shape {merged.shape}" if merged.shape != task.shape else "a value that is not finite",
            expected=f"finite numbers of shape {task.shape}",
            fix="correct the function",
        )
    return merged
