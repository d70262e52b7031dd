"""AriMerge: the weighted sum of the task adapter and the target's reference adapter, for every structure alike."""

from __future__ import annotations

from adamergex.merging.rules.rule import Array, Rule, scaled


def divergence(target_reference: Array, source_reference: Array | None = None, out: Array = None) -> Array:
    """D = A[R,g]: averaging needs no source reference. Source: 2306.14870."""
    return target_reference


def shift(task: Array, divergence: Array, weight: float, out: Array = None) -> Array:
    """A = (1 − w)·A[T,s] + w·A[R,g], by default w = 1/2, any shape. Source: 2306.14870 (AriMerge in 2402.18913)."""
    merged = scaled(weight, divergence, out)
    merged += (1.0 - weight) * task
    return merged


RULE = Rule("average", divergence, shift, needs_source=False)
