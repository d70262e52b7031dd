"""A span of a context that answers a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adamergex.data.values import position_of, text_of, texts
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import SpanAnswering
from adamergex.tasks.answering.templates import template_prompt
from adamergex.tasks.answering.writing import WRITERS
from adamergex.tasks.task_kind import Answering, Answers, Request, Row, TaskKind, Writing, XltForm

if TYPE_CHECKING:
    from torch import nn

    from adamergex.tasks.spans import SpanExamples


def _check_row(task: SpanAnswering, row: Row, where: str) -> dict[str, Json]:
    pairs = answers_of(row, where)
    if not pairs:
        raise DataError("a question has no answer", where=where, found=repr(row["answers"]), expected=_SHAPES,
                        fix="remove the row: every question has an answer in its context")  # fmt: skip
    context, answers, starts = str(row["context"]), list[str](), list[int]()
    for answer, start in pairs:
        text = text_of(answer, "answer", f"{where}, column 'answers'")
        begin = position_of(start, "start", where)
        begin = context.find(text) if begin is None else begin
        if begin < 0 or context[begin : begin + len(text)] != text:
            raise DataError(
                "an answer is not at its start" if start is not None else "an answer is not in its context",
                where=where,
                found=repr(context[max(begin, 0) : max(begin, 0) + len(text)]),
                expected=repr(text),
                fix="give the answer exactly as it occurs in the context, with its start in characters",
            )
        answers.append(text)
        starts.append(begin)
    kept = {name: value for name, value in row.items() if name != "start"}
    return {**kept, "answers": answers, "starts": starts}


_SHAPES = (
    "a text or a list of texts (answers), and where each begins in the context (start, starts); or SQuAD's "
    "{text: [...], answer_start: [...]}"
)


def answers_of(row: Row, where: str) -> list[tuple[Json, Json]]:
    """Pairs of answer and start (None: not given), from any of the shapes that a row may have."""
    answers = row["answers"]
    starts = row.get("starts")
    starts = row.get("start") if starts is None else starts
    nested = [answers] if isinstance(answers, Mapping) else answers
    if isinstance(nested, list) and any(isinstance(answer, Mapping) for answer in nested):
        return [pair for answer in nested for pair in _nested(answer, where)]
    answer_list = answers if isinstance(answers, list) else [answers]
    start_list = starts if isinstance(starts, list) else [starts] if len(answer_list) == 1 else starts
    if start_list is None or start_list == "":
        start_list = [None] * len(answer_list)
    if not answer_list:
        return []
    if not isinstance(start_list, list) or len(start_list) != len(answer_list):
        raise DataError("a question has fewer or more starts than answers", where=where,
                        found=f"answers {answers!r}, starts {starts!r}", expected=_SHAPES)  # fmt: skip
    return list(zip(answer_list, start_list, strict=True))


def _nested(answer: Json, where: str) -> list[tuple[Json, Json]]:
    """SQuAD's shapes: texts and starts in two lists, or one text with its start."""
    fields = answer if isinstance(answer, Mapping) else {}
    texts, starts = fields.get("text"), fields.get("answer_start", fields.get("start"))
    texts = texts if isinstance(texts, list) or texts is None else [texts]
    starts = starts if isinstance(starts, list) else [starts] * (len(texts or ()) if starts is None else 1)
    if texts is None or len(texts) != len(starts):
        raise DataError("the answers do not have SQuAD's shape", where=where, found=repr(answer)[:120],
                        expected=_SHAPES, fix="give text and answer_start of the same length")  # fmt: skip
    return list(zip(texts, starts, strict=True))


def _train_examples(request: Request[SpanAnswering]) -> SpanExamples:
    from adamergex.tasks.spans import span_examples

    return span_examples(request.task, request.rows, request.loaded.tokenizer, request.longest)


def _predict(request: Request[SpanAnswering], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.spans import span_answers

    answers = span_answers(request.task, request.rows, model, _train_examples(request), batch_tokens)
    items: list[dict[str, Json]] = [
        {"gold": texts(row["answers"]), "predicted": answer.text, "start": answer.start, "score": answer.score}
        for row, answer in zip(request.rows, answers, strict=True)
    ]
    return Answers(items, 0, sum(not answer.text for answer in answers))  # nothing is cut: windows cover the context


_XLT = XltForm(
    "question answering", "{context}\nQuestion: {question}", "retell the question",
    "answer the question with words of the text", "the answer in {language}", "Answer:",
)  # fmt: skip

KIND = TaskKind(
    settings=SpanAnswering,
    columns=lambda task: ("context", "question", "answers"),
    optional_columns=("start", "starts"),
    rows="A span of a context. Columns: context, question, answers (texts), start or starts (characters; optional).",
    gold=lambda task: "answers",
    check_row=_check_row,
    head="question-answering",
    outputs=lambda task: ("start", "end"),
    answering={"question-answering": Answering(_train_examples, _predict), **WRITERS},
    writing=Writing(
        lambda task, row: template_prompt(task.prompt, row, "context"),
        lambda task, row: texts(row["answers"])[:1],
        lambda task, row, text: (text, bool(text)),
    ),
    xlt=lambda task: _XLT,
    example=lambda task: ("1", ["1"]),
)
