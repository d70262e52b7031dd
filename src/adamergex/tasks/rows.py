"""The rows of a job from any source, with the columns of the task's kind."""

from __future__ import annotations

from collections.abc import Callable

from adamergex.data import reader
from adamergex.data.values import text_of
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import AnyRows, LabelledTask, Rows, Task, TaskRows
from adamergex.tasks.answering.templates import names_in
from adamergex.tasks.catalogue import read_rows
from adamergex.tasks.grouping import COLUMNS
from adamergex.tasks.kinds import kind_of
from adamergex.tasks.task_kind import NumberedRows, Row


def read(task: Task, rows: AnyRows, language: str, labelled: bool = True) -> list[dict[str, Json]]:
    """The rows of one language: text and id for language modelling, else the kind's ``columns``, checked.

    A csv may hold tokens and tags separated by spaces, and one answer with its start. Unless ``labelled``, the gold
    column of kinds with ``options`` is not read; an arbitrary valid value replaces it.
    Raises: DataError, with file and row.
    """
    kind, where = kind_of(task), source(rows, language)
    if isinstance(rows, TaskRows):
        numbered = read_rows(rows, language)
    elif labelled or kind.options is None:
        numbered = _file_rows(task, rows, language)
    else:
        numbered = _unlabelled(task, rows, language, kind.options.chosen)
    if not isinstance(task, LabelledTask):
        return kind.make_rows(task, numbered, where)
    return [_checked(task, row, f"{where}, row {number}") for number, row in numbered]


def _checked(task: LabelledTask, row: Row, where: str) -> dict[str, Json]:
    """The row with all columns of the task: non-blank texts, and the values from the kind's own check."""
    kind = kind_of(task)
    target_names = names_in(getattr(task, "target", None) or "")  # test rows may lack them: only training reads them
    checked = dict(row)
    for name in columns(task):
        if name not in row and name in target_names and name not in names_in(task.prompt):
            continue
        if name not in row:
            raise DataError(f"there is no column {name!r}", where=where, found=f"columns {', '.join(row)}",
                            expected=repr(name), fix=f"map it: columns: {{{name}: <name in the file>}}")  # fmt: skip
        if name not in (kind.gold(task), *kind.raw_columns):
            what = "choice" if name in getattr(task, "choices", ()) else name
            numbers = name not in ("text", "premise", "hypothesis", "context", "question")
            checked[name] = text_of(row[name], what, f"{where}, column {name!r}", numbers=numbers)
    return kind.check_row(task, checked, where)


def _file_rows(task: Task, rows: Rows, language: str) -> NumberedRows:
    kind = kind_of(task)
    if not kind.labelled:
        # A label next to the text is not read: it may be missing, and never makes two equal texts different.
        names = {*columns(task), "text", "pivot", "id"}
        mapping = {name: column for name, column in rows.columns.items() if name in names}
        return reader.read_numbered(rows.model_copy(update={"columns": mapping}), language, columns(task), also=("id",))
    return reader.read_numbered(rows, language, columns(task), also=(*reader.OURS, *COLUMNS, *kind.optional_columns))


def _unlabelled(task: Task, rows: Rows, language: str, chosen: Callable[[Task, Row, int], Row]) -> NumberedRows:
    kind = kind_of(task)
    gold = kind.gold(task)
    rows = rows.model_copy(update={"columns": {name: column for name, column in rows.columns.items() if name != gold}})
    numbered = reader.read_numbered(rows, language, [name for name in columns(task) if name != gold], also=("id",))
    return [(number, dict(chosen(task, row, 0))) for number, row in numbered]


def source(rows: AnyRows, language: str) -> str:
    """The file or dataset with the rows of a language, for messages."""
    if isinstance(rows, TaskRows):
        return f"{rows.task} {rows.split}, {language}, from {rows.data}"
    return reader.source(rows, language)


def columns(task: Task) -> tuple[str, ...]:
    """The columns that a file with rows for the task must have."""
    return kind_of(task).columns(task)
