"""The rows of a job, whatever they come from, with the columns that the task's kind calls for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adamergex import data
from adamergex.errors import DataError
from adamergex.metrics.entities import check_iob2, repaired
from adamergex.settings import (
    AnyRows,
    Generation,
    LanguageModeling,
    MultipleChoice,
    Rows,
    SpanAnswering,
    Tagging,
    Task,
    TaskRows,
)
from adamergex.tasks.catalogue import read_rows
from adamergex.tasks.templates import names_in

Found = Mapping[str, Any]


def read(task: Task, rows: AnyRows, language: str, labelled: bool = True) -> list[dict[str, Any]]:
    """The rows of one language: text and id for language modelling; else the kind's ``columns``, checked.

    A csv may hold tokens and tags divided by blanks, and one answer with its start. Of files of choices and of tags
    that are not ``labelled`` the gold column is not read; an arbitrary valid one stands in its place.
    Raises: DataError.
    """
    if isinstance(rows, TaskRows):
        found = read_rows(rows, language)
    else:
        found = (_file_rows if labelled or task.kind not in GOLD else _unlabelled)(task, rows, language)
    check = _CHECKS.get(task.kind)
    if check is None:
        return found
    return [check(task, row, f"{source(rows, language)}, row {number}") for number, row in enumerate(found, 1)]


def _file_rows(task: Task, rows: Rows, language: str) -> list[dict[str, Any]]:
    if isinstance(task, LanguageModeling):
        # A label beside the text is not learned: it must be neither there nor the same for the text to be the same.
        own = {name: column for name, column in rows.columns.items() if name in ("text", "id")}
        return data.read(rows.model_copy(update={"columns": own}), language, columns(task), also=("id",))
    return data.read(rows, language, columns(task), also=(*data.OURS, *GROUPS, *_ALSO.get(task.kind, ())))


GROUPS = ("group", "context_id")
"""Columns that name what a row shares with others."""
_SHARED = ("context", "premise", "passage")


def groups(found: Sequence[Found]) -> list[str | None]:
    """What each row shares with others (a column of ``GROUPS``, or the same passage or premise); None for rows alone.

    Rows of a group are not independent: intervals and tests take each group as one cluster.
    """
    names = [_group(row) for row in found]
    counts = Counter(names)
    return [name if name is not None and counts[name] > 1 else None for name in names]


def _group(row: Found) -> str | None:
    given = next((row[name] for name in GROUPS if row.get(name) is not None), None)
    if given is not None:
        return str(given)
    text = next((row[name] for name in _SHARED if isinstance(row.get(name), str)), None)
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]


GOLD = {"classification": "label", "pair-classification": "label", "multiple-choice": "label", "tagging": "tags"}
"""Kind of task -> the column that a file without labels lacks."""


def _unlabelled(task: Any, rows: Rows, language: str) -> list[dict[str, Any]]:
    gold = GOLD[task.kind]
    rows = rows.model_copy(update={"columns": {name: column for name, column in rows.columns.items() if name != gold}})
    found = data.read(rows, language, [name for name in columns(task) if name != gold], also=("id",))
    return [{**row, gold: _any_gold(task, row)} for row in found]


def _any_gold(task: Any, row: Found) -> Any:
    if isinstance(task, Tagging):
        tokens = row["tokens"].split() if isinstance(row["tokens"], str) else row["tokens"]
        return ["O"] * len(tokens) if isinstance(tokens, list) else []
    return "0" if isinstance(task, MultipleChoice) else task.labels[0]


def source(rows: AnyRows, language: str) -> str:
    """The file or dataset that holds the rows of a language, as messages name it."""
    if isinstance(rows, TaskRows):
        return f"{rows.task} {rows.split}, {language}, from {rows.data}"
    return data.source(rows, language)


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
}


_ALSO = {"span": ("start", "starts")}


def _choice(task: MultipleChoice, row: Found, where: str) -> dict[str, Any]:
    label = str(row["label"])
    if not label.isdigit() or int(label) >= len(task.choices):
        raise DataError(
            "a label is not the position of a choice",
            where=where,
            found=repr(row["label"]),
            expected=f"0 to {len(task.choices) - 1}",
        )
    empty = [name for name in task.choices if not str(row[name]).strip()]
    if empty:
        raise DataError("a choice is empty", where=f"{where}, column {empty[0]!r}", expected="some text")
    return {**row, "label": int(label)}


def _span(task: SpanAnswering, row: Found, where: str) -> dict[str, Any]:
    answers, starts = row["answers"], row.get("starts", row.get("start"))
    answers = [answers] if isinstance(answers, str) else answers
    starts = [starts] if isinstance(starts, (str, int)) else starts
    if starts is None:  # not told: the first place where the answer stands
        starts = [str(row["context"]).find(str(answer)) for answer in answers or ()]
    if not answers or len(starts) != len(answers):
        raise DataError(
            "a question has no answer, or not as many starts as answers",
            where=where,
            found=f"answers {answers!r}, starts {starts!r}",
            expected="a text or a list of texts (answers), and where each begins in the context (start, starts)",
        )
    starts = [int(start) for start in starts]
    for answer, start in zip(answers, starts, strict=True):
        if start < 0 or row["context"][start : start + len(answer)] != answer:
            raise DataError(
                "an answer is not where its start says",
                where=where,
                found=repr(row["context"][max(start, 0) : max(start, 0) + len(answer)]),
                expected=repr(answer),
                fix="give the answer as it stands in the context, with its start in characters",
            )
    return {**row, "answers": list(answers), "starts": starts}


def _tags(task: Tagging, row: Found, where: str) -> dict[str, Any]:
    tokens, tags = (value.split() if isinstance(value, str) else value for value in (row["tokens"], row["tags"]))
    if not tokens or not isinstance(tokens, list) or not isinstance(tags, list) or len(tokens) != len(tags):
        raise DataError(
            "a row has not one tag a token",
            where=where,
            found=f"tokens {tokens!r}, tags {tags!r}",
            expected="two lists of the same length, or two texts divided by blanks",
        )
    kept = [
        "O" if task.other_types == "ignore" and tag != "O" and task.types and tag[2:] not in task.types else tag
        for tag in tags
    ]
    kept = repaired(kept) if task.broken == "repair" else kept
    check_iob2(kept, where, task.types or None)
    ignored = sum(tag != "O" and now == "O" and tag.startswith("B") for tag, now in zip(tags, kept, strict=True))
    return {**row, "tokens": tokens, "tags": kept, **({"ignored": ignored} if ignored else {})}


def _reference(task: Generation, row: Found, where: str) -> dict[str, Any]:
    found = row.get(task.reference)
    several = found if isinstance(found, list) else [found]
    if not several or any(not str("" if text is None else text).strip() for text in several):
        raise DataError("a reference is empty", where=f"{where}, column {task.reference!r}", found=repr(found),
                        expected="a text, or a list of texts")  # fmt: skip
    return dict(row)


_CHECKS: dict[str, Callable[[Any, Found, str], dict[str, Any]]] = {
    "multiple-choice": _choice,
    "span": _span,
    "tagging": _tags,
    "generation": _reference,
}
