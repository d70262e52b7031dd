"""Pictures of the scores: bars per language, the λ curve, and the interval of one difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from adamergex.report.numbers import format_difference_interval, format_interval, number, signed, spread_print
from adamergex.report.results import BASELINE, CurvePoint, Interval, Method, Tuning
from adamergex.report.summary import MEAN, Difference, Row, Score, ScoreTable
from adamergex.report.svg import element, label, line, picture, shorten, ticks, tooltip

WIDTH = 340
CHARACTER = 7.4
ROW = 26


def role(method: Method) -> str:
    """The CSS class of a method's marks: "ours", "baseline" or "rival"."""
    if method.name.startswith("adamergex") and not method.oracle:
        return "ours"
    return "baseline" if method.name == BASELINE else "rival"


@dataclass(frozen=True)
class Scale:
    """From a value to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def bar_panels(table: ScoreTable, prefix: str = "") -> list[str]:
    """One panel per language and one for the mean, all on one scale from 0: a bar per method with whiskers, and a
    dashed line at Eng-FT."""
    tops = [item.interval[1] for row in table.rows for item in (*row.scores, _mean_score(row)) if item]
    marks = ticks(0, max([*tops, 1.0]))
    names = _names([row.method for row in table.rows])
    panels = [
        _bars(
            f"{prefix}bars-{index}",
            (language, f"n = {count}"),
            _bars_of(names, [row.scores[index] for row in table.rows]),
            marks,
            table.measure,
        )
        for index, (language, count) in enumerate(zip(table.languages, table.counts, strict=True))
    ]
    if len(table.languages) > 1:
        means = _bars_of(names, [_mean_score(row) for row in table.rows], missing="not in every language")
        panels.append(_bars(f"{prefix}bars-mean", (MEAN, "of the target languages"), means, marks, table.measure))
    return panels


@dataclass(frozen=True)
class _Bar:
    """One method in one panel."""

    method: Method
    name: str
    score: Score | None
    missing: str = "no result"


def _names(methods: Sequence[Method]) -> dict[Method, str]:
    """Short names: labels, with the merging space only where two methods share a label."""
    labels = [method.label for method in methods]
    long = {method: method.label if labels.count(method.label) == 1 else method.title for method in methods}
    return {method: shorten(words, 19) for method, words in long.items()}


def _bars_of(names: dict[Method, str], scores: Sequence[Score | None], missing: str = "no result") -> list[_Bar]:
    return [_Bar(method, name, item, missing) for (method, name), item in zip(names.items(), scores, strict=True)]


def _mean_score(row: Row) -> Score | None:
    """A row's mean as a score to draw; None for an incomplete mean, which is not comparable."""
    if row.mean is None or not row.mean.complete:
        return None
    ends = row.mean.interval or (row.mean.mean, row.mean.mean)
    return Score(row.mean.mean, ends, row.mean.sd, 1, ends)


def _bars(key: str, heading: tuple[str, str], bars: Sequence[_Bar], marks: Sequence[float], measure: str) -> str:
    name, note = heading
    scale = Scale(marks[0], marks[-1], max(len(bar.name) for bar in bars) * CHARACTER + 10, WIDTH - 44)
    bottom = 30 + ROW * len(bars)
    parts = [label(0, 14, name, class_="heading"), label(WIDTH, 14, note, class_="quiet", text_anchor="end")]
    for mark in marks:
        parts.append(line(scale(mark), 26, scale(mark), bottom, "grid"))
        parts.append(label(scale(mark), bottom + 14, f"{mark:g}", class_="tick", text_anchor="middle"))
    parts += [_bar(scale, 30 + ROW * index, bar) for index, bar in enumerate(bars)]
    reference = next((bar.score for bar in bars if bar.method.name == BASELINE and bar.score), None)
    if reference is not None:
        parts.append(line(scale(reference.mean), 26, scale(reference.mean), bottom, "reference"))
    description = "; ".join(f"{bar.method.title} {_score_text(bar.score)}" for bar in bars)
    title = f"{measure}, mean" if key.endswith("bars-mean") else f"{measure} in {name}"
    return picture(key, (WIDTH, bottom + 20), title, description, "".join(parts))


