"""The report as Markdown: the same tables as the page, without the pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from adamergex.errors import printable
from adamergex.merging import Similarity
from adamergex.report import weight_losses
from adamergex.report.evidence import Evidence
from adamergex.report.matrices import seed_means, similarity_caption
from adamergex.report.numbers import (
    ADJUSTED,
    by_chance,
    format_difference_interval,
    format_interval,
    number,
    probability,
    signed,
    small_print,
    spread_print,
)
from adamergex.report.overview import overview, under_one_title
from adamergex.report.papers import PaperComparison
from adamergex.report.results import Results, TrainedAdapter
from adamergex.report.summary import MEAN, Row, ScoreTable, differences, headline, score_table, weight_heading


def report_markdown(
    runs: Sequence[Results],
    evidence: Sequence[Evidence],
    papers: Sequence[PaperComparison] = (),
    notes: Sequence[str] = (),
) -> str:
    """The whole report, with the numbers of the HTML page."""
    partial = "\n".join(["**Not everything is there.**\n", *(f"- {plain(note)}" for note in notes)]) if notes else ""
    alone, (title, named) = len(runs) == 1, under_one_title(runs)
    parts = [f"# {plain(title)}", partial]
    parts += [] if alone else _together(named)
    for results, run_evidence in zip(named, evidence, strict=True):
        parts += [] if alone else [f"## {plain(results.title)}"]
        parts += _run(results, run_evidence, "##" if alone else "###")
    parts += _papers(papers)
    return "\n\n".join(part for part in parts if part) + "\n"


def _run(results: Results, evidence: Evidence, mark: str) -> list[str]:
    """One table; ``mark`` opens its headings."""
    parts = [
        plain(headline(results)),
        _facts(results),
        "## Scores",
        scores_markdown(results),
        *_missing(results),
        *(f"- {plain(note)}" for note in evidence.notes),
        *_truncated_and_unparsable(results),
        *_differences(results),
        *_tuning(results),
        *_weight_losses(results),
        *_seeds(results),
        *_similarity(evidence.similarity),
        *_adapters(results.adapters),
        "## How it was made",
        *(_code(results.commands)),
        table(["", ""], [[plain(key), plain(str(value))] for key, value in results.environment.items()], "ll")
        if results.environment
        else "",
        *(f"- {plain(note)}" for note in results.notes),
    ]
    return [f"{mark}{part[2:]}" if part.startswith("## ") else part for part in parts]


def _together(runs: Sequence[Results]) -> list[str]:
    table_overview = overview(runs)
    rows = []
    for method, means in table_overview.rows:
        row = [plain(method.label)]
        for index, item in enumerate(means):
            if item is None:
                row.append("–")
            else:
                gap = "" if item.complete else f" ({item.languages} of {item.wanted} languages)"
                sd = f" ± {number(item.sd)}" if item.sd is not None and item.complete else ""
                row.append(_bold(number(item.mean), (method.name, index) in table_overview.best) + sd + gap)
        rows.append(row)
    header = ["Method", *(f"{plain(results.title)} ({results.measure})" for results in runs)]
    return ["## Methods and tasks", table(header, rows, "l" + "r" * len(runs)), table_overview.caption]


def _missing(results: Results) -> list[str]:
    if not results.missing:
        return []
    titles = {method.name: method.title for method in results.methods}
    lines = [
        f"- {plain(titles[item.method])} in {plain(item.language)}, seed {item.seed}: {plain(item.reason)}"
        for item in results.missing
    ]
    done = len(results.cells)
    return [f"**{len(lines)} of {len(lines) + done} cells are not done.**", "\n".join(lines)]


def _truncated_and_unparsable(results: Results) -> list[str]:
    cut, unparsable = (sum(getattr(cell, name) for cell in results.cells) for name in ("truncated", "unparsable"))
    lines = [f"- Inputs cut to the model's length: {cut} over all cells."] if cut else []
    return lines + ([f"- Answers that could not be read: {unparsable} over all cells."] if unparsable else [])


def _seeds(results: Results) -> list[str]:
    if not _several_seeds(results):
        return []
    by_method = [(method, seed_means(results, method.name)) for method in results.methods]
    rows = [
        [plain(method.title), *(number(means[seed]) if seed in means else "–" for seed in results.seeds)]
        for method, means in by_method
    ]
    header = ["Method", *(f"seed {seed}" for seed in results.seeds)]
    return [
        "## Spread over seeds",
        table(header, rows, "l" + "r" * len(results.seeds)),
        "Means over the target languages.",
    ]


def _similarity(similarity: Similarity | None) -> list[str]:
    if similarity is None:
        return []
    rows = [
        [plain(name), *("–" if value is None else number(value, 2) for value in row)]
        for name, row in zip(similarity.languages, similarity.cosines, strict=True)
    ]
    header = ["", *map(plain, similarity.languages)]
    about = f"Cosine between the divergences D ({similarity.rule} rule). {similarity_caption(similarity)}"
    return ["## How alike the divergences of languages are", table(header, rows, "l" + "r" * len(rows)), plain(about)]


def _papers(items: Sequence[PaperComparison]) -> list[str]:
    if not items:
        return []
    rows = [
        [
            plain(item.quoted.label),
            plain(item.quoted.task),
            plain(item.quoted.language),
            number(item.quoted.value),
            number(item.ours),
            plain(item.quoted.model),
            plain(f"{item.quoted.paper}, Table {item.quoted.table}"),
            plain(item.title),
            plain(item.quoted.note),
        ]
        for item in items
    ]
    header = ["Method", "Task", "Language", "Paper", "Ours", "Paper's model", "Table", "Our table", "Note"]
    return ["## Beside the papers' numbers", table(header, rows, "lllrrllll")]


def scores_markdown(results: Results) -> str:
    """Methods × languages with the mean, and a caption below."""
    scores = score_table(results)
    header = ["Method", *(f"{plain(a)} (n={b})" for a, b in zip(scores.languages, scores.counts, strict=True)), "mean"]
    rows = [[plain(row.method.title), *_scores(scores, row), _mean(scores, row)] for row in scores.rows]
    about = "\n".join(f"- {plain(item.title)}: {plain(item.about)}" for item in results.methods if item.about)
    return "\n\n".join(
        part for part in (table(header, rows, "l" + "r" * (len(header) - 1)), scores.caption, about) if part
    )


def _scores(scores: ScoreTable, row: Row) -> list[str]:
    words = []
    for language, item in zip(scores.languages, row.scores, strict=True):
        if item is None:
            words.append("–")
        else:
            value = _bold(number(item.mean), (row.method.name, language) in scores.best)
            words.append(f"{value} {small_print(item, scores.seeds)}")
    return words


def _mean(scores: ScoreTable, row: Row) -> str:
    if row.mean is None or not row.mean.complete:
        return "–"
    value = _bold(number(row.mean.mean), (row.method.name, MEAN) in scores.best)
    return f"{value} {spread_print(row.mean.sd, row.mean.interval)}".rstrip()


def _facts(results: Results) -> str:
    facts = {
        "base": results.base,
        "task": results.task,
        "structure": results.structure,
        "source": results.source,
        "λ tuned on": results.proxy or "–",
        "targets": ", ".join(results.targets),
        "seeds": ", ".join(map(str, results.seeds)),
    }
    return " · ".join(f"{name}: {plain(value)}" for name, value in facts.items())


def _differences(results: Results) -> list[str]:
    items = differences(results)
    if not items:
        return []
    rows = [
        [
            plain(item.method.title),
            plain(item.language),
            _bold(signed(item.mean), bool(item.sign)),
            format_difference_interval(item.interval),
            *([number(item.sd) if item.sd is not None else "–"] if _several_seeds(results) else []),
            probability(item.p),
            probability(item.adjusted),
        ]
        for item in items
    ]
    header = ["Method", "Language", "Difference", "95 % interval"]
    header += [*(["sd"] if _several_seeds(results) else []), "p", "p (Holm)"]
    return [
        "## Against Eng-FT, item by item",
        table(header, rows, "ll" + "r" * (len(header) - 2)),
        f"Bold: beyond noise. {ADJUSTED} {by_chance(len({item.language for item in items}))}".rstrip(),
    ]


def _several_seeds(results: Results) -> bool:
    return len({cell.seed for cell in results.cells}) > 1


_CHOSEN = (
    "The chosen λ is bold. Entropy, in percent of the largest, is of the predictions for unlabelled inputs of the "
    "language itself; the least is chosen."
)


def _tuning(results: Results) -> list[str]:
    if not results.tuning:
        return []
    rows = [
        [
            plain(getattr(results.method(run.method), "title", run.method)),
            plain(run.proxy) + (f" ({run.measure})" if run.measure else ""),
            str(run.seed),
            f"{point.weight:g}" + (" (Eng-FT)" if point.weight == 0 else ""),
            _bold(number(point.score), point.weight == run.chosen),
            format_interval(point.interval),
        ]
        for run in results.tuning
        for point in run.curve
    ]
    header = ["Method", "Proxy", "Seed", "λ", results.measure, "95 % interval"]
    return [f"## {weight_heading(results)}", table(header, rows, "llrrrr"), _CHOSEN]


def _weight_losses(results: Results) -> list[str]:
    """The λ and the loss of each method of choosing it: one table per merging method."""
    parts: list[str] = []
    for method, groups in weight_losses.compared(results):
        losses = {(group.language, loss.way): loss for group in groups for loss in group.losses}
        header = [plain(method.title), *(plain(group.language) for group in groups)]
        oracles = (f"λ {group.weight:.3g}: {number(group.score)} %" for group in groups)
        rows = [["oracle (upper bound, not a method)", *oracles]]
        for name in dict.fromkeys(way for _, way in losses):
            cells = [losses.get((group.language, name)) for group in groups]
            texts = [f"λ {loss.weight:.3g}, lost {number(loss.lost)}" if loss else "–" for loss in cells]
            rows.append([_bold(plain(name), any(loss is not None and loss.own for loss in cells)), *texts])
        parts += [table(header, rows, "l" + "r" * len(groups)), plain(weight_losses.caption(groups))]
    about = f"{weight_losses.ABOUT} Bold: how this table chooses."
    return ["## What it costs not to know λ", *parts, about] if parts else []


def _adapters(adapters: Sequence[TrainedAdapter]) -> list[str]:
    if not adapters:
        return []
    rows = [
        [
            plain(item.name),
            plain(item.task),
            f"{item.parameters:,}",
            f"{item.bytes:,}",
            f"{item.tokens:,}",
            "–" if item.seconds is None else number(item.seconds),
            "–" if item.loss is None else number(item.loss, 3),
            "yes" if item.reused else "no",
        ]
        for item in adapters
    ]
    header = ["Adapter", "Task", "Parameters", "Bytes", "Tokens", "Seconds", "Loss", "Reused"]
    return ["## Cost", table(header, rows, "llrrrrrl")]


def _code(commands: Sequence[str]) -> list[str]:
    longest = max((len(run) for command in commands for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = [printable(command, len(command)) for command in commands]
    return ["\n".join([fence, *lines, fence])] if lines else []


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A Markdown table; ``align``: l or r per column. Cells are Markdown."""
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def plain(words: str) -> str:
    """Text as literal Markdown: one line, with Markdown, HTML and control characters escaped."""
    words = " ".join(printable(words, len(words)).split())
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    words = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", words)
    return re.sub(r"^([-+=]|\d+(?=[.)](?:\s|$)))", lambda match: _at_start(match[1]), words)


def _at_start(mark: str) -> str:
    """An escaped mark that would otherwise begin a list or underline a heading: ``- a``, ``1. a``, ``===``."""
    return f"\\{mark}" if mark in "-+=" else f"{mark}\\"


def _bold(words: str, on: bool) -> str:
    return f"**{words}**" if on else words
