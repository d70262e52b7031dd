"""The score table as plain text, for a terminal: the numbers of the report."""

from __future__ import annotations

from adamergex.errors import printable
from adamergex.report import ways
from adamergex.report.numbers import number, span
from adamergex.report.results import BASELINE, Results
from adamergex.report.summary import MEAN, differences, score_table


def table(results: Results) -> list[str]:
    """Methods × target languages and the mean, each with its 95 % interval; a star marks what is beyond noise."""
    scores, starred = score_table(results), {(d.method.name, d.language) for d in differences(results) if d.sign}
    places = [scores.languages.index(language) for language in results.targets]
    header = ["", *map(shown, results.targets), *([MEAN] if len(places) > 1 else [])]
    rows = [header]
    for row in scores.rows:
        texts = [shown(row.method.label)]
        for place in places:
            item = row.scores[place]
            star = "*" if (row.method.name, scores.languages[place]) in starred else " "
            texts.append("not done " if item is None else f"{number(item.mean)} {span(item.interval)}{star}")
        if len(places) > 1:
            whole = row.mean if row.mean and row.mean.complete else None
            star = "*" if (row.method.name, MEAN) in starred else " "
            ends = f" {span(whole.interval)}" if whole and whole.interval else ""
            texts.append(f"{number(whole.mean)}{ends}{star}" if whole else "– ")
        rows.append(texts)
    many = f", mean of {scores.seeds} seeds" if scores.seeds > 1 else ""
    about = f"{results.metric} in percent [95 % interval]{many}, no labels seen in these languages"
    legend = [*_legend(bool(starred), results), *_oracle_legend(results)]
    return [f"\n{shown(results.title)}: {about}\n", *_aligned(rows), *legend]


def _oracle_legend(results: Results) -> list[str]:
    """What the table's own way of choosing λ loses against the oracle."""
    lines = []
    for method, groups in ways.compared(results):
        own = [way for way in groups[-1].ways if way.own]
        lost = "".join(f" {shown(way.way)} loses {number(way.lost)} points ({groups[-1].language})." for way in own)
        lines.append(f"oracle of {shown(method.label)}: λ is chosen on the test set itself.{lost}")
    return lines


def shown(words: str) -> str:
    """Text on one line, with controls escaped."""
    return " ".join(printable(words).split())


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[index]) for row in rows) + 2 for index in range(len(rows[0]))]
    first = max(widths[0], 18)
    lines = (
        f"{row[0]:{first}s}" + "".join(f"{text:>{width}s}" for text, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
    return [line.rstrip() for line in lines]


def _legend(starred: bool, results: Results) -> list[str]:
    baseline = results.method(BASELINE)
    if baseline is None or not starred:
        return []
    return [f"* differs from {shown(baseline.label)} beyond noise (paired test, Holm over the methods: p < 0.05)"]
