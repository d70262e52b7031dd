"""The numbers of a report: means over seeds and languages, best values, differences from Eng-FT, and the headline.

Intervals and p come from ``adamergex.statistics``. With several seeds the score is their mean, its spread the sample
standard deviation, its interval over seeds and items. A difference is beyond noise if its p, adjusted for the methods
of the table (Holm), is below 0.05; its interval then excludes 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from adamergex.report import pooling
from adamergex.report.numbers import number, signed
from adamergex.report.results import BASELINE, Interval, Method, PooledComparison, Results

MEAN = "mean"


@dataclass(frozen=True)
class Score:
    """One method in one language over the seeds, with its 95 % interval (the whiskers)."""

    mean: float
    interval: Interval
    sd: float | None
    seeds: int
    range: Interval


@dataclass(frozen=True)
class Mean:
    """One method over the target languages; ``languages`` of ``wanted`` have a score. ``sd`` is over seeds.

    ``interval`` is None if unknown: languages are missing, or the results lack item-level values."""

    mean: float
    sd: float | None
    languages: int
    wanted: int
    interval: Interval | None = None

    @property
    def complete(self) -> bool:
        """Whether it is comparable with the other methods' means."""
        return self.languages == self.wanted


@dataclass(frozen=True)
class Row:
    """One method's row of the score table, with scores in the order of the table's languages."""

    method: Method
    scores: tuple[Score | None, ...]
    mean: Mean | None


@dataclass(frozen=True)
class ScoreTable:
    """Methods × languages. ``counts``: items per language ("120", or "118–120" where methods differ).

    ``best``: (method name, language or MEAN) of all best values at the printed precision."""

    languages: tuple[str, ...]
    counts: tuple[str, ...]
    rows: tuple[Row, ...]
    best: frozenset[tuple[str, str]]
    seeds: int
    measure: str = "Accuracy"

    @property
    def caption(self) -> str:
        """An explanation of the numbers and of the small print under them."""
        spread = "with its 95 % interval"
        if self.seeds > 1:
            spread = f"mean ± standard deviation over {self.seeds} seeds, with its 95 % interval over seeds and items"
        bound = " An oracle is an upper bound, not a method, and never bold." if self.oracles else ""
        return (
            f"{self.measure} in percent, {spread}; n is the number of test items; the best of a column is bold.{bound}"
        )

    @property
    def oracles(self) -> bool:
        """Whether a row's λ was chosen on the test set."""
        return any(row.method.oracle for row in self.rows)


@dataclass(frozen=True)
class Difference:
    """One method minus Eng-FT on the same items, over the seeds; ``language`` may be MEAN.

    The interval agrees with ``adjusted`` (p after Holm over the methods)."""

    method: Method
    against: str
    language: str
    mean: float
    interval: Interval
    sd: float | None
    p: float
    adjusted: float
    sign: int
    """+1 above, -1 below, 0 not beyond noise."""


def languages(results: Results) -> tuple[str, ...]:
    """The targets, then any other language that has a cell."""
    return tuple(dict.fromkeys([*results.targets, *(cell.language for cell in results.cells)]))


def score(results: Results, method: str, language: str) -> Score | None:
    """The score of a method in a language over the seeds, or None without a cell."""
    cells = [cell for cell in results.cells if cell.method == method and cell.language == language]
    if not cells:
        return None
    values = [cell.score for cell in cells]
    middle = fmean(values)
    sd = stdev(values) if len(values) > 1 else None
    return Score(middle, pooling.score_interval(results, cells), sd, len(values), (min(values), max(values)))


def mean(results: Results, method: str) -> Mean | None:
    """The mean of a method over its target languages, and its spread over the seeds that have all of them."""
    scores = [score(results, method, language) for language in results.targets]
    present = [item.mean for item in scores if item is not None]
    if not present:
        return None
    seeds: dict[int, list[float]] = {}
    for cell in results.cells:
        if cell.method == method and cell.language in results.targets:
            seeds.setdefault(cell.seed, []).append(cell.score)
    whole = [fmean(values) for values in seeds.values() if len(values) == len(present)]
    sd = stdev(whole) if len(whole) > 1 else None
    return Mean(fmean(present), sd, len(present), len(scores), _mean_interval(results, method, scores))


def _mean_interval(results: Results, method: str, scores: Sequence[Score | None]) -> Interval | None:
    """The interval of a complete mean; for a single language, that language's interval."""
    if len(scores) == 1 and scores[0] is not None:
        return scores[0].interval
    intervals = (item.interval for item in results.pooled if (item.method, item.language) == (method, MEAN))
    return next(intervals, None) if all(scores) else None


def score_table(results: Results) -> ScoreTable:
    """The table of methods × languages."""
    columns = languages(results)
    rows = tuple(
        Row(method, tuple(score(results, method.name, column) for column in columns), mean(results, method.name))
        for method in results.methods
    )
    best: set[tuple[str, str]] = set()
    ranked = [row for row in rows if not row.method.oracle]
    for index, column in enumerate(columns):
        best |= _best(column, [(row.method.name, item.mean) for row in ranked if (item := row.scores[index])])
    best |= _best(MEAN, [(row.method.name, row.mean.mean) for row in ranked if row.mean and row.mean.complete])
    counts = tuple(_count(results, column) for column in columns)
    return ScoreTable(columns, counts, rows, frozenset(best), seed_count(results), results.measure)


def seed_count(results: Results) -> int:
    """The number of seeds that have cells."""
    return len({cell.seed for cell in results.cells}) or 1


