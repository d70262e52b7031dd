"""What the page shows of one table of results: tables, pictures and the words beside them."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote

from adamergex.report import charts, matrices, pictures, ways
from adamergex.report.evidence import Behind, Evidence
from adamergex.report.numbers import ADJUSTED, by_chance, small_print, spread_print
from adamergex.report.results import Method, Results, Tuning
from adamergex.report.summary import MEAN, ScoreTable, differences, headline, languages, score_table, weight_heading


def run_view(results: Results, evidence: Evidence, prefix: str = "") -> dict[str, object]:
    """Everything that ``run.html.j2`` names. ``prefix`` stands before every id, so that several tables share a page."""
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
    """(method, language) -> the id of what is behind the cell."""
    columns = languages(results)
    return {
        (method.name, language): f"{prefix}cell-{row}-{column}"
        for row, method in enumerate(results.methods)
        for column, language in enumerate(columns)
    }


def _behind(results: Results, evidence: Evidence) -> list[tuple[Method, list[tuple[str, list[Behind]]]]]:
    """Method -> language -> its seeds' cells with their evidence."""
    columns = languages(results)
    found = []
    for method in results.methods:
        own = [item for item in evidence.behind if item.cell.method == method.name]
        cells = [(language, [item for item in own if item.cell.language == language]) for language in columns]
        found.append((method, [(language, items) for language, items in cells if items]))
    return [(method, cells) for method, cells in found if cells]


def _pictures(results: Results, evidence: Evidence, table: ScoreTable, prefix: str) -> dict[str, object]:
    """What the template shows of each picture: SVG, which is markup, and the words beside it."""
    compared = differences(results)
    limits = charts.difference_range(compared)
    curves = _curves(results)
    merge, family = pictures.picked_merge(results), pictures.picked_family(results)
    merged = results.method(merge.method) if merge else None
    title = f"Change of each module: {merged.title if merged else merge.method}, {merge.language}" if merge else ""
    alike = evidence.similarity
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
            (ways.ways_picture(f"{prefix}ways-{index}", method, groups), ways.caption(groups))
            for index, (method, groups) in enumerate(ways.compared(results))
        ],
        "ways_about": ways.ABOUT,
        "family": family,
        "merge": merge,
        "merge_title": title,
        "heat": pictures.heat_map(f"{prefix}heat", merge, title) if merge else "",
        "lineage": pictures.lineage(f"{prefix}lineage-picture", family, owner.title, results.structure)
        if family and owner
        else "",
        "spread": matrices.seed_spread(f"{prefix}seeds-picture", results) if table.seeds > 1 else "",
        "alike": matrices.similarity_matrix(f"{prefix}alike-picture", alike) if alike else "",
        "alike_caption": matrices.similarity_caption(alike) if alike else "",
        "alike_rule": alike.rule if alike else "",
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
    """A path as a link from the report's folder; None where it is absolute or leads nowhere a browser should go."""
    if not path or PurePosixPath(path).is_absolute() or path.startswith(("\\", "//")):
        return None
    return "./" + quote(path, safe="/")


def unbroken(words: str) -> str:
    """No line ends between a number and its sign."""
    return words.replace(" %", "\N{NO-BREAK SPACE}%").replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def size(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def time(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
