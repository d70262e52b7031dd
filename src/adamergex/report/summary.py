"""The numbers of a report: means over seeds and languages, what is best, what differs from Eng-FT, and the headline.

One seed: the interval of a score is its bootstrap interval. Several: the score is the mean of the seeds' scores
and its spread the sample standard deviation. A difference counts as beyond noise when the mean of the seeds' intervals
of the paired difference leaves out 0 and every seed has the same sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from adamergex.report.results import BASELINE, Interval, Method, Results

MEAN = "mean"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Score:
    """One method in one language over the seeds. ``interval``: what the whiskers show (see the module)."""

    mean: float
    interval: Interval
    sd: float | None
    seeds: int
    range: Interval


@dataclass(frozen=True)
class Mean:
    """One method over the target languages; ``languages`` of ``wanted`` have a score. ``sd`` is over seeds."""

    mean: float
    sd: float | None
    languages: int
    wanted: int

    @property
    def complete(self) -> bool:
        """Whether it may be compared with the other methods' means."""
        return self.languages == self.wanted


@dataclass(frozen=True)
class Row:
    """One method's line of the score table; scores stand in the table's order of languages."""

    method: Method
    scores: tuple[Score | None, ...]
    mean: Mean | None


@dataclass(frozen=True)
class ScoreTable:
    """Methods × languages. ``counts``: items per language ("120", or "118–120" where methods differ).

    ``best`` holds (method name, language or MEAN) of all values that no other exceeds at the printed precision."""

    languages: tuple[str, ...]
    counts: tuple[str, ...]
    rows: tuple[Row, ...]
    best: frozenset[tuple[str, str]]
    seeds: int
    measure: str = "Accuracy"

    @property
    def caption(self) -> str:
        """What the numbers and the small print under them are."""
        spread = "with its 95 % bootstrap interval"
        if self.seeds > 1:
            single = any(item and item.seeds == 1 for row in self.rows for item in row.scores)
            spread = f"mean ± standard deviation over {self.seeds} seeds"
            spread += " (cells of one seed: 95 % bootstrap interval)" if single else ""
        return f"{self.measure} in percent, {spread}; n is the number of test items; the best of a column is bold."


@dataclass(frozen=True)
class Difference:
    """One method minus Eng-FT on the same items; interval: mean of the seeds' intervals."""

    method: Method
    language: str
    mean: float
    interval: Interval
    sd: float | None
    p: tuple[float, ...]
    sign: int
    """+1 above, -1 below, 0 not beyond noise."""


def languages(results: Results) -> tuple[str, ...]:
    """The targets, then any other language that has a cell."""
    return tuple(dict.fromkeys([*results.targets, *(cell.language for cell in results.cells)]))


def score(results: Results, method: str, language: str) -> Score | None:
    """The score of a method in a language over the seeds, or None where nothing was measured."""
    cells = [cell for cell in results.cells if cell.method == method and cell.language == language]
    if not cells:
        return None
    values = [cell.score for cell in cells]
    middle = fmean(values)
    sd = stdev(values) if len(values) > 1 else None
    interval = cells[0].interval if sd is None else (middle - sd, middle + sd)
    return Score(middle, interval, sd, len(values), (min(values), max(values)))


def mean(results: Results, method: str) -> Mean | None:
    """The mean of a method over the target languages it has, and its spread over the seeds that have them all."""
    scores = [score(results, method, language) for language in results.targets]
    present = [item.mean for item in scores if item is not None]
    if not present:
        return None
    seeds: dict[int, list[float]] = {}
    for cell in results.cells:
        if cell.method == method and cell.language in results.targets:
            seeds.setdefault(cell.seed, []).append(cell.score)
    whole = [fmean(values) for values in seeds.values() if len(values) == len(present)]
    return Mean(fmean(present), stdev(whole) if len(whole) > 1 else None, len(present), len(scores))


def score_table(results: Results) -> ScoreTable:
    """The table of methods × languages."""
    columns = languages(results)
    rows = tuple(
        Row(method, tuple(score(results, method.name, column) for column in columns), mean(results, method.name))
        for method in results.methods
    )
    best: set[tuple[str, str]] = set()
    for index, column in enumerate(columns):
        best |= _best(column, [(row.method.name, item.mean) for row in rows if (item := row.scores[index])])
    best |= _best(MEAN, [(row.method.name, row.mean.mean) for row in rows if row.mean and row.mean.complete])
    counts = tuple(_count(results, column) for column in columns)
    return ScoreTable(columns, counts, rows, frozenset(best), seed_count(results), results.measure)


def seed_count(results: Results) -> int:
    """How many seeds the cells really have."""
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
    """Every method minus Eng-FT in every language where the pairs were compared; the headline's method first."""
    first = subject(results)
    methods = sorted(results.methods, key=lambda method: method != first)
    found = (_difference(results, method, language) for method in methods for language in languages(results))
    return tuple(item for item in found if item is not None)


