"""Quantiles of the normal and of Student's t distribution.

Source: Abramowitz and Stegun 1964, 26.5.8 (incomplete beta function as a continued fraction), 26.7.1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_TINY = 1e-300


def normal_quantile(alpha: float) -> float:
    """z with P(|Z| > z) = alpha, for alpha in (0, 1]."""
    return -NormalDist().inv_cdf(max(alpha, _TINY) / 2)


def t_tail(t: float, df: float) -> float:
    """P(|T| > t) = I_x(df/2, 1/2) with x = df / (df + t²)."""
    x, a, b = df / (df + t * t), df / 2, 0.5
    if x in (0.0, 1.0):
        return x
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # B(a, b) is symmetric
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


@lru_cache(maxsize=65536)
def t_quantile(alpha: float, df: float) -> float:
    """t with P(|T| > t) = alpha, for alpha in (0, 1]."""
    if alpha >= 1:
        return 0.0
    if df == 1:
        return 1 / math.tan(math.pi * alpha / 2)
    if df == 2:
        return (1 - alpha) * math.sqrt(2 / (alpha * (2 - alpha)))
    t = normal_quantile(alpha) if df > 30 else math.sqrt(df * (alpha ** (-2 / df) - 1))
    for _ in range(50):  # Newton's method on logarithms, where the tail is almost linear
        tail = t_tail(t, df)
        slope = -2 * t * _density(t, df) / tail
        step = math.log(alpha / tail) / slope
        t *= math.exp(max(-1.0, min(1.0, step)))
        if abs(step) < 1e-10:
            break
    return t


def _density(t: float, df: float) -> float:
    logarithm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - (df + 1) / 2 * math.log1p(t * t / df)
    return math.exp(logarithm) / math.sqrt(df * math.pi)


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / ((1 + step * d) or _TINY)
            c = (1 + step / c) or _TINY
            value *= d * c
        if abs(d * c - 1) < 1e-13:
            break
    return value
