"""The additive rule, for structures that are added to the frozen weights (LoRA)."""

from __future__ import annotations

from adamergex.merging.rule import Array, Rule


def divergence(target_reference: Array, source_reference: Array) -> Array:
    """D = A[R,g] − A[R,s], element by element, any shape. Source: 2402.18913, Eq 6."""
    return target_reference - source_reference


def shift(task: Array, divergence: Array, weight: float) -> Array:
    """A[T,g] = A[T,s] + λ·D, element by element, any shape. Source: 2402.18913, Eq 7."""
    merged = weight * divergence
    merged += task
    return merged


RULE = Rule("additive", divergence, shift, neutral=0.0, linear=True)
