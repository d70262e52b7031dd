"""Intervals and paired tests: known values, interval and flag, clusters, seeds, languages, several methods."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamergex import statistics
from adamergex.errors import DataError
from adamergex.evaluation import paired_difference, score
from adamergex.statistics import Sample, agreeing, compare, holm, wilson
from adamergex.statistics.distributions import normal_quantile, t_quantile, t_tail
from adamergex.statistics.samples import clusters
from adamergex.statistics.sign_flips import sign_flip_test


def answers(pattern: str, groups: Any = None) -> list[dict[str, Any]]:
    """An item a character: x is right."""
    names = itertools.repeat(None) if groups is None else groups
    return [
        {"id": index, "gold": 1, "predicted": int(mark == "x")} | ({} if name is None else {"group": name})
        for index, (mark, name) in enumerate(zip(pattern, names, strict=False))
    ]


def graded(values: Any, groups: Any = None) -> list[dict[str, Any]]:
    names = itertools.repeat(None) if groups is None else groups
    return [
        {"id": index, "gold": "a", "predicted": "b", "tally": [float(value), 1.0]} | ({} if g is None else {"group": g})
        for index, (value, g) in enumerate(zip(values, names, strict=False))
    ]


def pair(won: int, lost: int, n: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rest = "x" * (n - won - lost)
    return answers("x" * won + "." * lost + rest), answers("." * won + "x" * lost + rest)


def test_wilson_by_its_definition() -> None:
    """Both ends θ solve (p − θ)² = z²·θ(1 − θ)/n; z by the standard library."""
    z = NormalDist().inv_cdf(0.975)
    for right, n in ((1, 1), (3, 10), (204, 250), (1, 250), (249, 250)):
        for end in wilson(right, n):
            theta = end / 100
            if 0 < theta < 1:
                assert (right / n - theta) ** 2 == pytest.approx(z * z * theta * (1 - theta) / n)
    assert wilson(0, 250) == (0, pytest.approx(100 * z * z / (250 + z * z)))


@pytest.mark.parametrize("n", [1, 2, 30, 250])
def test_nothing_right_and_all_right_leave_room(n: int) -> None:
    ratio = NormalDist().inv_cdf(0.975) ** 2
    for items in (answers("." * n), graded([0] * n)):
        found = score(items)
        assert (found.score, found.interval[0]) == (0, 0)
        assert found.interval[1] == pytest.approx(100 * ratio / (n + ratio))
    for items in (answers("x" * n), graded([1] * n)):
        found = score(items)
        assert (found.score, found.interval[1]) == (100, 100)
        assert found.interval[0] == pytest.approx(100 - 100 * ratio / (n + ratio))


def test_entity_f1_of_nothing_and_of_everything() -> None:
    def sentences(hits: float, of: float, count: int = 40) -> list[dict[str, Any]]:
        return [{"id": i, "gold": 0, "predicted": 0, "tally": [hits, of]} for i in range(count)]

    none, every, empty = (score(sentences(*tally)) for tally in ((0, 5), (6, 6), (0, 0)))
    assert none.interval[0] == 0 and 5 < none.interval[1] < 12
    assert every.interval[1] == 100 and 88 < every.interval[0] < 95
    assert empty.interval == [0, 100]  # no entity at all: nothing is known
    one = score(sentences(2, 5, 1)).interval
    assert one[0] < 15 and one[1] > 75  # a single sentence says little


def test_graded_intervals_cover_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(3), 0
    for _ in range(300):
        low, high = statistics.interval(Sample.read(graded(rng.beta(0.3, 2.0, 60))))
        hits += low <= 100 * 0.3 / 2.3 <= high
    assert hits / 300 >= 0.91


@pytest.mark.parametrize(
    ("won", "lost", "p"), [(4, 0, 1 / 8), (5, 0, 1 / 16), (6, 0, 1 / 32), (7, 1, 18 / 256), (8, 1, 20 / 512), (0, 0, 1)]
)
def test_the_flag_is_that_of_the_exact_test(won: int, lost: int, p: float) -> None:
    for n in (won + lost, 30, 250):
        a, b = pair(won, lost, max(n, 1))
        found, back = paired_difference(a, b), paired_difference(b, a)
        assert found["p"] == back["p"] == pytest.approx(p)
        low, high = found["interval"]
        assert (low > 0) == (p < 0.05) and low <= found["difference"] <= high
        assert [-end for end in reversed(back["interval"])] == pytest.approx([low, high])


@settings(max_examples=150)
@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 200), st.sampled_from([0.05, 0.0125, 0.2]))
def test_interval_and_p_never_disagree(won: int, lost: int, rest: int, alpha: float) -> None:
    a, b = pair(won, lost, max(won + lost + rest, 1))
    found = compare([[Sample.read(a)]], [[Sample.read(b)]])
    low, high = found.interval(alpha)
    assert (low > 0 or high < 0) == (found.p < alpha)
    assert -100 <= low <= found.difference <= high <= 100


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_interval_and_p_never_disagree_of_graded_items(values: list[tuple[float, float]]) -> None:
    a, b = (graded([row[side] for row in values]) for side in (0, 1))
    found = paired_difference(a, b)
    low, high = found["interval"]
    assert (low > 0 or high < 0) == (found["p"] < 0.05)


def test_permutations_are_all_of_them_where_they_are_few() -> None:
    values = np.array([0.3, -0.1, 0.25, 0.7, 0.05])
    signs = np.array(list(itertools.product((-1, 1), repeat=5)))
    wanted = (abs(signs @ values) >= abs(values.sum()) - 1e-12).mean()
    assert sign_flip_test(values) == pytest.approx(wanted)
    assert sign_flip_test(np.append(values, 0.0)) == pytest.approx(wanted)  # a tie says nothing
    whole = np.array([2.0, -1, 3, 1, 1, -2, 2])
    signs = np.array(list(itertools.product((-1, 1), repeat=7)))
    assert sign_flip_test(whole) == pytest.approx((abs(signs @ whole) >= abs(whole.sum())).mean())
    many = np.random.default_rng(0).normal(0.3, 1, 60)
    z = abs(many.sum()) / math.sqrt((many**2).sum())
    assert sign_flip_test(many) == pytest.approx(2 * NormalDist().cdf(-z), abs=0.02)


def test_items_of_one_passage_are_one_cluster() -> None:
    marks = "".join("xxx" if index % 2 else "..." for index in range(80))
    groups = [index // 3 for index in range(240)]
    alone, together = (score(answers(marks, names)).interval for names in (None, groups))
    assert together == pytest.approx(wilson(40, 80), abs=0.5)  # as many items as there are passages
    assert together[1] - together[0] > 1.6 * (alone[1] - alone[0])
    won, lost = answers("xxx" * 4 + "x" * 228, groups), answers("..." * 4 + "x" * 228, groups)
    assert paired_difference(won, lost)["p"] == pytest.approx(1 / 8)  # four passages, not twelve items
    assert paired_difference(won, lost)["interval"][0] <= 0
    for item in (*won, *lost):
        item["context_id"] = f"passage {item.pop('group')}"
    assert paired_difference(won, lost)["p"] == pytest.approx(1 / 8)


def test_answers_that_exclude_each_other_gain_nothing() -> None:
    """A classifier with one label for everything is right once per premise, always: no wonder, and no knowledge."""
    items = answers("x.." * 100, [index // 3 for index in range(300)])
    assert score(items).interval == pytest.approx(wilson(100, 300))


def test_graded_items_and_entities_of_one_passage_are_one_cluster() -> None:
    rng = np.random.default_rng(5)
    values, groups = np.repeat(rng.random(30), 8), [index // 8 for index in range(240)]
    alone, together = (score(graded(values, names)).interval for names in (None, groups))
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
    a, b = graded(np.clip(values + np.repeat(rng.normal(0.06, 0.1, 30), 8), 0, 1), groups), graded(values, groups)
    single = [{key: value for key, value in item.items() if key != "group"} for item in (*a, *b)]
    assert paired_difference(single[:240], single[240:])["p"] < 0.001 < paired_difference(a, b)["p"]


def test_an_item_and_its_translations_are_one_cluster() -> None:
    first, second = Sample.read(answers("x.x.")), Sample.read(answers("xx.."))
    found = clusters([first, second])
    assert found.count == 4 and found.codes[0].tolist() == found.codes[1].tolist()
    other = Sample(("a", "b", "c", "d"), second.groups, second.hits, second.totals)
    assert clusters([first, other]).count == 8
    passages = Sample.read(answers("xxxx", ["p", "p", "q", "q"]))
    assert clusters([passages, second]).count == 2  # through the passage in one language


def test_the_mean_over_languages_is_no_surer_than_its_items() -> None:
    rng = np.random.default_rng(2)
    marks = "".join("x" if value < 0.6 else "." for value in rng.random(200))
    one = Sample.read(answers(marks))
    cells = {("m", language, 0): one for language in ("sw", "tr", "yo", "ha")}
    found = statistics.pooled(cells, ("sw", "tr", "yo", "ha"))
    assert [row.language for row in found] == ["mean"]
    assert found[0].interval == pytest.approx(statistics.interval(one), abs=0.4)  # translations add nothing here
    apart = {
        ("m", language, 0): Sample(tuple(f"{language}{i}" for i in range(200)), one.groups, one.hits, one.totals)
        for language in ("sw", "tr", "yo", "ha")
    }
    low, high = statistics.pooled(apart, ("sw", "tr", "yo", "ha"))[0].interval
    assert (high - low) / (found[0].interval[1] - found[0].interval[0]) == pytest.approx(0.5, abs=0.03)


def test_languages_with_other_items_and_sizes() -> None:
    cells = {("m", "sw", 0): Sample.read(answers("x" * 30 + "." * 10)), ("m", "tr", 0): Sample.read(answers("x." * 10))}
    row = statistics.pooled(cells, ("sw", "tr"))[0]
    assert row.score == pytest.approx((75 + 50) / 2) and row.interval[0] < 62.5 < row.interval[1]
    assert statistics.pooled(cells, ("sw", "tr", "yo")) == ()  # the mean of what is not there is not shown


def test_seeds_are_doubted_too() -> None:
    """Three seeds that agree on every item are as one; three that differ much widen the interval beyond the items'."""
    base = [[Sample.read(answers("x." * 100))]] * 3
    same = compare([[Sample.read(answers("xx" * 12 + "x." * 88))]] * 3, base)
    single = compare([[Sample.read(answers("xx" * 12 + "x." * 88))]], base[:1])
    assert max(same.p, single.p) < 0.001 and same.interval() == pytest.approx(single.interval(), abs=0.1)
    spread = [[Sample.read(answers("xx" * gain + "x." * (100 - gain)))] for gain in (2, 12, 22)]
    found = compare(spread, base)
    assert found.difference == pytest.approx(same.difference) and found.p > 0.05 > same.p
    assert found.sd == pytest.approx(5) and found.interval()[0] < 0


