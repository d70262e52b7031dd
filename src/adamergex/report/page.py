"""The HTML page, and all files of a report in one call."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from adamergex.errors import printable
from adamergex.files.outputs import filled_directory, write_files
from adamergex.report import views
from adamergex.report.evidence import Evidence, gather
from adamergex.report.markdown import report_markdown
from adamergex.report.numbers import format_difference_interval, format_interval, number, probability, signed
from adamergex.report.overview import overview, under_one_title
from adamergex.report.papers import Quoted, paper_comparisons
from adamergex.report.papers import read as read_papers
from adamergex.report.pooling import completed
from adamergex.report.results import Results
from adamergex.report.runs import read_runs, relocated
from adamergex.report.tables import scores_csv, scores_latex, summary_csv

if TYPE_CHECKING:
    import jinja2


def write_report(results: Results, directory: str | Path) -> Path:
    """Write report.html, report.md, scores.csv, summary.csv and scores.tex into a directory; returns report.html's
    path.

    Paths of predictions and adapters in the results are relative to that directory.

    Raises:
        OSError: the directory cannot be written.
    """
    return _write([results], Path(directory))


def report(runs: Sequence[str | Path], output: str | Path, papers: Sequence[str | Path] = ()) -> Path:
    """One report of several finished runs; returns the path of its report.html.

    Args:
        runs: output folders of ``transfer`` or of ``study``.
        output: the folder of the report; files of an earlier report there are replaced.
        papers: files with the papers' numbers, as in ``studies/papers/*.csv``.

    Raises:
        DataError: a folder that is not a run, or invalid files.
        AdapterFileError: an output that is not a folder.
    """
    quoted = read_papers(papers)
    tables, notes = read_runs(runs)
    with filled_directory(output) as directory:
        return _write([relocated(run, directory) for run in tables], directory, quoted, notes)


def _write(runs: Sequence[Results], directory: Path, quoted: Sequence[Quoted] = (), notes: Sequence[str] = ()) -> Path:
    runs = [completed(results) for results in runs]
    evidence = [gather(results, directory) for results in runs]
    contents = {
        "report.html": page(runs, evidence, quoted, notes),
        "report.md": report_markdown(runs, evidence, paper_comparisons(quoted, runs), notes),
        "scores.csv": scores_csv(runs),
        "summary.csv": summary_csv(runs),
        "scores.tex": scores_latex(runs),
    }
    write_files(directory, contents)
    return directory / "report.html"


def page(
    runs: Results | Sequence[Results],
    evidence: Sequence[Evidence] = (),
    quoted: Sequence[Quoted] = (),
    notes: Sequence[str] = (),
) -> str:
    """One self-contained HTML page with inline style, script and pictures; it fetches nothing."""
    runs = [runs] if isinstance(runs, Results) else runs
    evidence = evidence or [Evidence()] * len(runs)
    script = _text("page.js")
    alone, (title, named) = len(runs) == 1, under_one_title(runs)
    tables = [
        views.run_view(results, run_evidence, "" if alone else f"run{index}-")
        for index, (results, run_evidence) in enumerate(zip(named, evidence, strict=True), 1)
    ]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            runs=tables,
            alone=alone,
            h="h2" if alone else "h3",
            title=title,
            together=None if alone else overview(named),
            beside=paper_comparisons(quoted, runs),
            quoted=quoted,
            partial=notes,
            style=_text("page.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


@cache
def _environment() -> jinja2.Environment:
    """The templates, compiled once per process."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, signed=signed, probability=probability, link=views.link)
    environment.filters.update(format_interval=format_interval, format_difference_interval=format_difference_interval)
    environment.filters.update(size=views.size, time=views.time, unbroken=views.unbroken)
    return environment


def _printable(value: object) -> object:
    """Text without control characters; markup, a subclass of str, as it is."""
    return printable(value, len(value)) if type(value) is str else value


def _text(name: str) -> str:
    return (files("adamergex.report") / name).read_text(encoding="utf-8")