def _best(column: str, values: Sequence[tuple[str, float]]) -> set[tuple[str, str]]:
    if len(values) < 2:
        return set()
    top = number(max(value for _, value in values))
    return {(name, column) for name, value in values if number(value) == top}


def _count(results: Results, language: str) -> str:
    counts = sorted({cell.n for cell in results.cells if cell.language == language})
    if not counts:
        return "0"
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def differences(results: Results) -> tuple[Difference, ...]:
    """Every compared method minus Eng-FT, in every language and on their mean; the headline's method first."""
    first, columns = subject(results), [MEAN, *languages(results)]
    methods = {method.name: index for index, method in enumerate(sorted(results.methods, key=lambda m: m != first))}
    oracles = {method.name for method in results.methods if method.oracle}
    rows = [row for row in pooling.comparisons(results) if row.against == BASELINE and row.language in columns]
    rows = [row for row in rows if row.method not in oracles]
    rows.sort(key=lambda row: (methods[row.method], columns.index(row.language)))
    return tuple(_difference(results, row) for row in rows)


def _difference(results: Results, row: PooledComparison) -> Difference:
    method = results.method(row.method)
    assert method is not None  # checked results list every method
    sign = 0 if row.adjusted >= pooling.ALPHA else 1 if row.difference > 0 else -1
    return Difference(
        method, row.against, row.language, row.difference, row.interval, row.sd, row.p, row.adjusted, sign
    )


def subject(results: Results) -> Method | None:
    """The method of the headline: AdaMergeX if present, else the one with the best mean."""
    methods = [method for method in results.methods if not method.oracle]
    ours = [method for method in methods if method.name.startswith("adamergex")]
    exact = [method for method in ours if method.name == "adamergex"]
    if exact or ours:
        return (exact or ours)[0]
    means = [(mean(results, method.name), method) for method in methods if method.name != BASELINE]
    scored = [(item.mean, method) for item, method in means if item is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def headline(results: Results) -> str:
    """One sentence that summarises the comparison with Eng-FT."""
    method, baseline = subject(results), results.method(BASELINE)
    if method is None:
        return "Nothing was measured."
    of_method = [item for item in differences(results) if item.method == method]
    compared = [item for item in of_method if item.language in results.targets]
    overall = next((item for item in of_method if item.language == MEAN), None)
    if baseline is None or not compared:
        alone = mean(results, method.name)
        if alone is None:
            return f"{method.title} has no results."
        return (
            f"{method.title} scores {number(alone.mean)} % on the mean of {_languages(alone.languages)}; "
            "it was not compared with Eng-FT on the same items."
        )
    return _compare(results, (method, baseline), compared, overall)


def _compare(
    results: Results, methods: tuple[Method, Method], compared: Sequence[Difference], overall: Difference | None
) -> str:
    method, baseline = methods
    ours, theirs = (
        fmean(item.mean for each in compared if (item := score(results, name, each.language)) is not None)
        for name in (method.name, baseline.name)
    )
    gap = fmean(item.mean for item in compared)
    where = f"on the mean of {_languages(len(compared))}" if len(compared) > 1 else f"in {compared[0].language}"
    moved, several = [item for item in compared if item.sign], len(compared) > 1
    if not moved and not (overall and overall.sign):
        everywhere = " in every language" + (" and on their mean" if overall else "") if several else ""
        return (
            f"No difference beyond noise: {method.title} scores {number(ours)} % and {baseline.label} "
            f"{number(theirs)} % {where} ({signed(gap)} points), and the 95 % interval of the paired difference "
            f"includes 0{everywhere}.{_same(results, method)}"
        )
    size = number(abs(gap))
    side = f"{size} points {'above' if gap > 0 else 'below'}" if float(size) else "level with"
    opening = f"{method.title} is {side} {baseline.label} {where} ({number(ours)} % and {number(theirs)} %)"
    if not moved:
        return f"{opening}; the difference is beyond noise on their mean, in no single language."
    mean_too = "" if overall is None else f"; on their mean it is {'' if overall.sign else 'not '}beyond noise"
    return f"{opening}; {_moved(moved, compared)}{mean_too}."


def _moved(moved: Sequence[Difference], compared: Sequence[Difference]) -> str:
    """The languages whose difference is beyond noise, and its direction."""
    if len(compared) == 1:
        return "the difference is beyond noise"
    sides = {item.sign for item in moved}
    if len(moved) == len(compared) and len(sides) == 1:
        return "the difference is beyond noise in every language"
    if len(sides) == 1:
        word = "above" if sides == {1} else "below"
        return f"{word} it beyond noise in {_names(moved)}, not elsewhere"
    above, below = ([item for item in moved if item.sign == sign] for sign in (1, -1))
    return f"beyond noise above it in {_names(above)} and below it in {_names(below)}"


def _names(items: Sequence[Difference]) -> str:
    return ", ".join(item.language for item in items)


def _languages(count: int) -> str:
    return "1 language" if count == 1 else f"{count} languages"


def _same(results: Results, method: Method) -> str:
    """A note for a chosen λ = 0, where the merged adapter is Eng-FT itself."""
    chosen = [item.chosen for item in results.tuning if item.method == method.name]
    if chosen and not any(chosen):
        return " Tuning chose λ = 0, which is Eng-FT itself."
    return ""


def weight_heading(results: Results) -> str:
    """The heading of the search for λ."""
    several = any(item.languages for item in results.tuning)
    return f"The weight λ on {'other' if several else 'the proxy'} language{'s' if several else ''}"
