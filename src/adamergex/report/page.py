"""The HTML page, and all files of a report in one call."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from adamergex.report import charts, pictures
from adamergex.report.markdown import report_markdown
from adamergex.report.results import Method, Results, Tuning, parse
from adamergex.report.summary import (
    MEAN,
    ScoreTable,
    by_chance,
    differences,
    headline,
    number,
    probability,
    score_table,
    signed,
    small_print,
    span,
)
from adamergex.report.tables import scores_csv, scores_latex


def write_report(results: Results | Mapping[str, Any], directory: str | Path) -> Path:
    """Write report.html, report.md, scores.csv and scores.tex into a directory; returns the path of report.html.

    Paths of predictions and adapters in the results are taken from that directory.

    Raises:
        DataError: plain data that are not valid results.
    """
    checked = results if isinstance(results, Results) else parse(results)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "report.html": page(checked),
        "report.md": report_markdown(checked),
        "scores.csv": scores_csv(checked),
        "scores.tex": scores_latex(checked),
    }
    for name, text in contents.items():
        (directory / name).write_text(text, encoding="utf-8", newline="\n")
    return directory / "report.html"


def page(results: Results) -> str:
    """One self-contained HTML page: its style, script and pictures are inside, and nothing is fetched."""
    import jinja2

    here = files("adamergex.report")
    script, style = ((here / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, signed=signed, span=span, probability=probability)
    environment.filters.update(size=size, time=time, unbroken=unbroken)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    table = score_table(results)
    return template.render(
        results=results,
        headline=headline(results),
        table=table,
        MEAN=MEAN,
        small_print=small_print,
        role=charts.role,
        link=link,
        several=table.seeds > 1,
        truncated=sum(cell.truncated for cell in results.cells),
        unparsable=sum(cell.unparsable for cell in results.cells),
        titles={method.name: method.title for method in results.methods},
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_pictures(results, table),
    )


def _pictures(results: Results, table: ScoreTable) -> dict[str, Any]:
    """What the template shows of each picture: SVG, which is markup, and the words beside it."""
    compared = differences(results)
    limits = charts.difference_range(compared)
    curves = _curves(results)
    merge, family = pictures.picked_merge(results), pictures.picked_family(results)
    merged = results.method(merge.method) if merge else None
    title = f"Change of each module: {merged.title if merged else merge.method}, {merge.language}" if merge else ""
    owner = results.method(family.cell.method) if family else None
    return {
        "bars": charts.bar_panels(table) if results.cells else [],
        "differences": [
            (item, charts.difference_mark(f"difference-{i}", item, limits)) for i, item in enumerate(compared)
        ],
        "by_chance": by_chance(len(compared)),
        "curves": [
            (charts.curve(f"curve-{index}", method, runs, results.measure), charts.curve_caption(runs))
            for index, (method, runs) in enumerate(curves)
        ],
        "family": family,
        "merge": merge,
        "merge_title": title,
        "heat": pictures.heat_map("heat", merge, title) if merge else "",
        "lineage": pictures.lineage("lineage", family, owner.title, results.structure) if family and owner else "",
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
