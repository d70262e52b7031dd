"""What a merging rule is: a divergence of two references, and a shift of a task adapter by it.

Rules use plain operators only, so that the same rule merges numpy chunks of a file and torch tensors of a resident
model. They compute in the dtype they are given: give them float32 or float64. They never change their arguments but
``out``: a numpy array of the result's shape and dtype, an argument itself or none of them, which saves a chunk's rule
new memory; a rule that cannot use it returns a new array, and with torch tensors it stays ``None``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Array = Any
"""A numpy array or a torch tensor."""
Setting = bool | int | float | str
"""What a setting of a rule's own may be."""


def difference(one: Array, other: Array, out: Array = None) -> Array:
    """one − other, in ``out`` where there is one."""
    return one - other if out is None else np.subtract(one, other, out=out)


def scaled(weight: float, values: Array, out: Array = None) -> Array:
    """weight · values, in ``out`` where there is one."""
    return weight * values if out is None else np.multiply(values, weight, out=out)


class Rule(NamedTuple):
    """One way to carry a task adapter to another language.

    Args:
        name: as in ``--rule``.
        divergence: (target reference, source reference, out=None) -> D.
        shift: (task, D, weight, out=None) -> merged.
        neutral: the D that changes nothing, for every weight; ``None`` where there is none.
        linear: merged − task = weight · D.
        guarded: source reference -> where its entries cannot be used and the task's entry stays.
        needs_source: whether ``divergence`` looks at the source reference.
        function: instead of the two, (task, target reference, source reference, weight) -> merged, of whole tensors;
            see ``registry.rule``.
        settings: the function's own, by name; of a rule that was looked up their defaults, of a merge what it takes.
    """

    name: str
    divergence: Callable[..., Array]
    shift: Callable[..., Array]
    neutral: float | None = None
    linear: bool = False
    guarded: Callable[[Array], Array] | None = None
    needs_source: bool = True
    function: Callable[..., Array] | None = None
    settings: Mapping[str, Setting] = {}
