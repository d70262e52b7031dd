"""One label for a premise and a hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adamergex.jobs.settings import PairClassification
from adamergex.tasks import labels
from adamergex.tasks.answering.templates import template_prompt
from adamergex.tasks.answering.writing import WRITERS
from adamergex.tasks.answering.written import exact, mentions
from adamergex.tasks.task_kind import Answering, Answers, Request, Row, TaskKind, Writing, XltForm

if TYPE_CHECKING:
    from torch import nn

    from adamergex.tasks.answering.choice_heads import ChoiceExamples
    from adamergex.tasks.answering.prompts import Prompt


def _head_examples(request: Request[PairClassification]) -> ChoiceExamples:
    from adamergex.tasks.answering.choice_heads import pair_examples

    return pair_examples(request.task, request.rows, request.loaded.tokenizer, request.longest, request.where)


def _head_answers(request: Request[PairClassification], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.answering.choice_heads import choice_head_scores

    examples = _head_examples(request)
    return labels.classified(request, list(choice_head_scores(model, examples, batch_tokens)), examples.truncated)


def _cloze_answers(request: Request[PairClassification], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.answering.scoring import cloze_of
    from adamergex.tasks.classification import answer_tokens

    task, tokenizer = request.task, request.loaded.tokenizer
    prompts = [_prompt(task, row) for row in request.rows]
    words = answer_tokens(tokenizer, task)
    scores, truncated = cloze_of(model, prompts, words, tokenizer, limit=request.limit, batch_tokens=batch_tokens)
    return labels.classified(request, list(scores), truncated)


def _prompt(task: PairClassification, row: Row) -> Prompt:
    return template_prompt(task.prompt, row, "premise")


def _words(task: PairClassification) -> list[str]:
    return [task.words.get(label, label) for label in task.labels]


def _read(task: PairClassification, row: Row, text: str) -> tuple[str | None, bool]:
    """The label whose word equals the answer, else the first one mentioned in it."""
    words = _words(task)
    equal = exact(text, words)
    matches = [equal] if equal is not None else mentions(text, words)
    return (task.labels[matches[0]], True) if matches else (None, False)


_NLI_ORDER = ("entailment", "contradiction", "neutral")
_XLT = XltForm(
    "natural language inference", "Premise: {premise}\nHypothesis: {hypothesis}", "retell the premise and hypothesis",
    "judge whether the hypothesis is true (entailment), false (contradiction), or undetermined (neutral) given the "
    "premise. The relationship can be chosen from {labels}", "the relationship", "Relationship:",
)  # fmt: skip


def _xlt(task: PairClassification) -> XltForm:
    """The words of the labels, in the paper's order for XNLI's labels."""
    ordered: Sequence[str] = _NLI_ORDER if set(task.labels) == set(_NLI_ORDER) else task.labels
    *first, last = (task.words.get(label, label) for label in ordered)
    listed = ", ".join(first) + (f", and {last}" if len(first) > 1 else f" and {last}" if first else last)
    return _XLT._replace(goal=_XLT.goal.replace("{labels}", listed))


KIND = TaskKind(
    settings=PairClassification,
    columns=lambda task: ("premise", "hypothesis", "label"),
    rows="One label for two texts. Columns: premise, hypothesis, label.",
    check_row=labels.check_label,
    check_rows=labels.check_labels,
    labels=labels.OPEN_LABELS,
    head="sequence-classification",
    outputs=lambda task: task.labels,
    answering={
        "sequence-classification": Answering(_head_examples, _head_answers),
        "masked-lm": Answering(None, _cloze_answers),
        **WRITERS,
    },
    writing=Writing(
        _prompt,
        lambda task, row: [task.words.get(label := str(row["label"]), label)],
        _read,
        lambda task, row: _words(task),
    ),
    xlt=_xlt,
    options=labels.LABEL_OPTIONS,
    example=labels.example,
)
