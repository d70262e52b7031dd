"""Any kind of task on a model: loading the model, training examples, predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from torch import nn

from adamergex.adapters.peft_backed import virtual_tokens
from adamergex.backbones.loading import Kind, Loaded, head_input, kind_for, load, longest_input
from adamergex.errors import ConfigError
from adamergex.jobs.settings import Target, Task
from adamergex.tasks import Examples
from adamergex.tasks.grouping import groups
from adamergex.tasks.kinds import kind_of
from adamergex.tasks.measuring import tallied
from adamergex.tasks.task_kind import Answers, Request, Row


def model_kind(task: Task, base: str, *, bare: bool = False) -> Kind:
    """The kind of model in which a task loads a base; ``bare``: without an adapter, so without a trained head.

    Raises: ConfigError: the base's family cannot do the task.
    """
    record = kind_of(task)
    head = record.head
    kind = kind_for(base, labelled=False) if head is None or bare else kind_for(base, labelled=True, head=head)
    if kind == "masked-lm":
        kind = record.encoder(task, base)
    if getattr(task, "chat", False) and kind not in ("causal-lm", "sequence-to-sequence"):
        raise ConfigError("an encoder does not chat", where="chat", found=f"{base}, a {kind} model", fix="chat: false")
    answering = record.answering.get(kind)
    if answering is None or (bare and answering.predict is None):
        headless = bare and kind == "masked-lm" and head in record.answering
        raise ConfigError(
            f"{base} cannot do a {task.kind} task" + (" without a trained head" if bare else ""),
            where=getattr(task, "name", task.kind),
            found=f"a {kind} model",
            expected=f"one of {', '.join(record.answering)}",
            fix="omit the method vanilla" if headless else "choose a decoder or an encoder-decoder",
        )
    return kind


def load_for(task: Task, base: str, *, bare: bool = False) -> Loaded:
    """The backbone that a task needs."""
    kind, record = model_kind(task, base, bare=bare), kind_of(task)
    headed = kind == record.head
    head = head_input(base, getattr(task, "head", "cls")) if headed else "cls"
    return load(base, kind, record.outputs(task) if headed else None, head)


def train_examples(
    task: Task, rows: Sequence[Row], loaded: Loaded, *, where: object = None, seed: int = 0, taken: int = 0
) -> Examples:
    """The training examples of rows. ``taken``: input tokens used by a prefix.

    Raises: DataError, ConfigError, ModelError.
    """
    kind = kind_of(task)
    make_examples = kind.answering[loaded.kind].train_examples
    assert make_examples is not None  # checked by model_kind
    longest = longest_input(loaded.model, loaded.tokenizer) - taken
    return make_examples(Request(kind, task, rows, loaded, longest, where, seed))


def predict(
    task: Target, rows: Sequence[Row], loaded: Loaded, model: nn.Module, language: str, batch_tokens: int,
    where: object = None,
) -> Answers:  # fmt: skip
    """Predictions of a model (the loaded one, with or without an adapter), with id, hash, group and tally of each item.

    Raises: DataError, ConfigError, ModelError.
    """
    kind = kind_of(task)
    predict_rows = kind.answering[loaded.kind].predict
    assert predict_rows is not None  # checked by model_kind
    longest = longest_input(loaded.model, loaded.tokenizer) - virtual_tokens(model)
    answers = predict_rows(Request(kind, task, rows, loaded, longest, where), model, batch_tokens)
    items = [
        {
            "id": row.get("id", index),
            "text_sha256": _item_sha256(row),
            **({} if group is None else {"group": group}),
            **item,
        }
        for index, (row, group, item) in enumerate(zip(rows, groups(rows), answers.items, strict=True))
    ]
    return answers._replace(items=tallied(task, items, language))


def _item_sha256(row: Row) -> str:
    """The first 16 digits of the SHA-256 of the text, or of the whole row if it has no column text."""
    text = str(row["text"]) if "text" in row else json.dumps(row, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
