"""Reading finished runs for a report: output folders of ``transfer`` and ``study``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from adamergex.errors import DataError
from adamergex.files.inputs import DOCUMENT_BYTES, read_json_object
from adamergex.files.records import Record, valid
from adamergex.report.results import Results
from adamergex.report.results_file import inside, load

RESULTS, STUDY = "results.json", "study.json"


@dataclass(frozen=True)
class Run:
    """One table of results, and the folder that its paths are relative to."""

    folder: Path
    results: Results


def read_runs(folders: Iterable[str | Path]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """All tables of several run folders, each once, and notes about missing tables.

    A folder has ``results.json`` (``transfer``) or ``study.json`` (``study``, with one subfolder per table).

    Raises:
        DataError: a folder that has neither, invalid files, or no table at all.
    """
    runs: dict[Path, Run] = {}
    notes: list[str] = []
    paths = [Path(folder) for folder in folders]
    for path in paths:
        for table in _tables(path, notes):
            runs.setdefault(table.resolve(), Run(table, load(table / RESULTS)))
    if not runs:
        raise DataError(
            "there is nothing to report: no table is done",
            where=", ".join(map(str, paths)) or "no folder",
            found="; ".join(notes) or "no run",
            expected="at least one finished table",
            fix="run the study or the transfer again: what is done is kept",
        )
    return tuple(runs.values()), tuple(notes)


def _tables(folder: Path, notes: list[str]) -> list[Path]:
    if (folder / RESULTS).is_file():
        return [folder]
    if not (folder / STUDY).is_file():
        raise DataError(
            "this is not the folder of a run",
            where=folder,
            found=", ".join(sorted(item.name for item in folder.iterdir())[:8]) if folder.is_dir() else "no folder",
            expected=f"a folder with {RESULTS} (adamergex transfer) or {STUDY} (adamergex study)",
            fix="give the output folder of a run",
        )
    study = _study(folder / STUDY)
    paths = []
    for name, table in study.tables.items():
        path = folder / name  # works for a study that was moved
        if not (path / RESULTS).is_file():
            notes.append(f"{study.title or folder.name}: the table {name} is not there.")
            continue
        if not table.complete:
            notes.append(f"{study.title or folder.name}: the table {name} is not complete.")
        paths.append(path)
    notes += [f"Not done: {line}" for line in study.missing]
    return paths


class TableRecord(Record):
    """A table of a study: its folder, its methods and targets, and whether it is complete."""

    output: str = ""
    methods: list[str] = []
    targets: list[str] = []
    complete: bool = True


class StepCounts(Record):
    """Numbers of steps of a study: all, reused from the store, and missing."""

    all: int = 0
    reused: int = 0
    missing: int = 0


class StudyRecord(Record):
    """``study.json``: the tables, and the steps that are not done."""

    title: str = ""
    tables: dict[str, TableRecord]
    steps: StepCounts = StepCounts()
    missing: list[str] = []
    seconds: float = 0
    environment: dict[str, str] = {}
    commands: list[str] = []


def _study(path: Path) -> StudyRecord:
    data = read_json_object(path, what="the file of the study", error=DataError, limit=DOCUMENT_BYTES)
    study = valid(StudyRecord, data, path)
    if outside := [name for name in study.tables if not inside(name)]:
        raise DataError("a table lies outside its study", where=path, found=outside[0], fix="run the study again")
    return study


def relocated(run: Run, directory: Path) -> Results:
    """The run's results with paths relative to another directory."""
    if run.folder.resolve() == directory.resolve():
        return run.results

    def moved(path: str | None) -> str | None:
        if path is None:
            return None
        return Path(os.path.relpath(run.folder.resolve() / path, directory.resolve())).as_posix()

    results = run.results
    cells = tuple(
        replace(cell, predictions=moved(cell.predictions), adapter=moved(cell.adapter)) for cell in results.cells
    )
    return replace(
        results, cells=cells, adapters=tuple(replace(item, path=moved(item.path)) for item in results.adapters)
    )
