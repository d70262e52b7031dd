"""Results as files for other programs: one CSV line a cell, and the score table in LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from adamergex.report.overview import overview
from adamergex.report.results import Results
from adamergex.report.summary import MEAN, Score, ScoreTable, number, score_table, small_print

COLUMNS = (
    "table", "base", "task", "structure", "source", "method", "label", "space", "language", "seed",
    "metric", "score", "low", "high", "n", "truncated", "unparsable", "weight",
    "against", "difference", "difference_low", "difference_high", "p", "predictions", "adapter",
)  # fmt: skip


def scores_csv(runs: Sequence[Results]) -> str:
    """Every cell with all its digits, one a line; empty where there is no value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for results in runs:
        methods = {method.name: method for method in results.methods}
        for cell in results.cells:
            method, pair = methods[cell.method], cell.against
            against = (pair.method, pair.difference, *pair.interval, pair.p) if pair else (None,) * 5
            writer.writerow(
                (results.title, results.base, results.task, results.structure, results.source)
                + (cell.method, method.label, method.space, cell.language, cell.seed, results.metric, cell.score)
                + (*cell.interval, cell.n, cell.truncated, cell.unparsable, cell.weight)
                + (*against, cell.predictions, cell.adapter)
            )
    return out.getvalue()


def scores_latex(runs: Sequence[Results]) -> str:
    """The score table of every run, and of several the table of methods × tasks first, each as a ``tabular`` (needs
    the package booktabs)."""
    return "\n".join([*([_overview_latex(runs)] if len(runs) > 1 else []), *map(_run_latex, runs)])


def _overview_latex(runs: Sequence[Results]) -> str:
    shown = overview(runs)
    lines = [
        f"% {_comment(shown.caption)} Needs \\usepackage{{booktabs}}.",
        rf"\begin{{tabular}}{{l{'r' * len(runs)}}}",
        r"\toprule",
        " & ".join(["Method", *map(latex, shown.columns)]) + r" \\",
        r"\midrule",
    ]
    for method, means in shown.rows:
        values = [
            _value(item.mean, (method.name, index) in shown.best) if item and item.complete else "--"
            for index, item in enumerate(means)
        ]
        lines.append(" & ".join([latex(method.label), *values]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _run_latex(results: Results) -> str:
    table = score_table(results)
    lines = [
        f"% {_comment(results.title)}",
        f"% {_comment(table.caption)} Needs \\usepackage{{booktabs}}.",
        rf"\begin{{tabular}}{{l{'r' * (len(table.languages) + 1)}}}",
        r"\toprule",
        " & ".join(["Method", *(latex(name) for name in table.languages), "mean"]) + r" \\",
        " & ".join(["", *(rf"{{\scriptsize $n={_dash(count)}$}}" for count in table.counts), ""]) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        name = row.method.name
        pairs = list(zip(table.languages, row.scores, strict=True))
        values = [_value(item.mean, (name, column) in table.best) if item else "--" for column, item in pairs]
        values.append(_value(row.mean.mean, (name, MEAN) in table.best) if row.mean and row.mean.complete else "--")
        lines.append(" & ".join([latex(row.method.title), *values]) + r" \\")
        small = [_small(item, table) for item in row.scores] + [_mean_small(row.mean.sd if row.mean else None)]
        lines.append(" & ".join(["", *small]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _value(value: float, best: bool) -> str:
    words = latex(number(value))
    return rf"\textbf{{{words}}}" if best else words


def _small(item: Score | None, table: ScoreTable) -> str:
    return rf"{{\scriptsize {latex(small_print(item, table.seeds))}}}" if item else ""


def _mean_small(sd: float | None) -> str:
    return "" if sd is None else rf"{{\scriptsize $\pm$ {number(sd)}}}"


def _dash(count: str) -> str:
    return count.replace("–", "$--$")


def _comment(words: str) -> str:
    return " ".join(words.split())


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "λ": r"$\lambda$", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "·": r"$\cdot$", "→": r"$\to$", "³": "$^3$",
    "–": "--", "\n": " ",
}  # fmt: skip


def latex(words: str) -> str:
    """Text for LaTeX: its special characters escaped, the signs that reports use as mathematics."""
    return "".join(_LATEX.get(character, character) for character in words)