def _bar(scale: Scale, top: float, bar: _Bar) -> str:
    middle, kind, item = top + ROW / 2, role(bar.method), bar.score
    name = label(scale.start - 8, middle + 4, bar.name, text_anchor="end", class_=f"name {kind}")
    if item is None:
        return name + label(scale.start + 4, middle + 4, bar.missing, class_="quiet")
    width = max(scale(item.mean) - scale(0), 0.5)
    drawn = element("rect", x=scale(0), y=top + 5, width=width, height=ROW - 10, class_=f"bar {kind}")
    value = label(WIDTH, middle + 4, number(item.mean), text_anchor="end", class_=f"value {kind}")
    hover = tooltip(f"{bar.method.title}: {_score_text(item)}")
    return element("g", hover + name + drawn + _whisker(scale, middle, item.interval) + value)


def _whisker(scale: Scale, y: float, interval: Interval, cap: float = 4) -> str:
    low, high = scale(interval[0]), scale(interval[1])
    if high - low < 0.5:
        return ""
    ends = f"M{low:.1f} {y - cap}v{2 * cap}M{high:.1f} {y - cap}v{2 * cap}" if cap else ""
    return element("path", d=f"M{low:.1f} {y}H{high:.1f}{ends}", class_="whisker")


def _score_text(item: Score | None) -> str:
    if item is None:
        return "no result"
    known = item.interval if item.interval[0] < item.interval[1] else None
    return f"{number(item.mean)} {spread_print(item.sd, known)}".rstrip()


def difference_range(items: Sequence[Difference]) -> Interval:
    """A scale around 0 that fits the AdaMergeX differences with some room, or else all of them.

    A distant rival (the bare base model) would compress everything else; it is drawn as an arrow."""
    ours = max((abs(end) for item in items if role(item.method) == "ours" for end in item.interval), default=0.0)
    reach = 1.5 * ours or max((abs(end) for item in items for end in item.interval), default=1.0) or 1.0
    return (-reach, reach)


def difference_mark(key: str, item: Difference, limits: Interval) -> str:
    """The interval of one difference against 0: filled if beyond noise, an arrow if off the scale."""
    scale = Scale(limits[0], limits[1], 6, 134)
    words = f"{item.method.title} minus Eng-FT in {item.language}: {signed(item.mean)} points"
    kind = {1: "above", 0: "noise", -1: "below"}[item.sign]
    low, high = (min(max(end, limits[0]), limits[1]) for end in item.interval)
    parts = [line(scale(0), 0, scale(0), 20, "axis")]
    if limits[0] <= item.mean <= limits[1]:
        parts.append(_whisker(scale, 10, (low, high), cap=0))
        parts.append(element("circle", cx=scale(item.mean), cy=10, r=4.5, class_=f"dot {kind}"))
    else:
        arrow = "M8 4L0 10L8 16Z" if item.mean < 0 else "M132 4L140 10L132 16Z"
        parts.append(element("path", d=arrow, class_=f"dot {kind}"))
    return picture(key, (140, 20), words, f"95 % interval {format_difference_interval(item.interval)}", "".join(parts))


def curve_caption(runs: Sequence[Tuning]) -> str:
    """The chosen λ, the score at λ = 0, and whether the interval at the chosen λ includes it."""
    chosen = ", ".join(dict.fromkeys(f"{run.chosen:g}" for run in runs))
    pairs = [(_at(run, run.chosen), _at(run, 0)) for run in runs]
    known = [(point, zero) for point, zero in pairs if point and zero]
    opening = f"Chosen on {runs[0].proxy}: λ = {chosen}" + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")
    if runs[0].measure:
        opening = f"Least {runs[0].measure} on unlabelled {opening[len('Chosen on ') :]}"
        if runs[0].layers:
            return opening + ", the mean of one λ per layer."
    if len(known) < len(runs):
        return opening + "."
    best, baseline = (number(fmean(pair[side].score for pair in known)) for side in (0, 1))
    if all(run.chosen == 0 for run in runs):
        return f"{opening}, which is Eng-FT itself ({baseline} %).{_rule(runs)}"
    inside = sum(point.interval[0] <= zero.score <= point.interval[1] for point, zero in known)
    noise = "; Eng-FT lies inside the interval at the chosen λ" if inside == len(known) else ""
    return f"{opening}, {best} %; λ = 0 (Eng-FT) {baseline} %{noise}.{_rule(runs)}"


def _rule(runs: Sequence[Tuning]) -> str:
    """The one-standard-error rule, if it chose another λ than the best."""
    moved = [run for run in runs if run.best is not None and run.best != run.chosen]
    if not moved:
        return ""
    top = ", ".join(dict.fromkeys(f"{run.best:g}" for run in moved))
    errors = ", ".join(dict.fromkeys(number(run.error) for run in moved if run.error is not None))
    return f" The best is λ = {top}; taken is the smallest within one standard error ({errors} points) of it."


