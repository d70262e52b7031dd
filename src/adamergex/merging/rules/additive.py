"""The additive rule, for structures that are added to the frozen weights (LoRA)."""

from __future__ import annotations

from adamergex.merging.rules.rule import Array, Rule, difference, scaled


def divergence(target_reference: Array, source_reference: Array, out: Array = None) -> Array:
    """D = A[R,g] − A[R,s], element by element, any shape. Source: 2402.18913, Eq 6."""
    return difference(target_reference, source_reference, out)


def shift(task: Array, divergence: Array, weight: float, out: Array = None) -> Array:
    """A[T,g] = A[T,s] + λ·D, element by element, any shape. Source: 2402.18913, Eq 7."""
    merged = scaled(weight, divergence, out)
    merged += task
    return merged


RULE = Rule("additive", divergence, shift, neutral=0.0, linear=True)
