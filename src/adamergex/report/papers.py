"""Comparison with the papers' numbers: read from CSV files, matched by task, method and language."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from adamergex.data.file_formats import rows_of
from adamergex.errors import DataError
from adamergex.report.results import Results
from adamergex.report.summary import MEAN, mean, score

COLUMNS = ("paper", "table", "model", "structure", "source", "reference", "method", "label", "task", "language",
           "value", "note")  # fmt: skip


@dataclass(frozen=True)
class Quoted:
    """One number of a paper, in percent. ``method``: our recipe's name; ``language`` or ``task`` may be "mean"."""

    paper: str
    table: str
    model: str
    structure: str
    source: str
    reference: str
    method: str
    label: str
    task: str
    language: str
    value: float
    note: str


@dataclass(frozen=True)
class PaperComparison:
    """A paper's number and ours for the same task, method and language; ``title`` names our run."""

    quoted: Quoted
    title: str
    ours: float


def read(paths: Iterable[str | Path]) -> tuple[Quoted, ...]:
    """The numbers of several files, in order.

    Raises:
        DataError: a file that cannot be read, wrong columns, or a value that is not a number.
    """
    return tuple(item for path in paths for item in _read(Path(path)))


def _read(path: Path) -> list[Quoted]:
    if path.suffix != ".csv":
        raise DataError("the papers' numbers are not csv", where=path, expected="a .csv file", fix="check the path")
    quoted = [
        _quoted(path, number, {name: str(value) for name, value in row.items()}) for number, row in rows_of(path, 0)
    ]
    if not quoted:
        raise DataError("the papers' numbers have other columns, or no rows", where=path, expected=", ".join(COLUMNS))
    return quoted


def _quoted(path: Path, number: int, row: Mapping[str, str]) -> Quoted:
    if tuple(row) != COLUMNS:
        raise DataError(
            "the papers' numbers have other columns", where=path, found=", ".join(row), expected=", ".join(COLUMNS)
        )
    words = dict(row)
    try:
        value = float(words.pop("value"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            "a line of the papers' numbers is not valid",
            where=f"{path}, row {number}",
            found=", ".join(row.values()),
            expected=f"{len(COLUMNS)} columns with a number as value",
        )
    return Quoted(**words, value=value)


def paper_comparisons(quoted: Sequence[Quoted], runs: Iterable[Results]) -> tuple[PaperComparison, ...]:
    """Every quoted number with a counterpart in a run: the same task, method and language, and the same structure and
    source if the paper names them; restricted by the run's setting ``papers``.

    A mean over languages is compared with our mean, each over its own languages; a mean over source languages with the
    mean of at least two of our tables."""
    comparisons, tables = [], list(runs)
    for results in tables:
        for item in quoted:
            ours = _ours(results, item) if _fits(item, results) and not _over_sources(item) else None
            if ours is not None:
                comparisons.append(PaperComparison(item, results.title, ours))
    for item in filter(_over_sources, quoted):
        for base in dict.fromkeys(results.base for results in tables):
            matching = [results for results in tables if results.base == base and _fits(item, results)]
            values = {results.source: ours for results in matching if (ours := _ours(results, item)) is not None}
            if len(values) > 1:
                title = f"mean of {len(values)} source languages"
                comparisons.append(PaperComparison(item, title, fmean(values.values())))
    return tuple(comparisons)


def _fits(item: Quoted, results: Results) -> bool:
    wanted = all(getattr(item, name) in values for name, values in results.papers.items())
    structure, source = item.structure in ("", _structure(results)), item.source in ("", results.source)
    return wanted and _key(item.task) == _key(results.task) and structure and (source or _over_sources(item))


def _over_sources(item: Quoted) -> bool:
    return item.source.startswith("mean of")


def _ours(results: Results, item: Quoted) -> float | None:
    if item.language == MEAN:
        overall = mean(results, item.method)
        return overall.mean if overall and overall.complete else None
    cell = score(results, item.method, item.language)
    return cell.mean if cell else None


def _structure(results: Results) -> str:
    name = _key(results.structure).replace("³", "3")
    return next((kind for kind in ("lora", "ia3", "prefix", "bottleneck") if kind in name), name)


def _key(words: str) -> str:
    return "".join(character for character in words.lower() if character.isalnum())
