"""Exact and sampled permutation tests of paired differences, which swap the two systems' answers.

Under the null hypothesis both signs of a cluster's difference are equally likely. For independent right or wrong items
this is McNemar's exact test, the sign test on the items that only one system has right.
Sources: Fisher 1935, §21; McNemar 1947; for scores of language systems Yeh 2000 (cs/0008005), Dror et al. 2018.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from adamergex.statistics.samples import Floats

SEED = 20240229  # for all permutations and resamples, so that equal predictions give equal p and intervals
DRAWS = 10_000
_ENUMERATED = 16
_LATTICE = 5_000
_ROWS = 1_000


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of ``won`` against ``lost`` under a fair coin: min(1, 2·P(X ≤ min)), X ~ Bin(won + lost, ½)."""
    total = won + lost
    tail: int = sum(math.comb(total, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / (1 << total))


def sign_flip_test(differences: Floats) -> float:
    """Two-sided p of Σ differences under random signs: P(|Σ ±d| ≥ |Σ d|).

    Exact for whole numbers and for at most 16 nonzero differences; otherwise from 10,000 drawn permutations
    (Monte-Carlo p, Phipson and Smyth 2010).
    """
    values = differences[np.abs(differences) > 1e-12]
    if not len(values):
        return 1.0
    whole = np.rint(values)
    if np.abs(values - whole).max() < 1e-6 and np.abs(whole).min() >= 1:
        if (np.abs(whole) == np.abs(whole[0])).all():
            return mcnemar(int((whole > 0).sum()), int((whole < 0).sum()))
        if np.abs(whole).sum() <= _LATTICE:
            return _on_lattice(whole.astype(np.intp))
    observed = abs(float(values.sum())) * (1 - 1e-9)
    if len(values) <= _ENUMERATED:
        return float((np.abs(_all_signs(len(values)) @ values) >= observed).mean())
    blocks = _drawn_bits(len(values), DRAWS // _ROWS)
    beyond = sum(int((np.abs(_signs(block, len(values)) @ values) >= observed).sum()) for block in blocks)
    return (1 + beyond) / (1 + DRAWS)


def _on_lattice(values: NDArray[np.intp]) -> float:
    """The exact distribution of Σ ±d of whole numbers: a binomial per magnitude, convolved."""
    probabilities = np.ones(1)
    for size, count in zip(*np.unique(np.abs(values), return_counts=True), strict=True):
        logarithms = [
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(count + 1)
        ]
        binomial = np.zeros(2 * size * count + 1)
        binomial[:: 2 * size] = np.exp(np.array(logarithms) - count * math.log(2))
        probabilities = np.convolve(probabilities, binomial)
    largest = len(probabilities) // 2
    sums = np.arange(-largest, largest + 1)
    return min(1.0, float(probabilities[np.abs(sums) >= abs(int(values.sum()))].sum()))


@lru_cache(maxsize=4)
def _all_signs(count: int) -> Floats:
    numbers = np.arange(1 << count)[:, None] >> np.arange(count)
    return (1 - 2 * (numbers & 1)).astype(np.float64)


def _signs(block: NDArray[np.uint8], count: int) -> Floats:
    return 1 - 2 * np.unpackbits(block, axis=1, count=count).astype(np.float64)


@lru_cache(maxsize=32)
def _drawn_bits(count: int, blocks: int) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(SEED)
    return [generator.integers(256, size=(_ROWS, -(-count // 8)), dtype=np.uint8) for _ in range(blocks)]
