"""The multiplicative rule, for structures that scale the frozen weights ((IA)³)."""

from __future__ import annotations

from adamergex.merging.rules.rule import Array, Rule

EPSILON = 1e-4
"""Entries of the source reference below this magnitude have no meaningful ratio: (IA)³ starts at one."""


def guarded(source_reference: Array) -> Array:
    """Where |A[R,s]| < ``EPSILON``: there D is 1, so the task's entry stays as it is (ours; the paper is silent)."""
    return abs(source_reference) < EPSILON


def divergence(target_reference: Array, source_reference: Array, out: Array = None) -> Array:
    """D = A[R,g] ⊘ A[R,s], and 1 where the source is guarded, any shape. Source: 2402.18913, Eq 8."""
    near = guarded(source_reference)
    far = ~near
    return (target_reference * far + near) / (source_reference * far + near)


def shift(task: Array, divergence: Array, weight: float, out: Array = None) -> Array:
    """A[T,g] = A[T,s] ⊙ (λ·(D − 1) + 1), element by element, any shape. Source: 2402.18913, Eq 9."""
    return task * (weight * (divergence - 1.0) + 1.0)


RULE = Rule("multiplicative", divergence, shift, neutral=1.0, guarded=guarded)
