"""Every kind of task: the head it needs on an encoder, and how each kind of model learns it and answers.

One table, ``KINDS``; training, evaluation and the search of λ go through the functions above it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from adamergex.adapters.peft_backed import virtual_tokens
from adamergex.backbones.loading import Head, Kind, Loaded, head_input, kind_for, load, longest_input
from adamergex.errors import ConfigError
from adamergex.jobs.settings import Target, Task
from adamergex.tasks import Examples
from adamergex.tasks.answering import scoring
from adamergex.tasks.answering.asking import ASKED
from adamergex.tasks.answering.choice_heads import choice_examples, choice_head_scores, pair_examples
from adamergex.tasks.answering.choosing import choice_scores
from adamergex.tasks.answering.generating import answer_examples, generate
from adamergex.tasks.answering.nearest import answers_by_name, nearest_scores
from adamergex.tasks.classification import answer_pieces, head_examples, label_indices, prompt_examples
from adamergex.tasks.denoising import pairs as denoising_pairs
from adamergex.tasks.grouping import groups
from adamergex.tasks.language_modeling import segments
from adamergex.tasks.measuring import tallied
from adamergex.tasks.sentences import alignment, contrast
from adamergex.tasks.spans import span_answers, span_examples
from adamergex.tasks.tagging import predicted_tags, tag_examples, tag_names

Row = Mapping[str, Any]


class Ask(NamedTuple):
    """What a model is to learn or to answer. ``limit``: pieces that task and model allow."""

    task: Any
    rows: Sequence[Row]
    loaded: Loaded
    longest: int
    where: object
    seed: int = 0

    @property
    def limit(self) -> int:
        return min(int(self.task.max_length), self.longest)


class Answers(NamedTuple):
    """A prediction for every row, in order (gold, predicted, and scores where there are any), how many inputs were cut,
    and how many answers could not be read."""

    items: list[dict[str, Any]]
    truncated: int
    unparsable: int = 0


Learn = Callable[[Ask], Examples]
Say = Callable[[Ask, nn.Module, int], Answers]


class Way(NamedTuple):
    """How one kind of model learns a task, and how it answers; None where it cannot."""

    learn: Learn | None
    say: Say | None


class TaskKind(NamedTuple):
    """``head``: what an encoder needs; ``classes``: its labels; ``ways``: kind of model -> way; ``encoder``: what an
    encoder without a head is loaded as."""

    head: Head | None
    classes: Callable[[Any], Sequence[str] | None]
    ways: Mapping[Kind, Way]
    encoder: Kind = "masked-lm"


def kind_of(task: Task) -> TaskKind:
    """The entry of a task's kind."""
    return KINDS[task.kind]


def model_kind(task: Task, base: str, *, bare: bool = False) -> Kind:
    """The kind of model that a task needs of a base; ``bare``: without an adapter, so without a trained head.

    Raises: ConfigError: that family cannot do the task.
    """
    head = kind_of(task).head
    kind = kind_for(base, labelled=False) if head is None or bare else kind_for(base, labelled=True, head=head)
    if kind == "masked-lm":
        kind = "sentence-encoder" if bare and answers_by_name(task, base) else kind_of(task).encoder
    if getattr(task, "chat", False) and kind not in ("causal-lm", "sequence-to-sequence"):
        raise ConfigError("an encoder does not chat", where="chat", found=f"{base}, a {kind} model", fix="chat: false")
    way = kind_of(task).ways.get(kind)
    if way is None or (bare and way.say is None):
        raise ConfigError(
            f"{base} cannot do a {task.kind} task" + (" without a trained head" if bare else ""),
            where=getattr(task, "name", task.kind),
            found=f"a {kind} model",
            expected=f"one of {', '.join(kind_of(task).ways)}",
            fix="leave out the method vanilla" if bare and head is not None and kind == "masked-lm" and
            task.kind != "generation" else "choose a decoder or an encoder-decoder",
        )  # fmt: skip
    return kind


