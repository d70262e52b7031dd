"""Free generation, scored against a reference."""

from __future__ import annotations

from adamergex.data.values import text_of
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Generation
from adamergex.tasks.answering.templates import filled, names_in, template_prompt
from adamergex.tasks.answering.writing import WRITERS
from adamergex.tasks.catalogue import task_file
from adamergex.tasks.task_kind import Row, TaskKind, Writing, XltForm


def _columns(task: Generation) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*names_in(task.prompt), task.reference, *names_in(task.target or "")]))


def _check_row(task: Generation, row: Row, where: str) -> dict[str, Json]:
    value, column = row[task.reference], f"{where}, column {task.reference!r}"
    if isinstance(value, list) and value:
        return {**row, task.reference: [text_of(text, "reference", column) for text in value]}
    return {**row, task.reference: text_of(value, "reference", column)}


def _answers(task: Generation, row: Row) -> list[str]:
    value = row[task.reference]
    references = [str(text) for text in (value if isinstance(value, list) else [value])]
    if task.target is None:
        return references
    return [filled(task.target, {**row, task.reference: references[0]})]


def _read(task: Generation, row: Row, text: str) -> tuple[str, bool]:
    """The generated text, and whether the task that scores it can parse it."""
    readable = getattr(task_file(task.measured_as), "readable", bool) if task.measured_as else bool
    return text, bool(text) and readable(text)


_XLT = XltForm(
    "multilingual summarization", "", "retell the input text",
    "think step-by-step to summarize the entire text in a maximum of two sentences", "the summary", "Summary:",
)  # fmt: skip
_DATASETS = {
    "xlsum": _XLT._replace(request="{text}"),
    "mgsm": XltForm(
        "arithmetic reasoning", "Request: {question}", "retell the request",
        "do step-by-step answer to obtain a number answer", "the answer", "Answer:",
    ),
}  # fmt: skip

KIND = TaskKind(
    settings=Generation,
    columns=_columns,
    rows="A free answer. Columns: those of the prompt (text), and the reference (target).",
    gold=lambda task: task.reference,
    check_row=_check_row,
    head="sequence-classification",
    answering=WRITERS,
    writing=Writing(lambda task, row: template_prompt(task.prompt, row, task.cut), _answers, _read),
    xlt=lambda task: _DATASETS.get(task.name) or _XLT._replace(request=task.prompt),
)
