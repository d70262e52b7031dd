"""The rows of a job, whatever they come from, with the columns that the task's kind calls for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adamergex.data import reader
from adamergex.data.values import label_of, position_of, require_written, text_of
from adamergex.errors import DataError
from adamergex.jobs.settings import (
    UNLABELLED,
    AnyRows,
    Generation,
    MultipleChoice,
    Rows,
    SentenceAlignment,
    SpanAnswering,
    Tagging,
    Task,
    TaskRows,
)
from adamergex.metrics.entities import check_iob2, iob_tag, repaired
from adamergex.metrics.text import comparable
from adamergex.tasks.answering.templates import names_in
from adamergex.tasks.catalogue import read_rows
from adamergex.tasks.grouping import COLUMNS

Found = Mapping[str, Any]
Numbered = list[tuple[int, dict[str, Any]]]


def read(task: Task, rows: AnyRows, language: str, labelled: bool = True) -> list[dict[str, Any]]:
    """The rows of one language: text and id for language modelling; else the kind's ``columns``, checked.

    A csv may hold tokens and tags divided by blanks, and one answer with its start. Of files of choices and of tags
    that are not ``labelled`` the gold column is not read; an arbitrary valid one stands in its place.
    Raises: DataError, with file and row.
    """
    if isinstance(rows, TaskRows):
        found = read_rows(rows, language)
    else:
        found = (_file_rows if labelled or task.kind not in GOLD else _unlabelled)(task, rows, language)
    if isinstance(task, SentenceAlignment):
        return _translated(task, found, source(rows, language))
    if isinstance(task, UNLABELLED):
        return [row for _, row in found]
    where = source(rows, language)
    return [_checked(task, row, f"{where}, row {number}") for number, row in found]


def _checked(task: Any, row: Found, where: str) -> dict[str, Any]:
    """The row with every column that the task uses: texts that are not blank, and what the kind's own check makes."""
    own = _OWN_COLUMNS.get(task.kind, ()) if task.kind != "generation" else (task.reference,)
    learned = names_in(getattr(task, "target", None) or "")  # what is written alone; a task's test rows may lack it
    checked = dict(row)
    for name in columns(task):
        if name not in row and name in learned and name not in names_in(task.prompt):
            continue
        if name not in row:
            raise DataError(f"there is no column {name!r}", where=where, found=f"columns {', '.join(row)}",
                            expected=repr(name), fix=f"map it: columns: {{{name}: <name in the file>}}")  # fmt: skip
        if name not in own:
            what = "choice" if name in getattr(task, "choices", ()) else name
            numbers = name not in ("text", "premise", "hypothesis", "context", "question")
            checked[name] = text_of(row[name], what, f"{where}, column {name!r}", numbers=numbers)
    return _CHECKS[task.kind](task, checked, where)


def _translated(task: SentenceAlignment, found: Numbered, where: str) -> list[dict[str, Any]]:
    """The rows with their translation as ``pivot``: by id where both sides have ids, else line by line."""
    if task.pivot is None:
        return [{**row, "pivot": text_of(row["pivot"], "pivot", f"{where}, row {number}")} for number, row in found]
    assert task.pivot_language is not None  # the settings were checked for it
    pivots = reader.read_numbered(task.pivot, task.pivot_language, ("text",), also=("id",))
    there = reader.source(task.pivot, task.pivot_language)
    own, others = _ids(found, where), _ids(pivots, there)
    if own and others:
        texts: dict[str, str] = {}
        for name, (number, row) in zip(others, pivots, strict=True):
            if texts.setdefault(name, row["text"]) != row["text"]:
                raise DataError(
                    "an id has two translations", where=f"{there}, row {number}", found=f"id {name!r}",
                    expected="each id once", fix="give each row an id of its own",
                )  # fmt: skip
        for name, (number, _) in zip(own, found, strict=True):
            if name not in texts:
                raise DataError(
                    "a row has no translation",
                    where=f"{where}, row {number}",
                    found=f"id {name!r}",
                    expected=f"a row with that id in {there}",
                    fix="remove the row, or add its translation",
                )
        return [{**row, "pivot": texts[name]} for name, (_, row) in zip(own, found, strict=True)]
    if len(found) != len(pivots):
        raise DataError(
            "a text and its translation have different numbers of rows",
            where=where,
            found=f"{len(found)} rows",
            expected=f"{len(pivots)}, as {there} has",
            fix="give both a column id, or one row for each row",
        )
    return [{**row, "pivot": other["text"]} for (_, row), (_, other) in zip(found, pivots, strict=True)]


