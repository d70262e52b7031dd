"""How models that write are asked: per kind of task the prompt, the answers that teach it, the choices that are scored,
and how what was written is read (``tasks.written``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from adamergex.jobs.settings import (
    Generation,
    MultipleChoice,
    PairClassification,
    SpanAnswering,
    Tagging,
)
from adamergex.tasks.answering.prompts import Prompt
from adamergex.tasks.answering.templates import asked, filled
from adamergex.tasks.answering.written import exact, mentions, read_entities, sign, written_entities
from adamergex.tasks.catalogue import task_file

Row = Mapping[str, Any]


class Asked(NamedTuple):
    """How a kind of task is asked. ``read`` makes the prediction of a row from what was written, and says whether all
    of it had the expected form; ``choices`` (where answers are scored, not written) are what could be said."""

    prompt: Callable[[Any, Row], Prompt]
    answers: Callable[[Any, Row], Sequence[str]]
    read: Callable[[Any, Row, str], tuple[Any, bool]]
    choices: Callable[[Any, Row], Sequence[str]] | None = None


def words_of(task: PairClassification) -> list[str]:
    """What is said for each label."""
    return [task.words.get(label, label) for label in task.labels]


def _pair_prompt(task: PairClassification, row: Row) -> Prompt:
    return asked(task.prompt, row, "premise")


def _pair_read(task: PairClassification, row: Row, text: str) -> tuple[str | None, bool]:
    """The label whose word the answer is; else the one whose word stands first in it."""
    words = words_of(task)
    same = exact(text, words)
    found = [same] if same is not None else mentions(text, words)
    return (task.labels[found[0]], True) if found else (None, False)


def _choice_prompt(task: MultipleChoice, row: Row) -> Prompt:
    return asked(task.prompt, row, task.cut)


def _choice_texts(task: MultipleChoice, row: Row) -> list[str]:
    return [str(row[name]) for name in task.choices]


def _choice_read(task: MultipleChoice, row: Row, text: str) -> tuple[int | None, bool]:
    """The choice that the answer is; else the one that stands in it (alone), or its letter or number."""
    choices = _choice_texts(task, row)
    found = exact(text, choices)
    if found is None:
        said = set(mentions(text, choices))
        found = said.pop() if len(said) == 1 else sign(text, len(choices))
    return found, found is not None


def _span_prompt(task: SpanAnswering, row: Row) -> Prompt:
    return asked(task.prompt, row, "context")


def _tag_prompt(task: Tagging, row: Row) -> Prompt:
    return asked(task.prompt, {"text": " ".join(row["tokens"]), **row}, "text")


def _learned(task: Generation, row: Row) -> list[str]:
    found = row[task.reference]
    references = [str(text) for text in (found if isinstance(found, list) else [found])]
    if task.target is None:
        return references
    return [filled(task.target, {**row, task.reference: references[0]})]


def _free_read(task: Generation, row: Row, text: str) -> tuple[str, bool]:
    """What was written, and whether the task that measures it can read it."""
    readable = getattr(task_file(task.measured_as), "readable", bool) if task.measured_as else bool
    return text, bool(text) and readable(text)


ASKED: dict[str, Asked] = {
    "pair-classification": Asked(
        _pair_prompt,
        lambda task, row: [task.words.get(row["label"], row["label"])],
        _pair_read,
        lambda task, row: words_of(task),
    ),
    "multiple-choice": Asked(
        _choice_prompt, lambda task, row: [_choice_texts(task, row)[row["label"]]], _choice_read, _choice_texts
    ),
    "span": Asked(_span_prompt, lambda task, row: row["answers"][:1], lambda task, row, text: (text, bool(text))),
    "tagging": Asked(
        _tag_prompt,
        lambda task, row: [written_entities(row["tokens"], row["tags"])],
        lambda task, row, text: read_entities(row["tokens"], task.types, text),
    ),
    "generation": Asked(lambda task, row: asked(task.prompt, row, task.cut), _learned, _free_read),
}
