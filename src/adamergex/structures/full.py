"""Fine-tuning of all weights, kept as a difference to the base."""

from __future__ import annotations

from adamergex.structures.card import difference_snippet
from adamergex.structures.kind import StructureKind

KIND = StructureKind(
    "full",
    "adamergex.structures.settings:Full",
    "adamergex.adapters.weights_backed",
    adapter=False,
    stands_on_others=True,
    card=difference_snippet,
)