def _ids(found: Numbered, where: str) -> list[str]:
    """The ids of all rows, numbers as text; of rows without ids nothing. Raises: DataError where only some have one."""
    without = next((number for number, row in found if "id" not in row), None)
    if without is None:
        return [text_of(row["id"], "id", f"{where}, row {number}") for number, row in found]
    if any("id" in row for _, row in found):
        raise DataError(
            "only some rows have an id", where=f"{where}, row {without}", found="no id",
            expected="an id in every row, or in none", fix="fill it in: translations are matched by it",
        )  # fmt: skip
    return []


def _file_rows(task: Task, rows: Rows, language: str) -> Numbered:
    if isinstance(task, UNLABELLED):
        # A label beside the text is not learned: it must be neither there nor the same for the text to be the same.
        own = {name: column for name, column in rows.columns.items() if name in ("text", "pivot", "id")}
        return reader.read_numbered(rows.model_copy(update={"columns": own}), language, columns(task), also=("id",))
    return reader.read_numbered(rows, language, columns(task), also=(*reader.OURS, *COLUMNS, *_ALSO.get(task.kind, ())))


GOLD = {"classification": "label", "pair-classification": "label", "multiple-choice": "label", "tagging": "tags"}
"""Kind of task -> the column that a file without labels lacks."""


def _unlabelled(task: Any, rows: Rows, language: str) -> Numbered:
    gold = GOLD[task.kind]
    rows = rows.model_copy(update={"columns": {name: column for name, column in rows.columns.items() if name != gold}})
    found = reader.read_numbered(rows, language, [name for name in columns(task) if name != gold], also=("id",))
    return [(number, {**row, gold: _any_gold(task, row)}) for number, row in found]


def _any_gold(task: Any, row: Found) -> Any:
    if isinstance(task, Tagging):
        tokens = row["tokens"].split() if isinstance(row["tokens"], str) else row["tokens"]
        return ["O"] * len(tokens) if isinstance(tokens, list) else []
    return "0" if isinstance(task, MultipleChoice) else task.labels[0]


def source(rows: AnyRows, language: str) -> str:
    """The file or dataset that holds the rows of a language, as messages name it."""
    if isinstance(rows, TaskRows):
        return f"{rows.task} {rows.split}, {language}, from {rows.data}"
    return reader.source(rows, language)


def columns(task: Task) -> tuple[str, ...]:
    """The columns that a file with rows for the task must have."""
    return _COLUMNS[task.kind](task)


def labels_of(task: Task, found: list[dict[str, Any]]) -> tuple[str, ...]:
    """The labels (entity types, for tagging) that rows hold, sorted."""
    if isinstance(task, Tagging):
        return tuple(sorted({tag[2:] for row in found for tag in row["tags"] if tag != "O"}))
    return tuple(sorted({str(row["label"]) for row in found}))


def _choice_columns(task: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*names_in(task.context), *names_in(task.prompt), *task.choices, "label"]))


def _generation_columns(task: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*names_in(task.prompt), task.reference, *names_in(task.target or "")]))


_COLUMNS: dict[str, Callable[[Any], tuple[str, ...]]] = {
    "classification": lambda task: ("text", "label"),
    "pair-classification": lambda task: ("premise", "hypothesis", "label"),
    "multiple-choice": _choice_columns,
    "span": lambda task: ("context", "question", "answers"),
    "tagging": lambda task: ("tokens", "tags"),
    "generation": _generation_columns,
    "language-modeling": lambda task: ("text",),
    "sentence-contrast": lambda task: ("text",),
    "sentence-alignment": lambda task: ("text",) if task.pivot else ("text", "pivot"),
}


_ALSO = {"span": ("start", "starts")}
_OWN_COLUMNS = {**dict.fromkeys(("classification", "pair-classification", "multiple-choice"), ("label",)),
                "span": ("answers",), "tagging": ("tokens", "tags")}  # fmt: skip
"""Kind of task -> the columns that its own check reads."""


def _label(task: Any, row: Found, where: str) -> dict[str, Any]:
    label = label_of(row["label"], f"{where}, column 'label'")
    require_written(label, task.labels, f"{where}, column 'label'")
    if label not in task.labels:  # the same to a reader, written otherwise
        label = comparable(label).strip()
        label = next((name for name in task.labels if comparable(name) == label), label)
    return {**row, "label": label}


def _choice(task: MultipleChoice, row: Found, where: str) -> dict[str, Any]:
    label_of(row["label"], f"{where}, column 'label'")
    try:
        label = position_of(row["label"], "label", where)
    except DataError:
        label = None
    if label is None or label >= len(task.choices):
        raise DataError(
            "a label is not the position of a choice",
            where=where,
            found=repr(row["label"]),
            expected=f"0 to {len(task.choices) - 1}",
        )
    return {**row, "label": label}