def _difference(results: Results, method: Method, language: str) -> Difference | None:
    pairs = [
        cell.against
        for cell in results.cells
        if cell.method == method.name and cell.language == language and cell.against is not None
        if cell.against.method == BASELINE and cell.method != BASELINE
    ]
    if not pairs:
        return None
    values = [pair.difference for pair in pairs]
    low, high = fmean(pair.interval[0] for pair in pairs), fmean(pair.interval[1] for pair in pairs)
    above = low > 0 and min(values) > 0
    below = high < 0 and max(values) < 0
    return Difference(
        method=method,
        language=language,
        mean=fmean(values),
        interval=(low, high),
        sd=stdev(values) if len(values) > 1 else None,
        p=tuple(pair.p for pair in pairs if pair.p is not None),
        sign=int(above) - int(below),
    )


def subject(results: Results) -> Method | None:
    """The method that the headline is about: AdaMergeX where it is there, else the best other mean."""
    ours = [method for method in results.methods if method.name.startswith("adamergex")]
    exact = [method for method in ours if method.name == "adamergex"]
    if exact or ours:
        return (exact or ours)[0]
    means = [(mean(results, method.name), method) for method in results.methods if method.name != BASELINE]
    scored = [(item.mean, method) for item, method in means if item is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def headline(results: Results) -> str:
    """One sentence that says what the numbers show, and no more."""
    method, baseline = subject(results), results.method(BASELINE)
    if method is None:
        return "Nothing was measured."
    compared = [item for item in differences(results) if item.method == method and item.language in results.targets]
    if baseline is None or not compared:
        alone = mean(results, method.name)
        if alone is None:
            return f"{method.title} has no results."
        return (
            f"{method.title} scores {number(alone.mean)} % on the mean of {_languages(alone.languages)}; "
            "it was not compared with Eng-FT on the same items."
        )
    return _compare(results, method, baseline, compared)


def _compare(results: Results, method: Method, baseline: Method, compared: Sequence[Difference]) -> str:
    ours, theirs = (
        fmean(item.mean for each in compared if (item := score(results, name, each.language)) is not None)
        for name in (method.name, baseline.name)
    )
    gap = fmean(item.mean for item in compared)
    where = f"on the mean of {_languages(len(compared))}" if len(compared) > 1 else f"in {compared[0].language}"
    moved = [item for item in compared if item.sign]
    if not moved:
        return (
            f"No difference beyond noise: {method.title} scores {number(ours)} % and {baseline.label} "
            f"{number(theirs)} % {where} ({signed(gap)} points), and the 95 % interval of the paired difference "
            f"includes 0{' in every language' if len(compared) > 1 else ''}.{_same(results, method)}"
        )
    size = number(abs(gap))
    side = f"{size} points {'above' if gap > 0 else 'below'}" if float(size) else "level with"
    opening = f"{method.title} is {side} {baseline.label} {where}"
    return f"{opening} ({number(ours)} % and {number(theirs)} %); {_moved(moved, compared)}."


def _moved(moved: Sequence[Difference], compared: Sequence[Difference]) -> str:
    """Where the difference is beyond noise, and to which side."""
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
    """Says so when λ = 0 was chosen: the merged adapter is then Eng-FT itself."""
    chosen = [item.chosen for item in results.tuning if item.method == method.name]
    if chosen and not any(chosen):
        return " Tuning chose λ = 0, which is Eng-FT itself."
    return ""


def number(value: float, digits: int = 1) -> str:
    """A value as the tables print it, with a true minus sign and never a negative zero."""
    words = f"{value:.{digits}f}"
    return words.removeprefix("-") if float(words) == 0 else words.replace("-", MINUS)


def signed(value: float, digits: int = 1) -> str:
    """A difference: always with its sign, except 0."""
    words = number(value, digits)
    return words if words.startswith(MINUS) or float(words) == 0 else f"+{words}"


def span(interval: Interval, digits: int = 1, form: str = "[{}, {}]") -> str:
    """An interval in brackets."""
    return form.format(number(interval[0], digits), number(interval[1], digits))


def small_print(item: Score, seeds: int) -> str:
    """What stands beneath a score: the interval, or the spread over seeds, which are counted when some are missing."""
    words = span(item.interval) if item.sd is None else f"± {number(item.sd)}"
    return words if item.seeds in (1, seeds) else f"{words}, {item.seeds} of {seeds} seeds"


def probability(values: Sequence[float]) -> str:
    """A p-value, or the lowest and highest of several seeds."""
    words = list(dict.fromkeys("<0.001" if value < 0.001 else f"{value:.3f}" for value in sorted(values)))
    return "–".join([words[0], words[-1]] if len(words) > 1 else words)


def by_chance(count: int) -> str:
    """How many of so many 95 % intervals leave out 0 when nothing differs."""
    return (
        f"Of {count} comparisons at 95 %, about {number(count / 20)} would leave out 0 by chance alone."
        if count > 1
        else ""
    )
