"""How models that write are asked and read: chats in every kind of task, choices, numbers, where answers end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from adamergex.backbones import loading
from adamergex.backbones.loading import Loaded
from adamergex.errors import ConfigError
from adamergex.jobs.settings import MultipleChoice, Task
from adamergex.metrics.numbers import last_number
from adamergex.metrics.spans import span_scores
from adamergex.tasks import running
from adamergex.tasks.answering import scoring
from adamergex.tasks.answering.generating import _until
from adamergex.tasks.datasets import mgsm
from adamergex.tasks.kinds import kind_of
from test_generating import CHAT

REAL = os.environ.get("ADAMERGEX_DATA")
ROWS: dict[str, dict[str, Any]] = {
    "classification": {"text": "A ferry carried tourists", "label": "travel"},
    "pair-classification": {"premise": "A ferry", "hypothesis": "The train", "label": "travel"},
    "multiple-choice": {"premise": "The cook", "choice1": "bread with butter", "choice2": "the train", "label": 0},
    "span": {"context": "A ferry carried tourists", "question": "The train", "answers": ["ferry"], "starts": [2]},
    "tagging": {"tokens": ["A", "ferry"], "tags": ["O", "B-LOC"]},
    "generation": {"text": "The cook baked", "target": "bread"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "classification": {"labels": ("food", "travel"), "normalised": True},
    "pair-classification": {"labels": ("food", "travel")},
    "tagging": {"types": ("LOC",)},
}


@pytest.fixture
def chatty(families: dict[str, str]) -> Loaded:
    found = loading.load(families["llama"], "causal-lm")
    found.tokenizer.chat_template = CHAT
    return found


def task_of(kind: str, **more: Any) -> Any:
    return TypeAdapter(Task).validate_python({"kind": kind, "max_length": 96, **OPTIONS.get(kind, {}), **more})


@pytest.mark.parametrize("kind", ROWS)
def test_a_chat_is_taught_and_asked_in_the_template(chatty: Loaded, kind: str) -> None:
    task, plain = task_of(kind, chat=True), task_of(kind)
    row, tokenizer = ROWS[kind], chatty.tokenizer
    taught, without = (running.train_examples(chosen, [row], chatty) for chosen in (task, plain))
    asked, said = (
        tokenizer.decode(made.prompts[0]).replace("<unk>", "").replace("<s>", "<s> ") for made in (without, taught)
    )
    assert said.split() == ["<s>", "user", *asked.split()[1:], "bot"] and taught.answers == without.answers
    if kind in ("classification", "pair-classification", "multiple-choice"):
        (item,) = running.predict(task, [row], chatty, chatty.model, "en", 4096).items
        words = [row[name] for name in task.choices] if kind == "multiple-choice" else list(task.labels)
        for word, score in zip(words, item["scores"].values(), strict=True):
            assert score == pytest.approx(likelihood(chatty, taught.prompts[0], word, task.normalised), abs=1e-4)


def likelihood(loaded: Loaded, prompt: list[int], word: str, normalised: bool) -> float:
    """log p of a word after a prompt, from one plain pass over both."""
    bot, whole = (loaded.tokenizer(text, add_special_tokens=False).input_ids for text in ("bot", f"bot {word}"))
    pieces = whole[len(bot) :]
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([prompt + pieces])).logits[0].log_softmax(-1)
    total = sum(float(logits[len(prompt) - 1 + place, piece]) for place, piece in enumerate(pieces))
    return total / len(word) if normalised else total


def test_an_encoder_does_not_chat(tiny_encoder: Path) -> None:
    with pytest.raises(ConfigError, match="an encoder does not chat"):
        running.model_kind(task_of("classification", chat=True), str(tiny_encoder))


def test_scores_a_character(chatty: Loaded) -> None:
    task = task_of("classification", normalised=False)
    plain, _ = scoring.word_scores(chatty.model, ["A"], chatty.tokenizer, task, longest=96, batch_tokens=99)
    divided, _ = scoring.word_scores(
        chatty.model, ["A"], chatty.tokenizer, task_of("classification"), longest=96, batch_tokens=99
    )
    assert divided[0] == pytest.approx(plain[0] / [len("food"), len("travel")])


CHOICES = {"premise": "?", "choice1": "It fell.", "choice2": "It flew."}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(A)", 0), ("A.", 0), ("B: because", 1), ("2", 1), ("2)", 1), ("[B]", 1), ("The answer is (B).", 1),
        ("it flew", 1), ("A woman fell", None), ("2 things", None),
        ("is it (A) or (B)?", None), ("(A), not (B)", 0), ("C.", None), ("", None),
        ("I do not know", None),
    ],
)  # fmt: skip
def test_written_choices(text: str, expected: int | None) -> None:
    found = kind_of("multiple-choice").writing.read(MultipleChoice(), CHOICES, text)
    assert found == (expected, expected is not None)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("\nParis\nQuestion: what", ("\n",), ("\nParis", True)),
        (" \n\n Paris", ("\n",), (" \n\n Paris", False)),
        ("Paris\n", ("\n",), ("Paris", True)),
        ("\n", ("\n",), ("\n", False)),
        ("\nQuestion: what", ("\nQuestion:",), ("", True)),
    ],
)
def test_a_line_break_before_an_answer_does_not_end_it(
    text: str, stop: tuple[str, ...], expected: tuple[str, bool]
) -> None:
    assert _until(text, stop) == expected


def test_an_answer_without_a_number_cannot_be_read() -> None:
    read = kind_of("generation").writing.read
    assert read(mgsm.TASK, {}, "so the answer is ১২") == ("so the answer is ১২", True)
    assert read(mgsm.TASK, {}, "I do not know") == ("I do not know", False)
    assert read(task_of("generation"), {}, "I do not know") == ("I do not know", True)


@pytest.mark.parametrize(
    ("text", "number"),
    [("答案是1，234", "1234"), ("共有3，4", "4"), ("1，2345", "2345"), ("-$5", "-5"), ("3-$5", "5"), ("$5", "5")],
)
def test_full_width_groups_and_signed_amounts(text: str, number: str) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize("code", ["zh", "zho_Hans", "cmn-Hans"])
def test_rules_by_other_codes_of_a_language(code: str) -> None:
    assert span_scores(["在1932年"], [["1932年"]], code).f1 == pytest.approx(80)


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize("language", mgsm.LANGUAGES)
def test_no_question_of_mgsm_can_be_cut(language: str) -> None:
    """A piece has at least one byte in every tokenizer that falls back to bytes."""
    longest = max(len(mgsm.prompt(row).encode()) for row in mgsm.rows(str(REAL), language))
    assert longest + 2 + mgsm.TASK.max_new_tokens <= mgsm.TASK.max_length


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        ("Question: {text}", "Question: why?", "Question: why?"),
        ("Say it.\nQUESTION : {text}", " question：why?", "Say it.\nQUESTION : why?"),
        ("{text} Question: {text}", "Question: why?", "Question: why? Question: why?"),
        ("问题：{text}", "问题: 为什么", "问题：为什么"),
        ("Question: {text}", "Questions: why?", "Question: Questions: why?"),
        ("The {text}", "The end", "The The end"),
        ("Why? {text}", "Why? Because: so", "Why? Why? Because: so"),
    ],
)
def test_a_prefix_is_not_doubled(template: str, text: str, expected: str) -> None:
    assert (
        kind_of("generation").writing.prompt(task_of("generation", prompt=template), {"text": text}).whole == expected
    )
