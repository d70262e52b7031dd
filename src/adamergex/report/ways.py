"""What it costs not to know λ: what each way of choosing it takes, and the oracle's score minus that there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from adamergex.report.charts import CHARACTER, Scale
from adamergex.report.numbers import number
from adamergex.report.results import Method, Results, Weights
from adamergex.report.summary import MEAN
from adamergex.report.svg import element, label, line, picture, shorten, ticks, tooltip

ABOUT = (
    "Oracle (upper bound, not a method): the λ that is best on the language's own test set. Lost: the oracle's score "
    "minus that at the λ which a way takes, in points; means over the seeds. The oracle also fits the noise of the "
    "test set, so a part of every loss is not there to be won."
)
ROW, GAP = 20, 34


@dataclass(frozen=True)
class Taken:
    """One way in one language, or in the MEAN of all: the λ that it takes and what it loses, over the seeds."""

    way: str
    weight: float
    lost: float
    own: bool


@dataclass(frozen=True)
class Group:
    """All ways in one language; ``weight`` and ``score`` are the oracle's."""

    language: str
    weight: float
    score: float
    ways: tuple[Taken, ...]


def compared(results: Results) -> list[tuple[Method, list[Group]]]:
    """Method -> its target languages and their mean, of the methods that have an oracle."""
    found = []
    for method in results.methods:
        cells = [item for item in results.weights if item.method == method.name]
        languages = [name for name in results.targets if any(item.language == name for item in cells)]
        groups = [_group(name, [item for item in cells if item.language == name]) for name in languages]
        if len(groups) > 1:
            groups.append(_mean(groups))
        if groups:
            found.append((method, groups))
    return found


def _group(language: str, cells: Sequence[Weights]) -> Group:
    names = dict.fromkeys(way.way for cell in cells for way in cell.ways)
    ways = []
    for name in names:
        pairs = [(cell.oracle, way) for cell in cells for way in cell.ways if way.way == name]
        if len(pairs) == len(cells):  # every seed has it
            lost = fmean(oracle.score - way.score for oracle, way in pairs)
            weight = fmean(way.weight for _, way in pairs)
            ways.append(Taken(name, weight, lost, any(way.own for _, way in pairs)))
    oracle = fmean(cell.oracle.weight for cell in cells), fmean(cell.oracle.score for cell in cells)
    return Group(language, *oracle, tuple(ways))


def _mean(groups: Sequence[Group]) -> Group:
    """Of the ways that all languages have."""
    ways = []
    for first in groups[0].ways:
        same = [way for group in groups for way in group.ways if way.way == first.way]
        if len(same) == len(groups):
            middle = fmean(way.weight for way in same), fmean(way.lost for way in same)
            ways.append(Taken(first.way, *middle, first.own))
    score = fmean(group.score for group in groups)
    return Group(MEAN, fmean(group.weight for group in groups), score, tuple(ways))


def caption(groups: Sequence[Group]) -> str:
    """What the table's own way and the others lose on the mean of the languages, or in the only one."""
    last = groups[-1]
    where = "on the mean of the languages" if last.language == MEAN else f"in {last.language}"
    lost = "; ".join(f"{way.way}{' (this table)' if way.own else ''} {number(way.lost)}" for way in last.ways)
    return f"The oracle has {number(last.score)} % {where}. Points lost there: {lost}."


def ways_picture(key: str, method: Method, groups: Sequence[Group]) -> str:
    """A block a language: to the left the λ of every way as a dot and the oracle's as a dashed line, to the right a bar
    of what the way loses."""
    names = [shorten(way.way, 30) for group in groups for way in group.ways]
    weights = [value for group in groups for value in (group.weight, *(way.weight for way in group.ways))]
    left = max(map(len, [*names, ""])) * CHARACTER + 10
    across = ticks(min([*weights, 0.0]), max([*weights, 0.0]), 4)
    losses = ticks(0, max([way.lost for group in groups for way in group.ways] + [0.5]), 3)
    x, bar = Scale(across[0], across[-1], left + 8, left + 190), Scale(0, losses[-1], left + 220, left + 390)
    bottom = sum(GAP + ROW * len(group.ways) for group in groups) + 24
    parts = [label((x.start + x.end) / 2, 12, "weight λ", class_="tick", text_anchor="middle")]
    parts.append(label(bar.start, 12, "points lost", class_="tick"))
    parts += [_grid(x, mark, bottom) for mark in across]
    parts += [_grid(bar, mark, bottom) for mark in losses]
    top = 24.0
    for group in groups:
        parts.append(_block(group, top, x, bar))
        top += GAP + ROW * len(group.ways)
    title = f"λ by every way of choosing it, and what it loses: {method.title}"
    said = "; ".join(
        f"{group.language}: oracle λ {group.weight:.3g}, {number(group.score)} %, "
        + ", ".join(f"{way.way} λ {way.weight:.3g} loses {number(way.lost)}" for way in group.ways)
        for group in groups
    )
    return picture(key, (left + 440, bottom + 20), title, said, "".join(parts))


def _grid(scale: Scale, mark: float, bottom: float) -> str:
    tick = label(scale(mark), bottom + 14, f"{mark:g}", class_="tick", text_anchor="middle")
    return line(scale(mark), 24, scale(mark), bottom, "grid") + tick


def _block(group: Group, top: float, x: Scale, bar: Scale) -> str:
    """One language."""
    oracle = f"oracle λ = {group.weight:.3g}: {number(group.score)} %"
    parts = [label(0, top + 16, group.language, class_="heading")]
    parts.append(label(bar.end + 50, top + 16, oracle, class_="quiet halo", text_anchor="end"))
    end = top + 24 + ROW * len(group.ways)
    parts.append(line(x(group.weight), top + 24, x(group.weight), end, "reference"))
    for index, way in enumerate(group.ways):
        middle, kind = top + 24 + ROW * index + ROW / 2, "ours" if way.own else "rival"
        name = label(x.start - 16, middle + 4, shorten(way.way, 30), class_=f"name {kind}", text_anchor="end")
        dot = element("circle", cx=x(way.weight), cy=middle, r=4.5, class_=f"seed {kind}")
        width = max(bar(max(way.lost, 0.0)) - bar.start, 0.5)
        drawn = element("rect", x=bar.start, y=middle - 6, width=width, height=12, class_=f"bar {kind}")
        value = label(bar.start + width + 5, middle + 4, number(way.lost), class_=f"value {kind}")
        words = f"{group.language}, {way.way}: λ = {way.weight:.3g}, {number(way.lost)} points lost"
        parts.append(element("g", tooltip(words) + name + dot + drawn + value))
    return "".join(parts)
