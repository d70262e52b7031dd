"""(IA)³: a trained vector l scales the output or the input of a linear module. Source: 2205.05638."""

from __future__ import annotations

import re

from adamergex.files.directory import AdapterDirectory
from adamergex.structures.kind import StructureKind
from adamergex.structures.layout import Layout, Site
from adamergex.structures.projections import linear_modules


def layout(directory: AdapterDirectory, kind: StructureKind) -> Layout:
    """One vector per module. Raises: as ``structures.layout.layout``."""
    modules, heads = linear_modules(directory, kind)
    return Layout(directory, kind.name, {module: Site(tensors) for module, tensors in modules.items()}, heads)


KIND = StructureKind(
    "ia3",
    "adamergex.structures.settings:Ia3",
    "adamergex.adapters.in_peft",
    peft_type="IA3",
    optimisation={"learning_rate": 5e-4, "warmup": 0.03},  # 2402.18913's reference code
    trained_on=("key", "value", "down"),
    scales_inputs=True,
    rule="multiplicative",
    pattern=re.compile(r"(?P<module>.+)\.(?P<role>ia3_l)"),
    live=re.compile(r"(?P<module>.+)\.(?P<role>ia3_l)(?:\.[^.]+)?"),
    roles=frozenset(("ia3_l",)),
    tensors="ia3_l vectors",
    layout=layout,
    start="fixed",
    task_vectors=True,
)
