"""TIES and DARE of task vectors: ΔW = s·B·A of LoRA, l − 1 of (IA)³.

Both are defined on what training added to a model (2306.01708, 2311.03099), and therefore not on A and B: a product of
sums is not a sum of products, and A starts random. Each module's ΔW is one vector, as in PEFT and mergekit; the code of
TIES trims the vector of all modules at once. Everything is float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from adamergex.files.directory import Array
from adamergex.merging.delta import Factors

Mix = Callable[[str, Sequence[Array]], Array]
"""(module, its vectors) -> their mixture."""
MIXED = {"ties": (1.0, 1.0), "dare": (0.5, 0.5)}
"""The methods and their default weights: TIES averages entries that agree, DARE sums."""


def mixer(method: str, density: float, weights: Sequence[float], seed: int) -> Mix:
    """The mixture function of TIES or DARE with its settings; DARE draws from ``seed``."""
    if method == "ties":
        return lambda module, vectors: ties(vectors, weights, density)
    return partial(_drawn, weights=weights, density=density, seed=seed)


def ties(vectors: Sequence[Array], weights: Sequence[float], density: float) -> Array:
    """Trim, elect, disjoint mean (2306.01708, algorithm 1).

    τ̂_t: the ⌊density·n⌋ largest |τ_t| (at least one; ties are kept), else 0. γ = sgn(Σ τ̂_t).
    The result is Σ w_t·τ̂_t over the t with sgn τ̂_t = γ, divided by their number; 0 if there are none.
    """
    kept = [trimmed(vector, density) for vector in vectors]
    sign = np.sign(sum(kept))
    total, count = np.zeros(vectors[0].shape), np.zeros(vectors[0].shape)
    for vector, weight in zip(kept, weights, strict=True):
        agrees = (np.sign(vector) == sign) & (sign != 0)
        total[agrees] += weight * vector[agrees]
        count += agrees
    return np.asarray(total / np.maximum(count, 1))


def trimmed(vector: Array, density: float) -> Array:
    """The largest entries of a vector by absolute value, zeros elsewhere."""
    sizes = np.abs(vector)
    position = vector.size - max(int(density * vector.size), 1)
    threshold = np.partition(sizes, position, axis=None)[position]
    return np.where(sizes >= threshold, vector, 0.0)


def dare(
    vectors: Sequence[Array], weights: Sequence[float], density: float, generators: Sequence[np.random.Generator]
) -> Array:
    """Σ w_t·m_t ⊙ τ_t / density, m_t ~ Bernoulli(density): drop and rescale, then add (2311.03099, §3.2).

    ``density`` is the paper's 1 − p. The mean over draws is Σ w_t·τ_t."""
    total = np.zeros(vectors[0].shape)
    for vector, weight, generator in zip(vectors, weights, generators, strict=True):
        kept = generator.random(vector.shape) < density
        total[kept] += weight / density * vector[kept]
    return total


def _drawn(module: str, vectors: Sequence[Array], *, weights: Sequence[float], density: float, seed: int) -> Array:
    """DARE with draws that depend only on the seed, the module and the position of a vector."""
    names = [f"{seed}\n{module}\n{position}" for position in range(len(vectors))]
    seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little") for name in names]
    return dare(vectors, weights, density, [np.random.default_rng(number) for number in seeds])


def dense(factors: Factors) -> Array:
    """ΔW = s·B·A in float64, (out, in)."""
    return np.asarray(factors.scaling * (factors.B.astype(np.float64) @ factors.A.astype(np.float64)))


def whole(change: Array, scaling: float) -> Factors:
    """ΔW as a LoRA of full rank min(out, in): one factor is ΔW/s, the other the identity."""
    rows, columns = change.shape
    if columns <= rows:
        return Factors(np.eye(columns), change / scaling, scaling)
    return Factors(change / scaling, np.eye(rows), scaling)


def low_rank(change: Array, rank: int, scaling: float) -> tuple[Factors, float]:
    """The best approximation of ΔW of a rank, and ‖ΔW − ΔW_R‖_F / ‖ΔW‖_F.

    With V the leading right singular vectors (for a wide ΔW, U the left ones), from the eigenvectors of the smaller
    Gram matrix: A = Vᵀ, B = ΔW·V/s. Each vector's largest entry is positive, which makes the result unique.
    """
    wide = change.shape[1] > change.shape[0]
    matrix = change.T if wide else change
    vectors = np.linalg.eigh(matrix.T @ matrix).eigenvectors[:, ::-1][:, :rank]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    image = matrix @ vectors
    size = float(np.linalg.norm(change))
    error = float(np.linalg.norm(matrix - image @ vectors.T)) / size if size else 0.0
    A, B = (image.T / scaling, vectors) if wide else (vectors.T, image / scaling)
    return Factors(np.ascontiguousarray(A), np.ascontiguousarray(B), scaling), error
