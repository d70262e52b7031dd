"""LF-SFT: fine-tuning of the entries that move most, saved as a sparse difference to the base. Source: 2110.07560."""

from __future__ import annotations

from adamergex.structures.full import snippet
from adamergex.structures.kind import StructureKind

KIND = StructureKind(
    "sparse",
    "adamergex.structures.settings:Sparse",
    "adamergex.adapters.full_backed",
    adapter=False,
    stackable=True,
    weight_decay=False,
    card=snippet,
)