def load_for(task: Task, base: str, *, bare: bool = False) -> Loaded:
    """The backbone that a task needs."""
    kind, found = model_kind(task, base, bare=bare), kind_of(task)
    headed = kind == found.head
    head = head_input(base, getattr(task, "head", "cls")) if headed else "cls"
    return load(base, kind, found.classes(task) if headed else None, head)


def examples(
    task: Task, rows: Sequence[Row], loaded: Loaded, *, where: object = None, seed: int = 0, taken: int = 0
) -> Examples:
    """The training examples of rows. ``taken``: pieces of the input that a prefix takes.

    Raises: DataError, ConfigError, ModelError.
    """
    learn = kind_of(task).ways[loaded.kind].learn
    assert learn is not None  # model_kind chose a kind that learns
    longest = longest_input(loaded.model, loaded.tokenizer) - taken
    return learn(Ask(task, rows, loaded, longest, where, seed))


def answers(
    task: Target, rows: Sequence[Row], loaded: Loaded, model: nn.Module, language: str, batch_tokens: int,
    where: object = None,
) -> Answers:  # fmt: skip
    """Predictions of a model (the loaded one, or with an adapter on it) with id, hash of the item, its group and tally.

    Raises: DataError, ConfigError, ModelError.
    """
    say = kind_of(task).ways[loaded.kind].say
    assert say is not None  # model_kind chose a kind that answers
    longest = longest_input(loaded.model, loaded.tokenizer) - virtual_tokens(model)
    found = say(Ask(task, rows, loaded, longest, where), model, batch_tokens)
    items = [
        {
            "id": row.get("id", index),
            "text_sha256": _item_sha256(row),
            **({} if group is None else {"group": group}),
            **item,
        }
        for index, (row, group, item) in enumerate(zip(rows, groups(rows), found.items, strict=True))
    ]
    return found._replace(items=tallied(task, items, language))