NOTHING_DIFFERS = [
    (seeds, *effects)
    for seeds in (1, 2, 3, 5)
    for effects in ((1.0, 0.0, 0.5), (0.5, 0.3, 0.5), (0.2, 0.5, 0.3), (0.3, 0.0, 1.0))
    if seeds > 1 or not effects[1]  # one seed cannot show what the next would do
]


@pytest.mark.parametrize(("seeds", "items", "seed", "rest"), NOTHING_DIFFERS)
def test_two_methods_without_a_difference_are_seldom_flagged(
    seeds: int, items: float, seed: float, rest: float
) -> None:
    """Right where ability + the method's effects on item, seed and both exceed 0; triples share a passage."""
    rng, flagged, runs, n = np.random.default_rng(11), 0, 600, 90
    groups = tuple(index // 3 for index in range(n))

    for _ in range(runs):
        ability, own = rng.normal(0, 1, n), np.repeat(rng.normal(0, items, (2, n // 3)), 3, 1)
        found = [
            [[Sample(tuple(range(n)), groups, (ability + own[method] + rng.normal(0, seed) + rng.normal(0, rest, n) > 0)
                     .astype(float), np.ones(n))] for _ in range(seeds)]
            for method in (0, 1)
        ]  # fmt: skip
        comparison = compare(*found)
        low, high = comparison.interval()
        assert (low > 0 or high < 0) == (comparison.p < 0.05)
        flagged += comparison.p < 0.05
    assert flagged / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)  # the last: of so few runs


def test_a_difference_that_is_there_is_found() -> None:
    rng, found, n = np.random.default_rng(4), 0, 200
    for _ in range(60):
        base = rng.random(n)
        ours, theirs = (
            [[Sample.read(answers("".join("x" if u < level else "." for u in base + rng.normal(0, 0.05, n))))]
             for _ in range(3)]
            for level in (0.60, 0.50)
        )  # fmt: skip
        found += compare(ours, theirs).p < 0.05
    assert found >= 50


def test_holm_by_hand() -> None:
    found = holm([0.04, 0.001, 0.02, 0.5])
    assert [adjusted for adjusted, _ in found] == pytest.approx([0.08, 0.004, 0.06, 0.5])
    assert [alpha for _, alpha in found] == pytest.approx([0.05 / 3, 0.05 / 4, 0.05 / 3, 0.05 / 3])
    assert holm([]) == [] and holm([0.03]) == [(0.03, 0.05)]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_adjusted_p_and_own_alpha_say_the_same(values: list[float]) -> None:
    for value, (adjusted, alpha) in zip(values, holm(values), strict=True):
        if not math.isclose(adjusted, 0.05) and not math.isclose(value, alpha):
            assert (adjusted < 0.05) == (value < alpha)


def test_more_methods_widen_every_interval_and_raise_every_p() -> None:
    base, better = "x." * 60, "xx" * 7 + "x." * 53
    few = {(name, "sw", 0): Sample.read(answers(marks)) for name, marks in (("base", base), ("a", better))}
    many = few | {(f"other {index}", "sw", 0): Sample.read(answers(base)) for index in range(3)}
    one, four = (statistics.comparisons(cells, ("sw",), "base")[0] for cells in (few, many))
    assert one.p == four.p == one.adjusted == pytest.approx(2 / 2**7)
    assert four.adjusted == pytest.approx(4 * one.p) and four.adjusted > 0.05
    assert one.interval[0] > 0 >= four.interval[0]


def test_an_interval_is_moved_only_where_it_contradicts_p() -> None:
    assert agreeing((1.0, 3.0), 2.0, 0.001) == (1.0, 3.0) and agreeing((-1.0, 3.0), 1.0, 0.4) == (-1.0, 3.0)
    low, high = agreeing((0.2, 3.0), 1.6, 0.125)
    assert low < 0 and high == 3.0
    low, high = agreeing((-3.0, 0.2), -1.6, 0.01)
    assert low == -3.0 and -1.6 < high < 0
    assert agreeing((2.0, 4.0), 3.0, 1.0) == (-100.0, 4.0)


def test_quantiles_from_tables() -> None:
    """Student's t as printed (two-sided 5 % and 0.1 %), and the normal distribution."""
    printed = ((1, 12.706, 636.619), (2, 4.303, 31.599), (4, 2.776, 8.610), (10, 2.228, 4.587), (120, 1.980, 3.373))
    for df, five, tenth in printed:
        assert t_quantile(0.05, df) == pytest.approx(five, abs=6e-4)
        assert t_quantile(0.001, df) == pytest.approx(tenth, abs=6e-4)
        assert t_tail(t_quantile(0.3, df), df) == pytest.approx(0.3)
    assert normal_quantile(0.05) == pytest.approx(1.959964, abs=1e-6)
    assert t_quantile(0.05, 10**6) == pytest.approx(1.959964, abs=1e-5)


def test_no_items_and_other_items_are_refused() -> None:
    with pytest.raises(DataError, match="no predictions"):
        score([])
    with pytest.raises(DataError, match="not for the same items"):
        paired_difference(answers("xx"), answers("xxx"))