def _at(run: Tuning, weight: float) -> CurvePoint | None:
    return next((point for point in run.curve if point.weight == weight), None)


def curve(key: str, method: Method, runs: Sequence[Tuning], measure: str = "Accuracy") -> str:
    """The metric on the proxy language over λ: with an interval band for one seed, a thin line per seed and their mean
    for several; a ring at each chosen λ; a dashed line at λ = 0, Eng-FT."""
    points = [point for run in runs for point in run.curve]
    lows = [point.interval[0] if len(runs) == 1 else point.score for point in points]
    highs = [point.interval[1] if len(runs) == 1 else point.score for point in points]
    marks = ticks(min(lows), max(highs))
    across = ticks(min(point.weight for point in points), max(point.weight for point in points), 5)
    x, y = Scale(across[0], across[-1], 38, WIDTH - 14), Scale(marks[0], marks[-1], 196, 30)
    parts = [label(0, 14, method.title, class_="heading")]
    scale_text = f"{shorten(runs[0].proxy, 20)}, {runs[0].measure or measure} in %"
    parts.append(label(WIDTH, 14, scale_text, class_="quiet", text_anchor="end"))
    for mark in marks:
        parts.append(line(x.start, y(mark), x.end, y(mark), "grid"))
        parts.append(label(26, y(mark) + 4, f"{mark:g}", class_="tick", text_anchor="end"))
    parts += [label(x(mark), 212, f"{mark:g}", class_="tick", text_anchor="middle") for mark in across]
    parts.append(label((x.start + x.end) / 2, 230, "weight λ", class_="tick", text_anchor="middle"))
    parts += [_run(x, y, run, alone=len(runs) == 1) for run in runs if run.curve]
    mean = _mean_curve(runs)
    if len(runs) > 1:
        parts.append(element("path", d=_path(x, y, mean), class_="curve"))
    parts.append(_landmarks(x, y, mean, runs))
    return picture(key, (WIDTH, 234), f"λ curve of {method.title}", curve_caption(runs), "".join(parts))


def _mean_curve(runs: Sequence[Tuning]) -> list[tuple[float, float]]:
    """The mean over seeds at every λ that all of them tried."""
    scores: dict[float, list[float]] = {}
    for run in runs:
        for point in run.curve:
            scores.setdefault(point.weight, []).append(point.score)
    return [(weight, fmean(values)) for weight, values in sorted(scores.items()) if len(values) == len(runs)]


def _path(x: Scale, y: Scale, points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x(weight):.1f} {y(value):.1f}" for weight, value in points) if points else ""


def _run(x: Scale, y: Scale, run: Tuning, *, alone: bool) -> str:
    """One seed's line, with its band and dots if it is the only seed."""
    points = sorted(run.curve, key=lambda point: point.weight)
    drawn = element(
        "path", d=_path(x, y, [(p.weight, p.score) for p in points]), class_="curve" if alone else "curve thin"
    )
    if not alone:
        return drawn
    around = [(p.weight, p.interval[1]) for p in points] + [(p.weight, p.interval[0]) for p in reversed(points)]
    dots = "".join(
        element(
            "g",
            tooltip(f"λ = {p.weight:g}: {number(p.score)} % {format_interval(p.interval)}")
            + element("circle", cx=x(p.weight), cy=y(p.score), r=3, class_="point"),
        )
        for p in points
    )
    return element("path", d=_path(x, y, around) + "Z", class_="band") + drawn + dots


def _landmarks(x: Scale, y: Scale, mean: Sequence[tuple[float, float]], runs: Sequence[Tuning]) -> str:
    """Labels: the level of Eng-FT, and the chosen λ values."""
    parts = []
    zero = next((value for weight, value in mean if weight == 0), None)
    if zero is not None:
        parts.append(line(x.start, y(zero), x.end, y(zero), "reference"))
        level = y(zero) + (14 if mean[-1][1] > zero else -6)  # on the side where the curve does not end
        parts.append(label(x.end, level, "Eng-FT (λ = 0)", class_="quiet halo", text_anchor="end"))
    for run in runs:
        if point := _at(run, run.chosen):
            parts.append(element("circle", cx=x(run.chosen), cy=y(point.score), r=6.5, class_="chosen"))
            if len(runs) == 1:
                anchor = "start" if x(run.chosen) < 90 else "end" if x(run.chosen) > WIDTH - 70 else "middle"
                words = f"chosen λ = {run.chosen:g}"
                parts.append(label(x(run.chosen), y(point.score) - 12, words, class_="strong halo", text_anchor=anchor))
    return "".join(parts)
