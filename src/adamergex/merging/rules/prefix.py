"""The prefix rule, for structures whose vectors stand beside the frozen keys and values (prefix-tuning)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adamergex.merging.rules.rule import Array, Rule

SPANS = ("per_layer", "whole", "per_kv")
FORMS = ("left", "literal")
RCOND = 1e-7
"""Singular values of P[R,s] below this share of the largest are not inverted: float32 files hold nothing beyond."""


class Inverse(NamedTuple):
    """P⁺ (columns, n), and how well it is determined: σ_max/σ_min of what was inverted, and its rank."""

    matrix: Array
    condition: float
    rank: int


def spans(layers: int, columns: int, span: str) -> dict[str, slice]:
    """Name -> columns of P that share one D.

    ``per_layer``: the keys and values of a layer, [K_l | V_l], so that a virtual token's key and value move together
    and no layer is fitted to another's; ``per_kv``: keys and values apart; ``whole``: all layers as one matrix. With
    ``num_transformer_submodules`` 2 (encoder-decoders) a "layer" is PEFT's numbering of the blocks.
    """
    if span == "whole":
        return {"prefix": slice(0, columns)}
    width = columns // (2 * layers)
    halves = {
        f"layers.{layer}.{part}": slice((2 * layer + side) * width, (2 * layer + side + 1) * width)
        for layer in range(layers)
        for side, part in enumerate(("key", "value"))
    }
    if span == "per_kv":
        return halves
    return {f"layers.{layer}": slice(2 * layer * width, 2 * (layer + 1) * width) for layer in range(layers)}


def inverse(source_reference: Array) -> Inverse:
    """The Moore-Penrose inverse of P[R,s] (n, columns) through its singular values, float64; ``RCOND`` cuts."""
    left, values, right = np.linalg.svd(source_reference, full_matrices=False)
    kept = values > RCOND * values.max(initial=0.0)
    rank = int(kept.sum())
    if not rank:
        return Inverse(np.zeros_like(source_reference.T), 1.0, 0)
    matrix = (right[:rank].T / values[:rank]) @ left[:, :rank].T
    return Inverse(matrix, float(values[0] / values[rank - 1]), rank)


def divergence(target_reference: Array, source_reference: Array) -> Array:
    """D − I = (P[R,g] − P[R,s]) · P[R,s]⁺, (n, n), for D = P[R,g] · P[R,s]⁺. Source: 2402.18913, Eq 10.

    The two agree wherever P[R,s] has full row rank (P·P⁺ = I). Where it has not, this reading keeps what the source
    reference lacks as it is in the task, so that equal references change nothing (ours; the paper is silent).
    """
    return (target_reference - source_reference) @ inverse(source_reference).matrix


def shift(task: Array, divergence: Array, weight: float) -> Array:
    """P[T,g] = (I + λ(D − I)) · P[T,s], (n, columns); ``divergence`` is D − I. Source: 2402.18913, Eq 10 (our reading).

    λ = 0 and P[R,g] = P[R,s] give P[T,s] back. For P[T,s] = P[R,s] and λ = 1 it is P[R,g] as far as the rows of P[R,s]
    span those of P[R,g]: n tokens of more than n entries cannot carry the rest.
    """
    return task + weight * (divergence @ task)


def literal(task: Array, divergence: Array, weight: float) -> Array:
    """P[T,g] = λ · D · P[T,s], (n, columns), as Eq 10 is printed; ``divergence`` is D − I.

    The one form without the identities of the others: λ = 0 gives zeros, and equal references give λ·P[T,s].
    """
    return weight * (task + divergence @ task)


RULE = Rule("prefix", divergence, shift, neutral=0.0)
LITERAL = Rule("prefix", divergence, literal)