def _span(task: SpanAnswering, row: Found, where: str) -> dict[str, Any]:
    found = _answers(row, where)
    if not found:
        raise DataError("a question has no answer", where=where, found=repr(row["answers"]), expected=_SHAPES,
                        fix="remove the row: every question has an answer in its context")  # fmt: skip
    context, answers, starts = row["context"], [], []
    for answer, start in found:
        text = text_of(answer, "answer", f"{where}, column 'answers'")
        place = position_of(start, "start", where)
        place = context.find(text) if place is None else place
        if place < 0 or context[place : place + len(text)] != text:
            raise DataError(
                "an answer is not where its start says" if start is not None else "an answer is not in its context",
                where=where,
                found=repr(context[max(place, 0) : max(place, 0) + len(text)]),
                expected=repr(text),
                fix="give the answer as it stands in the context, with its start in characters",
            )
        answers.append(text)
        starts.append(place)
    kept = {name: value for name, value in row.items() if name != "start"}
    return {**kept, "answers": answers, "starts": starts}


_SHAPES = (
    "a text or a list of texts (answers), and where each begins in the context (start, starts); or SQuAD's "
    "{text: [...], answer_start: [...]}"
)


def _answers(row: Found, where: str) -> list[tuple[Any, Any]]:
    """Each answer with its start (None: not told), of all the shapes that a row may have."""
    answers = row["answers"]
    starts = row.get("starts")
    starts = row.get("start") if starts is None else starts
    nested = [answers] if isinstance(answers, Mapping) else answers
    if isinstance(nested, list) and any(isinstance(answer, Mapping) for answer in nested):
        return [pair for answer in nested for pair in _nested(answer, where)]
    texts = answers if isinstance(answers, list) else [answers]
    places = starts if isinstance(starts, list) else [starts] if len(texts) == 1 else starts
    if places is None or places == "":
        places = [None] * len(texts)
    if texts and (not isinstance(places, list) or len(places) != len(texts)):
        raise DataError("a question has not as many starts as answers", where=where,
                        found=f"answers {answers!r}, starts {starts!r}", expected=_SHAPES)  # fmt: skip
    return list(zip(texts, places if texts else [], strict=True))


def _nested(answer: Any, where: str) -> list[tuple[Any, Any]]:
    """SQuAD's own shapes: texts and starts in two lists, or one text with its start."""
    found = answer if isinstance(answer, Mapping) else {}
    texts, starts = found.get("text"), found.get("answer_start", found.get("start"))
    texts = texts if isinstance(texts, list) or texts is None else [texts]
    starts = starts if isinstance(starts, list) else [starts] * (len(texts or ()) if starts is None else 1)
    if texts is None or len(texts) != len(starts):
        raise DataError("the answers have another shape than SQuAD's", where=where, found=repr(answer)[:120],
                        expected=_SHAPES, fix="give text and answer_start of the same length")  # fmt: skip
    return list(zip(texts, starts, strict=True))


def _tags(task: Tagging, row: Found, where: str) -> dict[str, Any]:
    tokens, tags = (value.split() if isinstance(value, str) else value for value in (row["tokens"], row["tags"]))
    if not tokens or not isinstance(tokens, list) or not isinstance(tags, list) or len(tokens) != len(tags):
        raise DataError(
            "a row has not one tag a token",
            where=where,
            found=f"tokens {tokens!r}, tags {tags!r}",
            expected="two lists of the same length, or two texts divided by blanks",
        )
    tokens = [text_of(token, "token", f"{where}, token {place}") for place, token in enumerate(tokens)]
    named = [iob_tag(tag, f"{where}, token {place}", task.types) for place, tag in enumerate(tags)]
    kept = [
        "O" if task.other_types == "ignore" and tag != "O" and task.types and tag[2:] not in task.types else tag
        for tag in named
    ]
    kept = repaired(kept) if task.broken == "repair" else kept
    check_iob2(kept, where, task.types or None)
    ignored = sum(tag != "O" and now == "O" and tag.startswith("B") for tag, now in zip(named, kept, strict=True))
    return {**row, "tokens": tokens, "tags": kept, **({"ignored": ignored} if ignored else {})}


def _reference(task: Generation, row: Found, where: str) -> dict[str, Any]:
    found, place = row[task.reference], f"{where}, column {task.reference!r}"
    if isinstance(found, list) and found:
        return {**row, task.reference: [text_of(text, "reference", place) for text in found]}
    return {**row, task.reference: text_of(found, "reference", place)}


_CHECKS: dict[str, Callable[[Any, Found, str], dict[str, Any]]] = {
    "classification": _label,
    "pair-classification": _label,
    "multiple-choice": _choice,
    "span": _span,
    "tagging": _tags,
    "generation": _reference,
}
