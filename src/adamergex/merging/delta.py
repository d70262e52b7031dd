"""LoRA in delta space: exact combinations of ΔW = s·B·A as one LoRA, and truncation of its rank.

ΔW itself, as large as the base's matrix, is never formed. Ours: the paper merges factors (2402.18913, Eq 7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from adamergex.files.directory import Array

_BLOCK = 2048  # rows per float64 block, so that a Gram matrix needs no copy of a factor


class Factors(NamedTuple):
    """ΔW = scaling · B · A with A (r, in) and B (out, r)."""

    A: Array
    B: Array
    scaling: float

    @property
    def rank(self) -> int:
        return int(self.A.shape[0])


def difference(target: Factors, source: Factors | None) -> Factors:
    """ΔW[R,g] − ΔW[R,s] of rank r_g + r_s, with scalings folded into B; without a source ΔW[R,g] (averaging)."""
    if source is None:
        return Factors(target.A, target.B * target.scaling, 1.0)
    return Factors(
        np.concatenate([target.A, source.A]),
        np.concatenate([target.B * target.scaling, source.B * -source.scaling], axis=1),
        1.0,
    )


def vanishes(divergence: Factors) -> bool:
    """Whether the two halves of a difference cancel exactly: the references agree on this module."""
    half, odd = divmod(divergence.rank, 2)
    if odd:
        return False
    return bool(np.array_equal(divergence.A[:half], divergence.A[half:])) and bool(
        np.array_equal(divergence.B[:, :half], -divergence.B[:, half:])
    )


def combine(task: Factors, divergence: Factors, task_weight: float, weight: float) -> Factors:
    """task_weight·ΔW[T,s] + weight·ΔD of rank r_T + r_D, with the task's scaling, so that its stored factors stay."""
    scaled = task.B if task_weight == 1.0 else task.B * task_weight
    return Factors(
        np.concatenate([task.A, divergence.A]),
        np.concatenate([scaled, divergence.B * (weight * divergence.scaling / task.scaling)], axis=1),
        task.scaling,
    )


def norm(factors: Factors) -> float:
    """‖ΔW‖_F = |s|·√Σ (BᵀB) ⊙ (AAᵀ), in float64."""
    total = float(np.sum(_gram(factors.B) * _gram(factors.A.T)))
    return abs(factors.scaling) * math.sqrt(max(total, 0.0))


def _gram(matrix: Array) -> Array:
    total = np.zeros((matrix.shape[1], matrix.shape[1]))
    for start in range(0, matrix.shape[0], _BLOCK):
        block = matrix[start : start + _BLOCK].astype(np.float64)
        total += block.T @ block
    return total


def truncate(factors: Factors, rank: int) -> tuple[Factors, float]:
    """The best approximation of lower rank, and ‖ΔW − ΔW_R‖_F / ‖ΔW‖_F.

    B = Q₁R₁, Aᵀ = Q₂R₂, s·R₁R₂ᵀ = UΣVᵀ; then B' = Q₁U√Σ, A' = √ΣVᵀQ₂ᵀ, cut to ``rank``, scaling 1; float64. Signs
    are chosen so that the largest entry of each column of B' is positive, which makes the result unique.
    """
    left, upper = np.linalg.qr(factors.B.astype(np.float64))
    right, lower = np.linalg.qr(factors.A.T.astype(np.float64))
    u, sigma, vt = np.linalg.svd(factors.scaling * (upper @ lower.T), full_matrices=False)
    root = np.sqrt(sigma[:rank])
    B = left @ (u[:, :rank] * root)
    A = (root[:, None] * vt[:rank]) @ right.T
    signs = np.where(B[np.abs(B).argmax(axis=0), np.arange(B.shape[1])] < 0, -1.0, 1.0)
    total = float(np.sqrt(np.sum(sigma**2)))
    error = float(np.sqrt(np.sum(sigma[rank:] ** 2))) / total if total else 0.0
    return Factors(A * signs[:, None], B * signs, 1.0), error


def with_ranks(config: Mapping[str, object], shapes: Mapping[str, tuple[int, float]]) -> dict[str, object]:
    """A PEFT config with a (rank, scaling) per module.

    The most common values become ``r`` and ``lora_alpha``, the others patterns: of the last part of the name if all
    modules with this part agree, otherwise of the whole name.
    """
    values = list(shapes.values())
    common = max(sorted(set(values)), key=values.count)
    leaves: dict[str, set[tuple[int, float]]] = {}
    for name, shape in shapes.items():
        leaves.setdefault(name.rpartition(".")[2], set()).add(shape)
    patterns = {}
    for name, shape in shapes.items():
        leaf = name.rpartition(".")[2]
        if shape != common or len(leaves[leaf]) > 1:
            patterns[leaf if len(leaves[leaf]) == 1 else name] = shape
    # Longer names first: PEFT takes the first pattern that matches, also at the end of a name.
    ordered = sorted(patterns, key=lambda name: (-len(name), name))
    return {
        **config,
        "r": common[0],
        "lora_alpha": _alpha(common),
        "rank_pattern": {name: patterns[name][0] for name in ordered},
        "alpha_pattern": {name: _alpha(patterns[name]) for name in ordered},
        "use_rslora": False,
    }


def _alpha(shape: tuple[int, float]) -> float | int:
    alpha = shape[0] * shape[1]
    return round(alpha) if abs(alpha - round(alpha)) <= 1e-12 * alpha else alpha
