"""A reference task of sentence encoders on parallel text: a text's target is the base's vector of its translation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamergex.data import reader
from adamergex.data.values import text_of
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import SentenceAlignment
from adamergex.tasks.task_kind import Answering, NumberedRows, Request, TaskKind

if TYPE_CHECKING:
    from adamergex.tasks import Examples


def _translated(task: SentenceAlignment, numbered: NumberedRows, where: str) -> list[dict[str, Json]]:
    """The rows with their translations as ``pivot``, matched by id if both sides have ids, else line by line."""
    if task.pivot is None:
        return [{**row, "pivot": text_of(row["pivot"], "pivot", f"{where}, row {number}")} for number, row in numbered]
    assert task.pivot_language is not None  # checked with the settings
    pivots = reader.read_numbered(task.pivot, task.pivot_language, ("text",), also=("id",))
    pivot_source = reader.source(task.pivot, task.pivot_language)
    ids, pivot_ids = _ids(numbered, where), _ids(pivots, pivot_source)
    if ids and pivot_ids:
        texts: dict[str, str] = {}
        for name, (number, row) in zip(pivot_ids, pivots, strict=True):
            if texts.setdefault(name, str(row["text"])) != row["text"]:
                raise DataError(
                    "an id has two translations", where=f"{pivot_source}, row {number}", found=f"id {name!r}",
                    expected="each id once", fix="give each row its own id",
                )  # fmt: skip
        for name, (number, _) in zip(ids, numbered, strict=True):
            if name not in texts:
                raise DataError(
                    "a row has no translation",
                    where=f"{where}, row {number}",
                    found=f"id {name!r}",
                    expected=f"a row with that id in {pivot_source}",
                    fix="remove the row, or add its translation",
                )
        return [{**row, "pivot": texts[name]} for name, (_, row) in zip(ids, numbered, strict=True)]
    if len(numbered) != len(pivots):
        raise DataError(
            "a text and its translation have different numbers of rows",
            where=where,
            found=f"{len(numbered)} rows",
            expected=f"{len(pivots)}, as in {pivot_source}",
            fix="give both a column id, or the same number of rows in the same order",
        )
    return [{**row, "pivot": pivot["text"]} for (_, row), (_, pivot) in zip(numbered, pivots, strict=True)]


def _ids(numbered: NumberedRows, where: str) -> list[str]:
    """The ids of all rows as text; empty for rows without ids. Raises: DataError: only some rows have an id."""
    without = next((number for number, row in numbered if "id" not in row), None)
    if without is None:
        return [text_of(row["id"], "id", f"{where}, row {number}") for number, row in numbered]
    if any("id" in row for _, row in numbered):
        raise DataError(
            "only some rows have an id", where=f"{where}, row {without}", found="no id",
            expected="an id in every row, or in none", fix="fill it in: translations are matched by it",
        )  # fmt: skip
    return []


def _train_examples(request: Request[SentenceAlignment]) -> Examples:
    from adamergex.tasks.sentences import alignment

    texts, pivots = ([str(row[name]) for row in request.rows] for name in ("text", "pivot"))
    return alignment(texts, pivots, request.loaded, request.task, longest=request.longest, where=request.where)


KIND = TaskKind(
    settings=SentenceAlignment,
    columns=lambda task: ("text",) if task.pivot else ("text", "pivot"),
    make_rows=_translated,
    answering={"sentence-encoder": Answering(_train_examples, None)},
    encoder=lambda task, base: "sentence-encoder",
)
