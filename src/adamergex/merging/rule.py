"""What a merging rule is: a divergence of two references, and a shift of a task adapter by it.

Rules use plain operators only, so that the same rule merges numpy chunks of a file and torch tensors of a resident
model; they never change their arguments. They compute in the dtype they are given: give them float32 or float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Array = Any
"""A numpy array or a torch tensor."""


class Rule(NamedTuple):
    """One way to carry a task adapter to another language.

    Args:
        name: as in ``--rule``.
        divergence: (target reference, source reference) -> D.
        shift: (task, D, weight) -> merged.
        neutral: the D that changes nothing, for every weight; ``None`` where there is none.
        linear: merged − task = weight · D.
        guarded: source reference -> where its entries cannot be used and the task's entry stays.
        needs_source: whether ``divergence`` looks at the source reference.
    """

    name: str
    divergence: Callable[[Array, Array], Array]
    shift: Callable[[Array, Array, float], Array]
    neutral: float | None = None
    linear: bool = False
    guarded: Callable[[Array], Array] | None = None
    needs_source: bool = True