def _item_sha256(row: Row) -> str:
    """16 digits of the SHA-256 of the text, or of the whole row where it has no text alone."""
    text = str(row["text"]) if "text" in row else json.dumps(row, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _labelled(labels: Sequence[Any], gold: Sequence[Any], scores: Sequence[Any]) -> list[dict[str, Any]]:
    """Of equal scores the label that stands first wins."""
    return [
        {
            "gold": truth,
            "predicted": labels[int(row.argmax())],
            "scores": {str(label): float(value) for label, value in zip(labels, row, strict=True)},
        }
        for truth, row in zip(gold, scores, strict=True)
    ]


def _classified(ask: Ask, scores: Sequence[Any], truncated: int) -> Answers:
    gold = [ask.task.labels[index] for index in label_indices(ask.rows, ask.task, ask.where)]
    return Answers(_labelled(ask.task.labels, gold, scores), truncated)


def _head_learn(ask: Ask) -> Any:
    return head_examples(ask.rows, ask.loaded.tokenizer, ask.task, longest=ask.longest, where=ask.where)


def _head_say(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    made = _head_learn(ask)
    return _classified(ask, list(scoring.head_scores(model, made, batch_tokens)), made.truncated)


def _word_learn(ask: Ask) -> Examples:
    family = ask.loaded.family
    return prompt_examples(
        ask.rows, ask.loaded.tokenizer, ask.task, longest=ask.longest, where=ask.where, family=family
    )


def _word_say(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    choose = scoring.cloze_scores if ask.loaded.kind == "masked-lm" else scoring.word_scores
    texts = [str(row["text"]) for row in ask.rows]
    scores, truncated = choose(
        model, texts, ask.loaded.tokenizer, ask.task, longest=ask.longest, batch_tokens=batch_tokens
    )
    return _classified(ask, list(scores), truncated)


def _nearest_say(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    return _classified(ask, *nearest_scores(model, ask.rows, ask.loaded.tokenizer, ask.task, longest=ask.longest))


def _pair_learn(ask: Ask) -> Any:
    return pair_examples(ask.task, ask.rows, ask.loaded.tokenizer, ask.longest, ask.where)


def _pair_say(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    made = _pair_learn(ask)
    return _classified(ask, list(choice_head_scores(model, made, batch_tokens)), made.truncated)


def _pair_cloze(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    prompts = [ASKED[ask.task.kind].prompt(ask.task, row) for row in ask.rows]
    words = answer_pieces(ask.loaded.tokenizer, ask.task)
    scores, truncated = scoring.cloze_of(
        model, prompts, words, ask.loaded.tokenizer, limit=ask.limit, batch_tokens=batch_tokens
    )
    return _classified(ask, list(scores), truncated)


def _choice_learn(ask: Ask) -> Any:
    return choice_examples(ask.task, ask.rows, ask.loaded.tokenizer, ask.longest, ask.where)


def _choice_say(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    made = _choice_learn(ask)
    scores = choice_head_scores(model, made, batch_tokens)
    return Answers(_labelled(range(len(ask.task.choices)), made.labels, list(scores)), made.truncated)


def _span_learn(ask: Ask) -> Any:
    return span_examples(ask.task, ask.rows, ask.loaded.tokenizer, ask.longest)


def _span_say(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    found = span_answers(ask.task, ask.rows, model, _span_learn(ask), batch_tokens)
    items = [
        {"gold": list(row["answers"]), "predicted": answer.text, "start": answer.start, "score": answer.score}
        for row, answer in zip(ask.rows, found, strict=True)
    ]
    return Answers(items, 0, sum(not answer.text for answer in found))  # long contexts are read in windows


def _tag_learn(ask: Ask) -> Any:
    return tag_examples(ask.task, ask.rows, ask.loaded.tokenizer, ask.longest)


def _tag_say(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    made = _tag_learn(ask)
    found = predicted_tags(ask.task, ask.rows, model, made, batch_tokens)
    items = [{"gold": row["tags"], "predicted": tags} for row, tags in zip(ask.rows, found, strict=True)]
    return Answers(items, made.truncated)


def _answer_learn(ask: Ask) -> Examples:
    way = ASKED[ask.task.kind]
    taught = [(way.prompt(ask.task, row), answer) for row in ask.rows for answer in way.answers(ask.task, row)]
    return answer_examples(
        [prompt for prompt, _ in taught],
        [answer for _, answer in taught],
        ask.loaded.tokenizer,
        max_length=ask.task.max_length,
        longest=ask.longest,
        where=ask.where,
        family=ask.loaded.family,
        chat=ask.task.chat,
        leave_out=ask.task.too_long == "leave-out",
    )


def _answer_say(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    """By log-likelihood where the task has choices (and does not ask for ``generate``), else written."""
    way, task = ASKED[ask.task.kind], ask.task
    prompts = [way.prompt(task, row) for row in ask.rows]
    if way.choices is None or task.answer_by == "generate" or task.answer_after:
        return _written(ask, model, batch_tokens)
    choices = [way.choices(task, row) for row in ask.rows]
    scores, truncated = choice_scores(
        model, prompts, choices, ask.loaded.tokenizer, longest=ask.limit, batch_tokens=batch_tokens,
        normalised=task.normalised, chat=task.chat,
    )  # fmt: skip
    labels = list(getattr(task, "labels", None) or range(len(task.choices)))
    gold = [row["label"] for row in ask.rows]
    return Answers(_labelled(labels, gold, scores), truncated)


_WRITTEN, _THOUGHT = 48, 256
"""Pieces that a label or a choice may take when it is written; and, at least, what leads to an answer."""


def _written(ask: Ask, model: nn.Module, batch_tokens: int) -> Answers:
    way, task = ASKED[ask.task.kind], ask.task
    texts, truncated = generate(
        model,
        [way.prompt(task, row) for row in ask.rows],
        ask.loaded.tokenizer,
        max_new_tokens=getattr(task, "max_new_tokens", _WRITTEN),
        thought=_THOUGHT if task.answer_after else 0,
        stop=() if task.answer_after else getattr(task, "stop", ("\n",)),
        longest=ask.limit,
        batch_tokens=batch_tokens,
        chat=task.chat,
    )
    found = [_after(task.answer_after, text) for text in texts]
    read = [way.read(task, row, answer) for row, (answer, _) in zip(ask.rows, found, strict=True)]
    items = [
        {"gold": _gold(task, row), "predicted": predicted, "written": text}
        for row, (predicted, _), text in zip(ask.rows, read, texts, strict=True)
    ]
    unread = sum(not (well and there) for (_, well), (_, there) in zip(read, found, strict=True))
    return Answers(items, truncated, unread)


def _after(mark: str | None, text: str) -> tuple[str, bool]:
    """The line that follows the first mark, and whether there is one; all of the text where there is none."""
    if mark is None or mark not in text:
        return text, mark is None
    after = text.partition(mark)[2]
    return after.strip().partition("\n")[0], True


def _gold(task: Any, row: Row) -> Any:
    names = {"span": "answers", "tagging": "tags", "generation": getattr(task, "reference", "")}
    return row[names.get(task.kind, "label")]


def _segments(ask: Ask) -> Examples:
    texts = [str(row["text"]) for row in ask.rows]
    return _SEGMENTS[ask.loaded.kind](
        texts, ask.loaded.tokenizer, ask.task, seed=ask.seed, longest=ask.longest, where=ask.where
    )


_SEGMENTS: dict[Kind, Callable[..., Examples]] = {
    "masked-lm": partial(segments, masked=True),
    "causal-lm": partial(segments, masked=False),
    "sequence-to-sequence": denoising_pairs,
}


def _contrast(ask: Ask) -> Examples:
    texts = [str(row["text"]) for row in ask.rows]
    return contrast(texts, ask.loaded, ask.task, seed=ask.seed, longest=ask.longest, where=ask.where)


def _alignment(ask: Ask) -> Examples:
    texts, pivots = ([str(row[name]) for row in ask.rows] for name in ("text", "pivot"))
    return alignment(texts, pivots, ask.loaded, ask.task, longest=ask.longest, where=ask.where)


_WORDS, _WRITING = Way(_word_learn, _word_say), Way(_answer_learn, _answer_say)
_WRITERS: dict[Kind, Way] = {"causal-lm": _WRITING, "sequence-to-sequence": _WRITING}
_TEXT: Way = Way(_segments, None)

KINDS: dict[str, TaskKind] = {
    "classification": TaskKind(
        "sequence-classification",
        lambda task: task.labels,
        {
            "sequence-classification": Way(_head_learn, _head_say),
            "masked-lm": Way(None, _word_say),
            "sentence-encoder": Way(None, _nearest_say),
            "causal-lm": _WORDS,
            "sequence-to-sequence": _WORDS,
        },
    ),
    "pair-classification": TaskKind(
        "sequence-classification",
        lambda task: task.labels,
        {"sequence-classification": Way(_pair_learn, _pair_say), "masked-lm": Way(None, _pair_cloze), **_WRITERS},
    ),
    "multiple-choice": TaskKind(
        "multiple-choice", lambda task: None, {"multiple-choice": Way(_choice_learn, _choice_say), **_WRITERS}
    ),
    "span": TaskKind(
        "question-answering",
        lambda task: ("start", "end"),
        {"question-answering": Way(_span_learn, _span_say), **_WRITERS},
    ),
    "tagging": TaskKind(
        "token-classification", tag_names, {"token-classification": Way(_tag_learn, _tag_say), **_WRITERS}
    ),
    "generation": TaskKind("sequence-classification", lambda task: None, _WRITERS),
    "sentence-contrast": TaskKind(
        None, lambda task: None, {"sentence-encoder": Way(_contrast, None)}, "sentence-encoder"
    ),
    "sentence-alignment": TaskKind(
        None, lambda task: None, {"sentence-encoder": Way(_alignment, None)}, "sentence-encoder"
    ),
    "language-modeling": TaskKind(
        None, lambda task: None, {"masked-lm": _TEXT, "causal-lm": _TEXT, "sequence-to-sequence": _TEXT}
    ),
}
