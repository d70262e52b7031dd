"""Heat maps: divergences of languages against each other, tasks × languages; and the spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

from adamergex.merging import Similarity
from adamergex.report.charts import Scale, role
from adamergex.report.numbers import number, signed
from adamergex.report.results import Results
from adamergex.report.summary import score, subject
from adamergex.report.svg import element, label, line, picture, shorten, ticks, tooltip

LEVELS = 5
INDEPENDENT = 0.5
"""cos(D_g, D_h) of adapters that moved independently and equally far: both D contain the same source adapter."""
CELL, ROW, CHARACTER = 46, 28, 7.4
Values = Sequence[Sequence[float | None]]


class Middle(NamedTuple):
    """A diverging colour scale: orange below ``value``, blue above, strongest at a distance of ``reach``."""

    value: float
    reach: float


Axes = tuple[Sequence[str], Sequence[str]]
Show = Callable[[float], str]


def matrix(key: str, title: str, axes: Axes, values: Values, show: Show, middle: Middle | None = None) -> str:
    """Rows × columns with the value in each cell. Without ``middle``, higher values have stronger colours."""
    rows, columns = axes
    names = [shorten(name, 24) for name in rows]
    left = max(map(len, names)) * CHARACTER + 12
    wide = max(CELL, *(len(shorten(name, 12)) * CHARACTER + 4 for name in columns))
    known = [value for row in values for value in row if value is not None]
    parts = [
        label(left + index * wide + wide / 2, 14, shorten(name, 12), class_="tick", text_anchor="middle")
        for index, name in enumerate(columns)
    ]
    for index, (name, full) in enumerate(zip(names, rows, strict=True)):
        y = 22 + index * ROW
        parts.append(element("g", tooltip(full) + label(left - 8, y + 18, name, class_="name", text_anchor="end")))
        for column, value in enumerate(values[index]):
            box = element("rect", x=left + column * wide, y=y, width=wide - 2, height=ROW - 2, rx=2,
                          class_=f"heat {_colour(value, known, middle)}")  # fmt: skip
            words = "–" if value is None else show(value)
            level = _colour(value, known, middle)[1:]
            center = left + column * wide + wide / 2 - 1
            text = label(center, y + 18, words, class_=f"heat-text t{level}", text_anchor="middle")
            parts.append(element("g", tooltip(f"{full}, {columns[column]}: {words}") + box + text))
    description = "; ".join(
        f"{name}: " + ", ".join(
            f"{column} {'–' if value is None else show(value)}" for column, value in zip(columns, row, strict=True)
        )
        for name, row in zip(rows, values, strict=True)
    )  # fmt: skip
    return picture(
        key, (max(left + wide * len(columns), 200), 26 + ROW * len(rows)), title, description, "".join(parts)
    )


def _colour(value: float | None, known: Sequence[float], middle: Middle | None) -> str:
    """ "h" (blue) or "c" (orange, below the middle) and its strength, 0 to ``LEVELS``."""
    if value is None:
        return "h0"
    if middle is not None:
        share = abs(value - middle.value) / middle.reach if middle.reach else 0.0
        side = "c" if value < middle.value else "h"
        return f"{side}{min(LEVELS, 1 + int(LEVELS * share * 0.9999)) if share > 0.02 else 0}"
    low, high = min(known), max(known)
    return f"h{min(LEVELS, 1 + int(LEVELS * (value - low) / (high - low) * 0.9999)) if high > low else 1}"


def similarity_matrix(key: str, similarity: Similarity) -> str:
    """The cosines between the divergences of all pairs of languages, coloured around that of independent adapters."""
    names = similarity.languages
    values = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(similarity.cosines)]
    show, middle = partial(number, digits=2), Middle(INDEPENDENT, 0.5)
    return matrix(key, "Cosine between the divergences of languages", (names, names), values, show, middle)


def similarity_caption(similarity: Similarity) -> str:
    """The most and the least similar pair, and the norms of the divergences."""
    pairs = [
        (value, f"{first} and {similarity.languages[j]}")
        for i, first in enumerate(similarity.languages)
        for j, value in enumerate(similarity.cosines[i])
        if j > i and value is not None
    ]
    lengths = ", ".join(f"{name} {norm:.3g}" for name, norm in zip(similarity.languages, similarity.norms, strict=True))
    if not pairs:
        return f"Norms: {lengths}."
    (low, least), (high, most) = min(pairs), max(pairs)
    return (
        f"Mean of the pairs {number(fmean(value for value, _ in pairs), 2)}; most alike: {most} ({number(high, 2)}); "
        f"least: {least} ({number(low, 2)}). Norms: {lengths}."
    )


def task_matrices(key: str, runs: Sequence[Results]) -> list[tuple[str, str]]:
    """(caption, picture) of the headline method over language × task: its scores, and its difference to Eng-FT."""
    columns = list(dict.fromkeys(language for results in runs for language in results.targets))
    rows, scores, gaps = [], [], []
    for results in runs:
        method = subject(results)
        if method is None:
            continue
        rows.append(results.title)
        ours = [score(results, method.name, language) for language in columns]
        base = [score(results, "english_tuning", language) for language in columns]
        scores.append([item.mean if item else None for item in ours])
        gaps.append(
            [item.mean - other.mean if item and other else None for item, other in zip(ours, base, strict=True)]
        )
    axes, known = (rows, columns), [abs(value) for row in gaps for value in row if value is not None]
    captioned = []
    if any(value is not None for row in scores for value in row):
        title = "Score of AdaMergeX (or the best other method) in percent"
        captioned.append((title, matrix(f"{key}-scores", title, axes, scores, number)))
    if known:
        title = "The same minus Eng-FT, in points"
        captioned.append((title, matrix(f"{key}-gaps", title, axes, gaps, signed, Middle(0.0, max(known)))))
    return captioned


def seed_spread(key: str, results: Results) -> str:
    """One dot per seed: each method's mean over the target languages; a bar at the mean of the seeds."""
    rows = [(method, seed_means(results, method.name)) for method in results.methods]
    rows = [(method, means) for method, means in rows if means]
    values = [value for _, means in rows for value in means.values()]
    if not values:
        return ""
    marks = ticks(min(values), max(values))
    names = [shorten(method.title, 24) for method, _ in rows]
    scale = Scale(marks[0], marks[-1], max(map(len, names)) * CHARACTER + 10, 520)
    bottom = 12 + 26 * len(rows)
    parts = []
    for mark in marks:
        parts.append(line(scale(mark), 8, scale(mark), bottom, "grid"))
        parts.append(label(scale(mark), bottom + 14, f"{mark:g}", class_="tick", text_anchor="middle"))
    words = []
    for index, (method, means) in enumerate(rows):
        y, middle = 25 + 26 * index, fmean(means.values())
        parts.append(label(scale.start - 8, y + 4, names[index], class_=f"name {role(method)}", text_anchor="end"))
        parts.append(element("path", d=f"M{scale(middle):.1f} {y - 8}v16", class_="whisker"))
        for seed, value in means.items():
            dot = element("circle", cx=scale(value), cy=y, r=4.5, class_=f"seed {role(method)}")
            parts.append(element("g", tooltip(f"{method.title}, seed {seed}: {number(value)}") + dot))
        words.append(f"{method.title}: " + ", ".join(f"seed {seed} {number(value)}" for seed, value in means.items()))
    return picture(key, (540, bottom + 20), "Spread over seeds", "; ".join(words), "".join(parts))


def seed_means(results: Results, method: str) -> dict[int, float]:
    """Seed -> mean over the target languages, for the seeds that have all of them."""
    scores: dict[int, list[float]] = {}
    for cell in results.cells:
        if cell.method == method and cell.language in results.targets:
            scores.setdefault(cell.seed, []).append(cell.score)
    return {seed: fmean(values) for seed, values in sorted(scores.items()) if len(values) == len(results.targets)}
