"""The loss of each way of choosing λ: the oracle's test score minus the score at the chosen λ."""

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
class WeightLoss:
    """One way of choosing λ in one language, or on the MEAN of all: its λ and the points lost, over the seeds."""

    way: str
    weight: float
    lost: float
    own: bool


@dataclass(frozen=True)
class LanguageLosses:
    """The losses of all ways in one language; ``weight`` and ``score`` are the oracle's."""

    language: str
    weight: float
    score: float
    losses: tuple[WeightLoss, ...]


def compared(results: Results) -> list[tuple[Method, list[LanguageLosses]]]:
    """(method, losses in its target languages and on their mean), for methods with an oracle."""
    by_method = []
    for method in results.methods:
        cells = [item for item in results.weights if item.method == method.name]
        languages = [name for name in results.targets if any(item.language == name for item in cells)]
        groups = [_group(name, [item for item in cells if item.language == name]) for name in languages]
        if len(groups) > 1:
            groups.append(_mean(groups))
        if groups:
            by_method.append((method, groups))
    return by_method


def _group(language: str, cells: Sequence[Weights]) -> LanguageLosses:
    names = dict.fromkeys(choice.way for cell in cells for choice in cell.ways)
    losses = []
    for name in names:
        pairs = [(cell.oracle, choice) for cell in cells for choice in cell.ways if choice.way == name]
        if len(pairs) == len(cells):  # every seed has it
            lost = fmean(oracle.score - choice.score for oracle, choice in pairs)
            weight = fmean(choice.weight for _, choice in pairs)
            losses.append(WeightLoss(name, weight, lost, any(choice.own for _, choice in pairs)))
    oracle = fmean(cell.oracle.weight for cell in cells), fmean(cell.oracle.score for cell in cells)
    return LanguageLosses(language, *oracle, tuple(losses))


def _mean(groups: Sequence[LanguageLosses]) -> LanguageLosses:
    """Means over the languages, for the ways that all languages have."""
    losses = []
    for first in groups[0].losses:
        same = [loss for group in groups for loss in group.losses if loss.way == first.way]
        if len(same) == len(groups):
            means = fmean(loss.weight for loss in same), fmean(loss.lost for loss in same)
            losses.append(WeightLoss(first.way, *means, first.own))
    score = fmean(group.score for group in groups)
    return LanguageLosses(MEAN, fmean(group.weight for group in groups), score, tuple(losses))


def caption(groups: Sequence[LanguageLosses]) -> str:
    """The points lost by every way, on the mean of the languages or in the only language."""
    last = groups[-1]
    where = "on the mean of the languages" if last.language == MEAN else f"in {last.language}"
    lost = "; ".join(f"{loss.way}{' (this table)' if loss.own else ''} {number(loss.lost)}" for loss in last.losses)
    return f"The oracle has {number(last.score)} % {where}. Points lost there: {lost}."


def losses_picture(key: str, method: Method, groups: Sequence[LanguageLosses]) -> str:
    """One block per language: on the left the λ of every way as a dot and the oracle's as a dashed line, on the right a
    bar of the points lost."""
    names = [shorten(loss.way, 30) for group in groups for loss in group.losses]
    weights = [value for group in groups for value in (group.weight, *(loss.weight for loss in group.losses))]
    left = max(map(len, [*names, ""])) * CHARACTER + 10
    across = ticks(min([*weights, 0.0]), max([*weights, 0.0]), 4)
    points = ticks(0, max([loss.lost for group in groups for loss in group.losses] + [0.5]), 3)
    x, bar = Scale(across[0], across[-1], left + 8, left + 190), Scale(0, points[-1], left + 220, left + 390)
    bottom = sum(GAP + ROW * len(group.losses) for group in groups) + 24
    parts = [label((x.start + x.end) / 2, 12, "weight λ", class_="tick", text_anchor="middle")]
    parts.append(label(bar.start, 12, "points lost", class_="tick"))
    parts += [_grid(x, mark, bottom) for mark in across]
    parts += [_grid(bar, mark, bottom) for mark in points]
    top = 24.0
    for group in groups:
        parts.append(_block(group, top, x, bar))
        top += GAP + ROW * len(group.losses)
    title = f"λ by every way of choosing it, and what it loses: {method.title}"
    description = "; ".join(
        f"{group.language}: oracle λ {group.weight:.3g}, {number(group.score)} %, "
        + ", ".join(f"{loss.way} λ {loss.weight:.3g} loses {number(loss.lost)}" for loss in group.losses)
        for group in groups
    )
    return picture(key, (left + 440, bottom + 20), title, description, "".join(parts))


def _grid(scale: Scale, mark: float, bottom: float) -> str:
    tick = label(scale(mark), bottom + 14, f"{mark:g}", class_="tick", text_anchor="middle")
    return line(scale(mark), 24, scale(mark), bottom, "grid") + tick


def _block(group: LanguageLosses, top: float, x: Scale, bar: Scale) -> str:
    """One language."""
    oracle = f"oracle λ = {group.weight:.3g}: {number(group.score)} %"
    parts = [label(0, top + 16, group.language, class_="heading")]
    parts.append(label(bar.end + 50, top + 16, oracle, class_="quiet halo", text_anchor="end"))
    end = top + 24 + ROW * len(group.losses)
    parts.append(line(x(group.weight), top + 24, x(group.weight), end, "reference"))
    for index, loss in enumerate(group.losses):
        middle, kind = top + 24 + ROW * index + ROW / 2, "ours" if loss.own else "rival"
        name = label(x.start - 16, middle + 4, shorten(loss.way, 30), class_=f"name {kind}", text_anchor="end")
        dot = element("circle", cx=x(loss.weight), cy=middle, r=4.5, class_=f"seed {kind}")
        width = max(bar(max(loss.lost, 0.0)) - bar.start, 0.5)
        drawn = element("rect", x=bar.start, y=middle - 6, width=width, height=12, class_=f"bar {kind}")
        value = label(bar.start + width + 5, middle + 4, number(loss.lost), class_=f"value {kind}")
        words = f"{group.language}, {loss.way}: λ = {loss.weight:.3g}, {number(loss.lost)} points lost"
        parts.append(element("g", tooltip(words) + name + dot + drawn + value))
    return "".join(parts)
