"""One label per text: by an encoder's head, the label's word after a prompt, a cloze, or the nearest label vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamergex.jobs.settings import Classification
from adamergex.tasks import labels
from adamergex.tasks.task_kind import Answering, Answers, Request, TaskKind, XltForm

if TYPE_CHECKING:
    from torch import nn

    from adamergex.backbones.loading import Kind
    from adamergex.tasks import Examples
    from adamergex.tasks.answering.choice_heads import ChoiceExamples


def _head_examples(request: Request[Classification]) -> ChoiceExamples:
    from adamergex.tasks.answering.choice_heads import text_examples

    return text_examples(request.task, request.rows, request.loaded.tokenizer, request.longest, request.where)


def _head_answers(request: Request[Classification], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.answering.choice_heads import choice_head_scores

    examples = _head_examples(request)
    return labels.classified(request, list(choice_head_scores(model, examples, batch_tokens)), examples.truncated)


def _word_examples(request: Request[Classification]) -> Examples:
    from adamergex.tasks.classification import prompt_examples

    loaded = request.loaded
    return prompt_examples(
        request.rows, loaded.tokenizer, request.task, longest=request.longest, where=request.where, family=loaded.family
    )


def _word_answers(request: Request[Classification], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.answering.scoring import cloze_scores, word_scores

    score = cloze_scores if request.loaded.kind == "masked-lm" else word_scores
    texts = [str(row["text"]) for row in request.rows]
    scores, truncated = score(
        model, texts, request.loaded.tokenizer, request.task, longest=request.longest, batch_tokens=batch_tokens
    )
    return labels.classified(request, list(scores), truncated)


def _nearest_answers(request: Request[Classification], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.answering.nearest import nearest_scores

    tokenizer = request.loaded.tokenizer
    scores, truncated = nearest_scores(model, request.rows, tokenizer, request.task, longest=request.longest)
    return labels.classified(request, scores, truncated)


def _bare_encoder(task: Classification, base: str) -> Kind:
    from adamergex.tasks.answering.nearest import answers_by_name

    return "sentence-encoder" if answers_by_name(task, base) else "masked-lm"


def _xlt(task: Classification) -> XltForm:
    *first, last = task.labels
    listed = ", ".join(first) + (f" and {last}" if first else last)
    goal = f"choose the topic of the text from {listed}"
    return XltForm("text classification", "{text}", "retell the text", goal, "the topic", "Topic:", written=False)


KIND = TaskKind(
    settings=Classification,
    columns=lambda task: ("text", "label"),
    rows="One label per text. Columns: text, label.",
    check_row=labels.check_label,
    check_rows=labels.check_labels,
    labels=labels.OPEN_LABELS,
    head="sequence-classification",
    outputs=lambda task: task.labels,
    encoder=_bare_encoder,
    answering={
        "sequence-classification": Answering(_head_examples, _head_answers),
        "masked-lm": Answering(None, _word_answers),
        "sentence-encoder": Answering(None, _nearest_answers),
        "causal-lm": Answering(_word_examples, _word_answers),
        "sequence-to-sequence": Answering(_word_examples, _word_answers),
    },
    xlt=_xlt,
    options=labels.LABEL_OPTIONS,
    example=labels.example,
)
