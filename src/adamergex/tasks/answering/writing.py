"""Generative models: training on prompts with answers; prediction by scoring choices or by generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adamergex.tasks.labels import ranked
from adamergex.tasks.task_kind import Answering, Answers, Request

if TYPE_CHECKING:
    from torch import nn

    from adamergex.backbones.loading import Kind
    from adamergex.tasks import Examples

_WRITTEN, _THOUGHT = 48, 256
"""Maximum tokens of a generated label or choice; minimum tokens for the reasoning before an answer."""


def train_examples(request: Request[Any]) -> Examples:
    """Every answer of every row after the row's prompt. Raises: DataError, ConfigError."""
    from adamergex.tasks.answering.generating import answer_examples

    task, writing = request.task, request.writing
    pairs = [(writing.prompt(task, row), answer) for row in request.rows for answer in writing.answers(task, row)]
    return answer_examples(
        [prompt for prompt, _ in pairs],
        [answer for _, answer in pairs],
        request.loaded.tokenizer,
        max_length=task.max_length,
        longest=request.longest,
        where=request.where,
        family=request.loaded.family,
        chat=task.chat,
        leave_out=task.too_long == "leave-out",
    )


def predict(request: Request[Any], model: nn.Module, batch_tokens: int) -> Answers:
    """Answers by log-likelihood where the task has choices (unless ``answer_by: generate``), else generated ones."""
    from adamergex.tasks.answering.choosing import choice_scores

    task, writing = request.task, request.writing
    if writing.choices is None or task.answer_by == "generate" or task.answer_after:
        return _generated(request, model, batch_tokens)
    scores, truncated = choice_scores(
        model,
        [writing.prompt(task, row) for row in request.rows],
        [writing.choices(task, row) for row in request.rows],
        request.loaded.tokenizer,
        longest=request.limit,
        batch_tokens=batch_tokens,
        normalised=task.normalised,
        chat=task.chat,
    )
    labels = list(getattr(task, "labels", None) or range(len(task.choices)))
    gold = [row[request.kind.gold(task)] for row in request.rows]
    return Answers(ranked(labels, gold, scores), truncated)


WRITERS: Mapping[Kind, Answering[Any]] = dict.fromkeys(
    ("causal-lm", "sequence-to-sequence"), Answering(train_examples, predict)
)
"""How generative models learn and answer every kind of task that has ``writing``."""


def _generated(request: Request[Any], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.answering.generating import generate

    task, writing, gold = request.task, request.writing, request.kind.gold(request.task)
    texts, truncated = generate(
        model,
        [writing.prompt(task, row) for row in request.rows],
        request.loaded.tokenizer,
        max_new_tokens=getattr(task, "max_new_tokens", _WRITTEN),
        thought=_THOUGHT if task.answer_after else 0,
        stop=() if task.answer_after else getattr(task, "stop", ("\n",)),
        longest=request.limit,
        batch_tokens=batch_tokens,
        chat=task.chat,
    )
    answers = [_after(task.answer_after, text) for text in texts]
    parsed = [writing.read(task, row, answer) for row, (answer, _) in zip(request.rows, answers, strict=True)]
    items = [
        {"gold": row[gold], "predicted": predicted, "written": text}
        for row, (predicted, _), text in zip(request.rows, parsed, texts, strict=True)
    ]
    unparsable = sum(not (valid and marked) for (_, valid), (_, marked) in zip(parsed, answers, strict=True))
    return Answers(items, truncated, unparsable)


def _after(mark: str | None, text: str) -> tuple[str, bool]:
    """The line after the first mark, and whether the mark is there; the whole text without a mark."""
    if mark is None or mark not in text:
        return text, mark is None
    after = text.partition(mark)[2]
    return after.strip().partition("\n")[0], True
