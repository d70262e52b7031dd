"""Describes an adapter directory: structure, ranks, modules, norms and lineage. numpy only."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adamergex.errors import printable
from adamergex.files import lineage as lineages
from adamergex.files.directory import FLOATS, AdapterDirectory, TensorInfo, TensorReader
from adamergex.files.lineage import Lineage
from adamergex.merging.lockstep import Chunk, ranges
from adamergex.merging.stream import finite_squares, require_finite
from adamergex.structures import kind_of_config, structure_kind
from adamergex.structures.layout import Layout, layout

_GROUPS, _LINE = 200, 400  # most groups in a section, and most characters in a line


@dataclass(frozen=True)
class TensorGroup:
    """Tensors or modules that differ only in their layer number."""

    name: str
    count: int
    shapes: str
    norm: float


@dataclass(frozen=True)
class Inspection:
    """The description of an adapter directory; ``adamergex inspect`` prints ``str()`` of it."""

    path: Path
    kind: str
    base: str | None
    task_type: str | None
    ranks: Mapping[tuple[int, float, float], int]
    parameters: int
    dtypes: tuple[str, ...]
    groups: tuple[TensorGroup, ...]
    heads: tuple[TensorGroup, ...]
    lineage: Lineage | None

    def __str__(self) -> str:
        lines = [
            str(self.path),
            f"  structure   {self.kind}" + (f" ({self.task_type})" if self.task_type else ""),
            f"  base        {self.base or 'unknown'}",
            *(f"  rank        {rank_line(shape, count)}" for shape, count in sorted(self.ranks.items())),
            f"  parameters  {self.parameters:,} ({', '.join(self.dtypes)})",
            *_section("modules", self.groups),
            *_section("heads", self.heads),
            *_origin(self.lineage),
        ]
        return "\n".join(printable(line, limit=_LINE).replace("\n", "\\n") for line in lines)


def rank_line(shape: tuple[int, float, float], count: int) -> str:
    """(rank, α, scaling) of ``count`` modules, as text."""
    rank, alpha, scaling = shape
    return f"{rank}, alpha {alpha:g}, scaling {scaling:g} ({count} modules)"


def inspect(directory: str | Path) -> Inspection:
    """Describe an adapter directory; tensors are streamed for their norms.

    Structures that cannot be merged are described by their tensors.

    Raises:
        AdapterFileError: the directory cannot be read, its tensors do not fit its config, or one is not finite.
        IncompatibleAdaptersError: a LoRA or (IA)³ variant that is not supported.
    """
    adapter = AdapterDirectory.open(directory)
    structure = kind_of_config(adapter.config)
    contents = layout(adapter) if structure and structure.rule and structure.in_modules else None
    heads = set(contents.heads) if contents else set()
    with TensorReader(adapter) as reader:
        norms = {name: _norm(reader, info) for name, info in adapter.tensors.items()}
    groups = _grouped({name: info for name, info in adapter.tensors.items() if name not in heads}, norms)
    return Inspection(
        path=adapter.path,
        kind=structure_kind(adapter.config),
        base=adapter.config.get("base_model_name_or_path") or adapter.config.get("model_name"),
        task_type=adapter.config.get("task_type"),
        ranks=_ranks(contents) if contents and contents.structure.low_rank else {},
        parameters=sum(info.size for info in adapter.tensors.values()),
        dtypes=tuple(sorted({info.dtype for info in adapter.tensors.values()})),
        groups=groups,
        heads=_grouped({name: adapter.tensors[name] for name in heads}, norms),
        lineage=lineages.read(adapter.path),
    )


def _ranks(contents: Layout) -> dict[tuple[int, float, float], int]:
    return dict(Counter((site.rank, site.alpha, site.scaling) for site in contents.sites.values()))


def _norm(reader: TensorReader, info: TensorInfo) -> float:
    if info.dtype not in FLOATS:
        require_finite(reader, [info])
        return math.nan
    total = 0.0
    with np.errstate(all="ignore"):
        for start, stop in ranges(info.size):
            chunk = Chunk(reader, info, start, *reader.read(info, start, stop))
            finite_squares(chunk)
            total += float(np.sum(np.square(chunk.values, dtype=np.float64)))
    return math.sqrt(total)


def _grouped(tensors: Mapping[str, TensorInfo], norms: Mapping[str, float]) -> tuple[TensorGroup, ...]:
    members: dict[str, list[TensorInfo]] = {}
    for name, info in tensors.items():
        members.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", name.removeprefix("base_model.model.")), []).append(info)
    return tuple(
        TensorGroup(
            name,
            len(infos),
            ", ".join(sorted({"x".join(map(str, info.shape)) for info in infos})),
            math.sqrt(sum(norms[info.name] ** 2 for info in infos)),
        )
        for name, infos in sorted(members.items())
    )


def _section(title: str, groups: tuple[TensorGroup, ...]) -> list[str]:
    if not groups:
        return []
    width = min(80, max(len(group.name) for group in groups))
    header = f"  {title:<{width + 2}} {'n':>4}  {'‖·‖':>10}  shape"
    shown = groups[:_GROUPS]
    more = [f"    … and {len(groups) - _GROUPS} more"] if len(groups) > _GROUPS else []
    return [
        header,
        *(f"    {group.name:<{width}} {group.count:>4}  {group.norm:>10.4g}  {group.shapes}" for group in shown),
        *more,
    ]


def _origin(lineage: Lineage | None) -> list[str]:
    if lineage is None:
        return ["  lineage     none"]
    facts: dict[str, object] = {"language": lineage.language, "start": lineage.start and lineage.start[:12]}
    if lineage.task:
        facts["task"] = lineage.task.get("kind")
    if lineage.merge:
        facts["merge"] = ", ".join(
            f"{key} {value}" for key, value in sorted(lineage.merge.items()) if value is not None
        )
    for role, parent in sorted(lineage.parents.items()):
        language = f" ({parent['language']})" if parent.get("language") else ""
        facts[role] = f"{parent.get('path')}{language} sha256 {str(parent.get('sha256'))[:12]}"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in sorted(lineage.versions.items()))
    return ["  lineage", *(f"    {name:<18} {value}" for name, value in facts.items() if value)]
