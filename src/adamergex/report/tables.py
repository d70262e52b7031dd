"""Results for other programs: one CSV line per cell and per summary, and the score table in LaTeX.

In CSV files, a text cell that a spreadsheet would evaluate (it begins with = + - @ or a tab or return) gets a leading
apostrophe; numbers stay numbers. Control characters are escaped everywhere.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from adamergex.errors import printable
from adamergex.report.numbers import number, small_print, spread_print
from adamergex.report.overview import overview
from adamergex.report.pooling import cell_interval, paired
from adamergex.report.results import Method, Results
from adamergex.report.summary import MEAN, Difference, Mean, Score, ScoreTable, differences, score_table

COLUMNS = (
    "table", "base", "task", "structure", "source", "method", "label", "space", "language", "seed",
    "metric", "score", "low", "high", "n", "truncated", "unparsable", "weight",
    "against", "difference", "difference_low", "difference_high", "p", "predictions", "adapter",
)  # fmt: skip


SUMMARY_COLUMNS = (
    "table", "method", "label", "space", "language", "seeds", "metric", "score", "sd", "low", "high",
    "against", "difference", "difference_sd", "difference_low", "difference_high", "p", "p_holm", "beyond_noise",
)  # fmt: skip


def scores_csv(runs: Sequence[Results]) -> str:
    """One line per cell, with all digits; missing values are empty."""
    lines: list[Sequence[object]] = []
    for results in runs:
        methods = {method.name: method for method in results.methods}
        for cell in results.cells:
            method, pair = methods[cell.method], paired(cell.against) if cell.against else None
            against = (pair.method, pair.difference, *pair.interval, pair.p) if pair else (None,) * 5
            lines.append(
                (results.title, results.base, results.task, results.structure, results.source)
                + (cell.method, method.label, method.space, cell.language, cell.seed, results.metric, cell.score)
                + (*cell_interval(cell), cell.n, cell.truncated, cell.unparsable, cell.weight)
                + (*against, cell.predictions, cell.adapter)
            )
    return _csv(COLUMNS, lines)


def summary_csv(runs: Sequence[Results]) -> str:
    """The numbers of the page's tables: every method in every language and on the mean, over the seeds."""
    lines: list[Sequence[object]] = []
    for results in runs:
        table, compared = score_table(results), {(d.method.name, d.language): d for d in differences(results)}
        for row in table.rows:
            for language, item in zip((*table.languages, MEAN), (*row.scores, row.mean), strict=True):
                if item is not None and (isinstance(item, Score) or item.complete):
                    difference = compared.get((row.method.name, language))
                    lines.append(_summary_line(results, row.method, language, item, difference))
    return _csv(SUMMARY_COLUMNS, lines)


def _summary_line(
    results: Results, method: Method, language: str, item: Score | Mean, difference: Difference | None
) -> Sequence[object]:
    seeds = len({cell.seed for cell in results.cells if cell.method == method.name})
    measured = (item.seeds if isinstance(item, Score) else seeds, results.metric, item.mean, item.sd)
    against: tuple[object, ...] = (None,) * 8
    if difference is not None:
        beyond = "yes" if difference.sign else "no"
        against = (
            difference.against,
            difference.mean,
            difference.sd,
            *difference.interval,
            difference.p,
            difference.adjusted,
            beyond,
        )
    named = (results.title, method.name, method.label, method.space, language)
    return (*named, *measured, *(item.interval or (None, None)), *against)


def _csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[cell_text(value) for value in line] for line in lines])
    return out.getvalue()


def cell_text(value: object) -> object:
    """The content of a CSV cell: numbers unchanged, an apostrophe before text that a spreadsheet would evaluate."""
    if not isinstance(value, str):
        return value
    formula = value[:1] in ("\t", "\r") or value.lstrip()[:1] in tuple("=+-@＝＋－＠")
    return f"'{printable(value, len(value))}" if formula and not _numeric(value) else printable(value, len(value))


def _numeric(words: str) -> bool:
    try:
        float(words)
    except ValueError:
        return False
    return True


def scores_latex(runs: Sequence[Results]) -> str:
    """The score table of every run, after a table of methods × tasks for several runs; each as a ``tabular`` (needs the
    package booktabs)."""
    return "\n".join([*([_overview_latex(runs)] if len(runs) > 1 else []), *map(_run_latex, runs)])


def _overview_latex(runs: Sequence[Results]) -> str:
    table = overview(runs)
    lines = [
        f"% {_comment(table.caption)} Needs \\usepackage{{booktabs}}.",
        rf"\begin{{tabular}}{{l{'r' * len(runs)}}}",
        r"\toprule",
        " & ".join(["Method", *map(latex, table.columns)]) + r" \\",
        r"\midrule",
    ]
    for method, means in table.rows:
        values = [
            _value(item.mean, (method.name, index) in table.best) if item and item.complete else "--"
            for index, item in enumerate(means)
        ]
        lines.append(" & ".join([_first(method.label), *values]) + r" \\")
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
        lines.append(" & ".join([_first(row.method.title), *values]) + r" \\")
        small = [_small(item, table) for item in row.scores] + [_mean_small(row.mean)]
        lines.append(" & ".join(["", *small]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _value(value: float, best: bool) -> str:
    words = latex(number(value))
    return rf"\textbf{{{words}}}" if best else words


def _small(item: Score | None, table: ScoreTable) -> str:
    return rf"{{\scriptsize {latex(small_print(item, table.seeds))}}}" if item else ""


def _mean_small(item: Mean | None) -> str:
    words = spread_print(item.sd, item.interval) if item and item.complete else ""
    return rf"{{\scriptsize {latex(words)}}}" if words else ""


def _dash(count: str) -> str:
    return count.replace("–", "$--$")


def _first(words: str) -> str:
    """The first cell of a row; LaTeX would read a leading [ or * as an argument of the row end before it."""
    return ("{}" if words.lstrip()[:1] in ("[", "*") else "") + latex(words)


def _comment(words: str) -> str:
    return " ".join(printable(words, len(words)).split())


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "λ": r"$\lambda$", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "·": r"$\cdot$", "→": r"$\to$", "³": "$^3$",
    "–": "--", "\n": " ",
}  # fmt: skip


def latex(words: str) -> str:
    """Text for LaTeX: special characters escaped, the reports' symbols as mathematics."""
    words = printable(words, len(words))
    return "".join(_LATEX.get(character, character) for character in words)
