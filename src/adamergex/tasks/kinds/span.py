"""A span of a context that answers a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adamergex.data.values import position_of, text_of, texts
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import SpanAnswering
from adamergex.tasks.answering.templates import asked
from adamergex.tasks.answering.writing import WRITERS
from adamergex.tasks.task_kind import Answering, Answers, Request, Row, TaskKind, Writing, XltForm

if TYPE_CHECKING:
    from torch import nn

    from adamergex.tasks.spans import SpanExamples


def _check_row(task: SpanAnswering, row: Row, where: str) -> dict[str, Json]:
    found = answers_of(row, where)
    if not found:
        raise DataError("a question has no answer", where=where, found=repr(row["answers"]), expected=_SHAPES,
                        fix="remove the row: every question has an answer in its context")  # fmt: skip
    context, answers, starts = str(row["context"]), list[str](), list[int]()
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
                fix="give the answer exactly as it occurs in the context, with its start in characters",
            )
        answers.append(text)
        starts.append(place)
    kept = {name: value for name, value in row.items() if name != "start"}
    return {**kept, "answers": answers, "starts": starts}


_SHAPES = (
    "a text or a list of texts (answers), and where each begins in the context (start, starts); or SQuAD's "
    "{text: [...], answer_start: [...]}"
)


def answers_of(row: Row, where: str) -> list[tuple[Json, Json]]:
    """Each answer with its start (None: not told), of all the shapes that a row may have."""
    answers = row["answers"]
    starts = row.get("starts")
    starts = row.get("start") if starts is None else starts
    nested = [answers] if isinstance(answers, Mapping) else answers
    if isinstance(nested, list) and any(isinstance(answer, Mapping) for answer in nested):
        return [pair for answer in nested for pair in _nested(answer, where)]
    said = answers if isinstance(answers, list) else [answers]
    places = starts if isinstance(starts, list) else [starts] if len(said) == 1 else starts
    if places is None or places == "":
        places = [None] * len(said)
    if not said:
        return []
    if not isinstance(places, list) or len(places) != len(said):
        raise DataError("a question has fewer or more starts than answers", where=where,
                        found=f"answers {answers!r}, starts {starts!r}", expected=_SHAPES)  # fmt: skip
    return list(zip(said, places, strict=True))


def _nested(answer: Json, where: str) -> list[tuple[Json, Json]]:
    """SQuAD's own shapes: texts and starts in two lists, or one text with its start."""
    found = answer if isinstance(answer, Mapping) else {}
    texts, starts = found.get("text"), found.get("answer_start", found.get("start"))
    texts = texts if isinstance(texts, list) or texts is None else [texts]
    starts = starts if isinstance(starts, list) else [starts] * (len(texts or ()) if starts is None else 1)
    if texts is None or len(texts) != len(starts):
        raise DataError("the answers have another shape than SQuAD's", where=where, found=repr(answer)[:120],
                        expected=_SHAPES, fix="give text and answer_start of the same length")  # fmt: skip
    return list(zip(texts, starts, strict=True))


def _train_examples(request: Request[SpanAnswering]) -> SpanExamples:
    from adamergex.tasks.spans import span_examples

    return span_examples(request.task, request.rows, request.loaded.tokenizer, request.longest)


def _predict(request: Request[SpanAnswering], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.spans import span_answers

    spans = span_answers(request.task, request.rows, model, _train_examples(request), batch_tokens)
    items: list[dict[str, Json]] = [
        {"gold": texts(row["answers"]), "predicted": answer.text, "start": answer.start, "score": answer.score}
        for row, answer in zip(request.rows, spans, strict=True)
    ]
    return Answers(items, 0, sum(not answer.text for answer in spans))  # long contexts are read in windows


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
        lambda task, row: asked(task.prompt, row, "context"),
        lambda task, row: texts(row["answers"])[:1],
        lambda task, row, text: (text, bool(text)),
    ),
    xlt=lambda task: _XLT,
    example=lambda task: ("1", ["1"]),
)
