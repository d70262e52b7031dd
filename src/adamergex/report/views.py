"""The view of one table of results for the page: tables, pictures and their captions."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote

from adamergex.report import charts, matrices, pictures, weight_losses
from adamergex.report.evidence import CellEvidence, Evidence
from adamergex.report.numbers import ADJUSTED, by_chance, small_print, spread_print
from adamergex.report.results import Method, Results, Tuning
from adamergex.report.summary import MEAN, ScoreTable, differences, headline, languages, score_table, weight_heading


def run_view(results: Results, evidence: Evidence, prefix: str = "") -> dict[str, object]:
    """The variables of ``run.html.j2``. ``prefix`` begins every id, so that several tables can share a page."""
    table = score_table(results)
    return {
        "p": prefix,
        "results": results,
        "headline": headline(results),
        "table": table,
        "MEAN": MEAN,
        "small_print": small_print,
        "spread_print": spread_print,
        "role": charts.role,
        "link": link,
        "several": table.seeds > 1,
        "truncated": sum(cell.truncated for cell in results.cells),
        "unparsable": sum(cell.unparsable for cell in results.cells),
        "titles": {method.name: method.title for method in results.methods},
        "places": _places(results, prefix),
        "gaps": {(item.method, item.language) for item in results.missing},
        "evidence": evidence,
        "behind": _behind(results, evidence),
        **_pictures(results, evidence, table, prefix),
    }


def _places(results: Results, prefix: str) -> dict[tuple[str, str], str]:
    """(method, language) -> the id of the cell's evidence."""
    columns = languages(results)
    return {
        (method.name, language): f"{prefix}cell-{row}-{column}"
        for row, method in enumerate(results.methods)
        for column, language in enumerate(columns)
    }


def _behind(results: Results, evidence: Evidence) -> list[tuple[Method, list[tuple[str, list[CellEvidence]]]]]:
    """(method, [(language, evidence of its seeds' cells)]), without empty entries."""
    columns = languages(results)
    by_method = []
    for method in results.methods:
        of_method = [item for item in evidence.behind if item.cell.method == method.name]
        cells = [(language, [item for item in of_method if item.cell.language == language]) for language in columns]
        by_method.append((method, [(language, items) for language, items in cells if items]))
    return [(method, cells) for method, cells in by_method if cells]


def _pictures(results: Results, evidence: Evidence, table: ScoreTable, prefix: str) -> dict[str, object]:
    """The pictures for the template: SVG markup and captions."""
    compared = differences(results)
    limits = charts.difference_range(compared)
    curves = _curves(results)
    merge, family = pictures.picked_merge(results), pictures.picked_family(results)
    merged = results.method(merge.method) if merge else None
    title = f"Change of each module: {merged.title if merged else merge.method}, {merge.language}" if merge else ""
    similarity = evidence.similarity
    owner = results.method(family.cell.method) if family else None
    return {
        "bars": charts.bar_panels(table, prefix) if results.cells else [],
        "differences": [
            (item, charts.difference_mark(f"{prefix}difference-{i}", item, limits)) for i, item in enumerate(compared)
        ],
        "adjusted": ADJUSTED,
        "by_chance": by_chance(len({item.language for item in compared})),
        "curves": [
            (charts.curve(f"{prefix}curve-{index}", method, runs, results.measure), charts.curve_caption(runs))
            for index, (method, runs) in enumerate(curves)
        ],
        "weight_heading": weight_heading(results),
        "ways": [
            (weight_losses.losses_picture(f"{prefix}ways-{index}", method, groups), weight_losses.caption(groups))
            for index, (method, groups) in enumerate(weight_losses.compared(results))
        ],
        "ways_about": weight_losses.ABOUT,
        "family": family,
        "merge": merge,
        "merge_title": title,
        "heat": pictures.heat_map(f"{prefix}heat", merge, title) if merge else "",
        "lineage": pictures.lineage(f"{prefix}lineage-picture", family, owner.title, results.structure)
        if family and owner
        else "",
        "spread": matrices.seed_spread(f"{prefix}seeds-picture", results) if table.seeds > 1 else "",
        "alike": matrices.similarity_matrix(f"{prefix}alike-picture", similarity) if similarity else "",
        "alike_caption": matrices.similarity_caption(similarity) if similarity else "",
        "alike_rule": similarity.rule if similarity else "",
    }


def _curves(results: Results) -> list[tuple[Method, list[Tuning]]]:
    """The searches that have a curve, by method and proxy language."""
    grouped: dict[tuple[str, str], list[Tuning]] = {}
    for run in results.tuning:
        if run.curve:
            grouped.setdefault((run.method, run.proxy), []).append(run)
    pairs = [(results.method(name), runs) for (name, _), runs in grouped.items()]
    return [(method, runs) for method, runs in pairs if method is not None]


def link(path: str | None) -> str | None:
    """A path as a relative link from the report's folder; None for an absolute or unsafe path."""
    if not path or PurePosixPath(path).is_absolute() or path.startswith(("\\", "//")):
        return None
    return "./" + quote(path, safe="/")


def unbroken(words: str) -> str:
    """The words with no-break spaces around signs, so that no line breaks between a number and its sign."""
    return words.replace(" %", "\N{NO-BREAK SPACE}%").replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def size(count: int) -> str:
    """A human-readable number of bytes."""
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def time(seconds: float) -> str:
    """A human-readable duration."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
