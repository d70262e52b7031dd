"""Entity tags (IOB2) of a sentence split into words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adamergex.data.values import text_of, texts
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Tagging
from adamergex.metrics.entities import check_iob2, entities, iob_tag, repaired
from adamergex.tasks.answering.templates import template_prompt
from adamergex.tasks.answering.writing import WRITERS
from adamergex.tasks.answering.written import read_entities, written_entities
from adamergex.tasks.task_kind import Answering, Answers, Labels, Options, Request, Row, TaskKind, Writing

if TYPE_CHECKING:
    from torch import nn

    from adamergex.tasks.tagging import TagExamples


def _words(value: Json) -> Json:
    return value.split() if isinstance(value, str) else value


def _check_row(task: Tagging, row: Row, where: str) -> dict[str, Json]:
    tokens, tags = _words(row["tokens"]), _words(row["tags"])
    if not tokens or not isinstance(tokens, list) or not isinstance(tags, list) or len(tokens) != len(tags):
        raise DataError(
            "a row does not have one tag per token",
            where=where,
            found=f"tokens {tokens!r}, tags {tags!r}",
            expected="two lists of the same length, or two texts separated by spaces",
        )
    tokens = [text_of(token, "token", f"{where}, token {index}") for index, token in enumerate(tokens)]
    named = [iob_tag(tag, f"{where}, token {index}", task.types) for index, tag in enumerate(tags)]
    kept = [
        "O" if task.other_types == "ignore" and tag != "O" and task.types and tag[2:] not in task.types else tag
        for tag in named
    ]
    kept = repaired(kept) if task.broken == "repair" else kept
    check_iob2(kept, where, task.types or None)
    ignored = sum(tag.startswith("B") and new == "O" for tag, new in zip(named, kept, strict=True))
    return {**row, "tokens": tokens, "tags": kept, **({"ignored": ignored} if ignored else {})}


def _types(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(sorted({tag[2:] for row in rows for tag in texts(row["tags"]) if tag != "O"}))


def tag_names(task: Tagging) -> tuple[str, ...]:
    """The head's labels: O, then B and I of every type."""
    return ("O", *(f"{prefix}-{kind}" for kind in task.types for prefix in "BI"))


def _train_examples(request: Request[Tagging]) -> TagExamples:
    from adamergex.tasks.tagging import tag_examples

    return tag_examples(request.task, request.rows, request.loaded.tokenizer, request.longest)


def _predict(request: Request[Tagging], model: nn.Module, batch_tokens: int) -> Answers:
    from adamergex.tasks.tagging import predicted_tags

    examples = _train_examples(request)
    predicted = predicted_tags(request.task, request.rows, model, examples, batch_tokens)
    items: list[dict[str, Json]] = [
        {"gold": row["tags"], "predicted": tags} for row, tags in zip(request.rows, predicted, strict=True)
    ]
    return Answers(items, examples.truncated)


def _all_outside(task: Tagging, row: Row, index: int) -> dict[str, Json]:
    words = _words(row["tokens"])
    return {**row, "tags": ["O"] * len(words) if isinstance(words, list) else []}


def _tally(item: Row) -> tuple[float, float]:
    """2·TP, and predicted + gold entities: F1 is the ratio of their sums."""
    predicted, gold = entities(texts(item["predicted"])), entities(texts(item["gold"]))
    return 2.0 * len(predicted & gold), float(len(predicted) + len(gold))


KIND = TaskKind(
    settings=Tagging,
    columns=lambda task: ("tokens", "tags"),
    rows="Entities. Columns: tokens, tags (IOB2), as lists or separated by spaces.",
    gold=lambda task: "tags",
    raw_columns=("tokens",),
    check_row=_check_row,
    labels=Labels("types", _types, 1, "the training rows have no entity"),
    head="token-classification",
    outputs=tag_names,
    answering={"token-classification": Answering(_train_examples, _predict), **WRITERS},
    writing=Writing(
        lambda task, row: template_prompt(task.prompt, {"text": " ".join(texts(row["tokens"])), **row}, "text"),
        lambda task, row: [written_entities(texts(row["tokens"]), texts(row["tags"]))],
        lambda task, row, text: read_entities(texts(row["tokens"]), task.types, text),
    ),
    options=Options(lambda task: 1 + 2 * len(task.types), _all_outside, per_token=True),
    example=lambda task: (["B-X"], ["B-X"]),
    tally=_tally,
)
