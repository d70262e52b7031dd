"""One system's answers to one labelled set as numbers, and their clusters."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Sample:
    """Items of one system in one language; the score is Σ hits / Σ totals.

    ``totals`` is 1 per item, except for entity F1 (predicted plus gold entities of a sentence). Items of one ``group``
    (the questions on one passage, the hypotheses of one premise) are not independent.
    """

    ids: tuple[Hashable, ...]
    groups: tuple[Hashable, ...]
    hits: Floats
    totals: Floats

    @classmethod
    def read(cls, items: Sequence[Mapping[str, object]]) -> Sample:
        """Predictions as ``evaluate`` writes them: right or wrong, or with a ``tally`` [hits, total].

        ``group`` (or ``context_id``) names the group; an item without one is its own group.
        """
        tallies = [item.get("tally") or (item["gold"] == item["predicted"], 1) for item in items]
        ids = [item.get("id", index) for index, item in enumerate(items)]
        groups = [item.get("group", item.get("context_id")) for item in items]
        names = [("alone", index) if group is None else str(group) for index, group in enumerate(groups)]
        values = np.asarray(tallies, dtype=np.float64).reshape(len(items), 2)
        return cls(tuple(map(_hashable, ids)), tuple(names), values[:, 0], values[:, 1])

    @classmethod
    def of_tallies(cls, tallies: Floats) -> Sample:
        """Independent items from rows of [hits, total]."""
        numbers = tuple(range(len(tallies)))
        return cls(numbers, numbers, np.asarray(tallies[:, 0], float), np.asarray(tallies[:, 1], float))

    @cached_property
    def score(self) -> float:
        """Σ hits / Σ totals; 0 if there is nothing to find."""
        total = float(self.totals.sum())
        return float(self.hits.sum()) / total if total else 0.0

    @cached_property
    def binary(self) -> bool:
        """Whether every item is right or wrong."""
        return bool((self.totals == 1).all() and np.isin(self.hits, (0.0, 1.0)).all())


@dataclass(frozen=True, eq=False)
class Clusters:
    """The cluster of every item in each language, numbered from 0 to ``count`` - 1."""

    codes: tuple[Codes, ...]
    count: int

    def sums(self, language: int, values: Floats) -> Floats:
        """The sum of values in each cluster."""
        return np.bincount(self.codes[language], weights=values, minlength=self.count).astype(np.float64, copy=False)


def clusters(samples: Sequence[Sample]) -> Clusters:
    """Clusters over languages: items of one group, and an item with its translations (equal ids).

    Ids link languages only if they are unique in each language.
    """
    sets = _Sets()
    for language, sample in enumerate(samples):
        linked = len(samples) > 1 and len(set(sample.ids)) == len(sample.ids)
        for name, group in zip(sample.ids, sample.groups, strict=True):
            node = sets.number(("group", language, group))
            if linked:
                sets.join(node, sets.number(("id", name)))
    roots = [
        np.array([sets.root(sets.number(("group", language, group))) for group in sample.groups], dtype=np.intp)
        for language, sample in enumerate(samples)
    ]
    names, codes = np.unique(np.concatenate(roots), return_inverse=True)
    ends = np.cumsum([len(sample.ids) for sample in samples])[:-1]
    return Clusters(tuple(np.split(codes, ends)), len(names))


class _Sets:
    """Disjoint sets (union by lower number, path halving)."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._parents: list[int] = []

    def number(self, node: Hashable) -> int:
        number = self._numbers.setdefault(node, len(self._parents))
        if number == len(self._parents):
            self._parents.append(number)
        return number

    def root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = number = self._parents[self._parents[number]]
        return number

    def join(self, first: int, second: int) -> None:
        low, high = sorted((self.root(first), self.root(second)))
        self._parents[high] = low


def _hashable(value: object) -> Hashable:
    return value if isinstance(value, Hashable) else str(value)
