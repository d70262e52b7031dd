"""The score table as plain text for a terminal."""

from __future__ import annotations

from adamergex.errors import printable
from adamergex.report import weight_losses
from adamergex.report.numbers import format_interval, number
from adamergex.report.results import BASELINE, Results
from adamergex.report.summary import MEAN, differences, score_table


def terminal_table(results: Results) -> list[str]:
    """Methods × target languages and the mean, each with its 95 % interval; a star marks differences beyond noise."""
    scores, starred = score_table(results), {(d.method.name, d.language) for d in differences(results) if d.sign}
    columns = [scores.languages.index(language) for language in results.targets]
    header = ["", *map(one_line, results.targets), *([MEAN] if len(columns) > 1 else [])]
    rows = [header]
    for row in scores.rows:
        texts = [one_line(row.method.label)]
        for column in columns:
            item = row.scores[column]
            star = "*" if (row.method.name, scores.languages[column]) in starred else " "
            texts.append("not done " if item is None else f"{number(item.mean)} {format_interval(item.interval)}{star}")
        if len(columns) > 1:
            mean = row.mean if row.mean and row.mean.complete else None
            star = "*" if (row.method.name, MEAN) in starred else " "
            interval = f" {format_interval(mean.interval)}" if mean and mean.interval else ""
            texts.append(f"{number(mean.mean)}{interval}{star}" if mean else "– ")
        rows.append(texts)
    many = f", mean of {scores.seeds} seeds" if scores.seeds > 1 else ""
    about = f"{results.metric} in percent [95 % interval]{many}, no labels seen in these languages"
    legend = [*_legend(bool(starred), results), *_oracle_legend(results)]
    return [f"\n{one_line(results.title)}: {about}\n", *_aligned(rows), *legend]


def _oracle_legend(results: Results) -> list[str]:
    """The points that the table's way of choosing λ loses against the oracle."""
    lines = []
    for method, groups in weight_losses.compared(results):
        last = groups[-1]
        own = [loss for loss in last.losses if loss.own]
        lost = "".join(f" {one_line(loss.way)} loses {number(loss.lost)} points ({last.language})." for loss in own)
        lines.append(f"oracle of {one_line(method.label)}: λ is chosen on the test set itself.{lost}")
    return lines


def one_line(words: str) -> str:
    """Text on one line, with control characters escaped."""
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
    return [f"* differs from {one_line(baseline.label)} beyond noise (paired test, Holm over the methods: p < 0.05)"]
