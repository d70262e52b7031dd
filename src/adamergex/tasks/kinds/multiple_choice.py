"""The best of several continuations; a label is its position, from 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamergex.data.values import label_of, position_of
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import MultipleChoice
from adamergex.tasks.answering.templates import names_in, template_prompt
from adamergex.tasks.answering.writing import WRITERS
from adamergex.tasks.answering.written import exact, mentions, sign
from adamergex.tasks.labels import ranked
from adamergex.tasks.task_kind import Answering, Answers, Options, Request, Row, TaskKind, Writing, XltForm

if TYPE_CHECKING:
    from torch import nn

    from adamergex.tasks.answering.choice_heads import ChoiceExamples


def _columns(task: MultipleChoice) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*names_in(task.context), *names_in(task.prompt), *task.choices, "label"]))


def _check_row(task: MultipleChoice, row: Row, where: str) -> dict[str, Json]:
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


def _train_examples(request: Request[MultipleChoice]) -> ChoiceExamples:
    from adamergex.tasks.answering.choice_heads import choice_examples

    return choice_examples(request.task, request.rows, request.loaded.tokenizer, request.longest, request.where)


def _predict(request: Request[MultipleChoice], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.answering.choice_heads import choice_head_scores

    examples = _train_examples(request)
    scores = choice_head_scores(model, examples, batch_tokens)
    return Answers(ranked(range(len(request.task.choices)), examples.labels, list(scores)), examples.truncated)


def _choices(task: MultipleChoice, row: Row) -> list[str]:
    return [str(row[name]) for name in task.choices]


def _read(task: MultipleChoice, row: Row, text: str) -> tuple[int | None, bool]:
    """The choice that equals the answer, else the only choice mentioned in it, else one by letter or number."""
    choices = _choices(task, row)
    choice = exact(text, choices)
    if choice is None:
        mentioned = set(mentions(text, choices))
        choice = mentioned.pop() if len(mentioned) == 1 else sign(text, len(choices))
    return choice, choice is not None


_PICK = "Help me pick the more plausible option: "


def _xlt(task: MultipleChoice) -> XltForm:
    """The paper's words for a premise, its question, and its choices."""
    options = ", ".join(f"-choice{number}: {{{name}}}" for number, name in enumerate(task.choices, 1))
    premise, _, question = task.context.partition(" ")
    request = f"Here is a premise: {task.context}\n{_PICK}{options}"
    if question == "What is the {question}?":
        request = f"Here is a premise: {premise}. {question} {_PICK}{options}"
    return XltForm(
        "commonsense reasoning", request, "retell the premise and the options",
        "do step-by-step answer to pick a choice", "the choice number", "Choice number:",
    )  # fmt: skip


KIND = TaskKind(
    settings=MultipleChoice,
    columns=_columns,
    rows="One of several continuations. Columns: premise, choice1, choice2, label (0 is choice1).",
    check_row=_check_row,
    head="multiple-choice",
    answering={"multiple-choice": Answering(_train_examples, _predict), **WRITERS},
    writing=Writing(
        lambda task, row: template_prompt(task.prompt, row, task.cut),
        lambda task, row: [_choices(task, row)[int(str(row["label"]))]],
        _read,
        _choices,
    ),
    xlt=_xlt,
    options=Options(lambda task: len(task.choices), lambda task, row, index: {**row, "label": index}),
    example=lambda task: (0, 0),
)
