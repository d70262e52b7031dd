"""Examples: exact segments, fresh masks, prompts that are never cut at their end, and scores without shortcuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from topic_sentences import sentences

from adamergex.backbones import loading
from adamergex.backbones.logits import IGNORE
from adamergex.errors import ConfigError, DataError
from adamergex.jobs.settings import Classification, LanguageModeling
from adamergex.tasks import classification, language_modeling
from adamergex.tasks.answering import choice_heads, scoring

TASK = Classification(labels=("food", "sports", "travel"))
ROWS = [{"text": text, "label": "food"} for text in sentences()[:5]]


@pytest.fixture
def tokenizer(checkpoints: dict[str, str]):
    return loading.tokenizer(checkpoints["xlm-r"])


@pytest.mark.parametrize("masked", [True, False])
def test_segments_are_exact_and_hold_the_text_in_order(tokenizer, masked: bool) -> None:
    task = LanguageModeling(segment=16, segments=5)
    made = language_modeling.segments(sentences(), tokenizer, task, masked=masked, seed=0, longest=96)
    assert made.ids.shape == (5, 16)
    assert (made.ids[:, 0] == 0).all() and ((made.ids[:, -1] == 2).all() if masked else True)
    inner = made.ids[:, 1:-1] if masked else made.ids[:, 1:]
    stream = [piece for text in sentences() for piece in [*tokenizer(text, add_special_tokens=False).input_ids, 2]]
    assert inner.reshape(-1).tolist() == stream[: inner.size]


def test_too_little_text_tells_how_much_there_is(tokenizer) -> None:
    task = LanguageModeling(segment=16, segments=10_000)
    there = language_modeling.count_segments(sentences(), tokenizer, 16, masked=True)
    with pytest.raises(DataError, match=rf"too little text[\s\S]*fr\.txt[\s\S]*{there} segments of 16"):
        language_modeling.segments(sentences(), tokenizer, task, masked=True, seed=0, longest=96, where="fr.txt")
    every = language_modeling.segments(
        sentences(), tokenizer, LanguageModeling(segment=16), masked=True, seed=0, longest=96
    )
    assert len(every.ids) == there
    for size in (2, 97):
        with pytest.raises(ConfigError, match="do not fit the model"):
            language_modeling.segments(
                sentences(), tokenizer, LanguageModeling(segment=size), masked=True, seed=0, longest=96
            )


def test_masks_are_berts_fresh_every_step_and_repeatable(tokenizer) -> None:
    task = LanguageModeling(segment=64, mask_rate=0.3)
    made = language_modeling.segments(sentences() * 20, tokenizer, task, masked=True, seed=7, longest=96)
    rows = list(range(len(made.ids)))
    batch, again, later = made.batch(rows, 3), made.batch(rows, 3), made.batch(rows, 4)
    assert torch.equal(batch["input_ids"], again["input_ids"]) and torch.equal(batch["labels"], again["labels"])
    assert not torch.equal(batch["labels"], later["labels"])
    ids, inputs, labels = torch.from_numpy(made.ids), batch["input_ids"], batch["labels"]
    chosen = labels != IGNORE
    assert torch.equal(inputs[~chosen], ids[~chosen]) and torch.equal(labels[chosen], ids[chosen])
    assert not (chosen & (ids <= 4)).any()  # no special piece, separators inside included
    ordinary = int((ids > 4).sum())
    masked, kept = inputs[chosen] == 4, inputs[chosen] == ids[chosen]
    assert abs(int(chosen.sum()) / ordinary - 0.3) < 0.02
    assert abs(float(masked.float().mean()) - 0.8) < 0.02
    assert abs(float(kept.float().mean()) - 0.1) < 0.02  # and 1/80 of the tenth that is replaced
    assert int(inputs[chosen][~masked & ~kept].min()) > 4


def test_causal_segments_predict_every_next_piece(tokenizer) -> None:
    made = language_modeling.segments(
        sentences(), tokenizer, LanguageModeling(segment=16), masked=False, seed=0, longest=96
    )
    batch = made.batch([0, 1], 0)
    assert torch.equal(batch["labels"], batch["input_ids"])


def test_only_the_answer_is_learned_and_the_prompts_end_is_never_cut(tokenizer) -> None:
    rows = [{"text": "The cook baked " + "bread and " * 60, "label": "travel"}, {"text": "A ferry", "label": "food"}]
    task = TASK.model_copy(update={"max_length": 40})
    made = classification.prompt_examples(rows, tokenizer, task, longest=96)
    assert made.truncated == 1 and made.lengths[0] in (39, 40)
    assert tokenizer.decode(made.prompts[0], skip_special_tokens=True).endswith("Topic:")
    assert tokenizer.decode(made.prompts[0], skip_special_tokens=True).startswith("The cook baked bread")
    assert tokenizer.decode(made.answers[0]).strip() == "travel</s>"
    batch = made.batch([0, 1], 0)
    for row, (prompt, answer) in enumerate(zip(made.prompts, made.answers, strict=True)):
        learned = batch["labels"][row] != IGNORE
        assert batch["labels"][row][learned].tolist() == answer
        assert learned.nonzero()[0] == len(prompt)
        assert int(batch["attention_mask"][row].sum()) == len(prompt) + len(answer)


def test_answer_pieces_are_those_that_follow_the_prompt(tokenizer) -> None:
    for label, pieces in zip(TASK.labels, classification.answer_tokens(tokenizer, TASK), strict=True):
        start = tokenizer("A ferry\nTopic:", add_special_tokens=False).input_ids
        assert tokenizer(f"A ferry\nTopic: {label}", add_special_tokens=False).input_ids == start + pieces


def test_encoders_truncate_the_text_only(tokenizer) -> None:
    rows = [{"text": "bread and " * 60, "label": "food"}, {"text": "A ferry", "label": "travel"}]
    made = choice_heads.text_examples(TASK, rows, tokenizer, 30, None)
    assert made.truncated == 1 and made.labels == [0, 2]
    ids = made.sequences.ids
    assert [row[0] for row in ids] == [0, 0] and [row[-1] for row in ids] == [2, 2]
    assert max(made.lengths) == 30


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (TASK, [{"text": "x", "label": "sport"}], r"not one of the task's[\s\S]*row 1[\s\S]*'sports'"),
        (TASK, [{"text": "x"}], r"has no label[\s\S]*columns text"),
    ],
)
def test_wrong_labels_are_explained(tokenizer, task, rows, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choice_heads.text_examples(task, rows, tokenizer, 96, "en.tsv")


def test_impossible_prompts_are_explained(tokenizer) -> None:
    for update, message in (
        ({"prompt": "Topic:"}, "no place for the text"),
        ({"max_length": 10}, "no room for the text"),
        ({"words": {"food": "sports"}}, "has the same tokens as another"),
    ):
        with pytest.raises(ConfigError, match=message):
            classification.prompt_examples(ROWS, tokenizer, TASK.model_copy(update=update), longest=96)


def test_word_scores_are_sums_over_the_words_pieces(checkpoints: dict[str, str]) -> None:
    """Against one forward pass a text and label, without padding or cache."""
    loaded = loading.load(checkpoints["llama"], "causal-lm")
    task = TASK.model_copy(update={"labels": ("food", "foods", "s", "travel today")})
    texts = [row["text"] for row in ROWS]
    scores, truncated = scoring.word_scores(loaded.model, texts, loaded.tokenizer, task, longest=96, batch_tokens=200)
    assert truncated == 0
    for row, text in enumerate(texts):
        for column, label in enumerate(task.labels):
            start = len(loaded.tokenizer(f"{text}\nTopic:").input_ids) - 1  # the template closes with </s>
            ids = loaded.tokenizer(f"{text}\nTopic: {label}").input_ids  # </s> counts: "food" begins "foods"
            with torch.inference_mode():
                found = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(float(found[place - 1, ids[place]]) for place in range(start, len(ids)))
            assert scores[row, column] == pytest.approx(expected, abs=1e-4)


def test_cloze_scores_are_means_over_masks(checkpoints: dict[str, str]) -> None:
    loaded = loading.load(checkpoints["xlm-r"], "masked-lm")
    texts = [ROWS[0]["text"], "A <mask> of beans"]
    scores, _ = scoring.cloze_scores(loaded.model, texts, loaded.tokenizer, TASK, longest=96, batch_tokens=200)
    for row, text in enumerate(texts):
        for column, answer in enumerate(classification.answer_tokens(loaded.tokenizer, TASK)):
            prompt = loaded.tokenizer(f"{text}\nTopic:").input_ids[:-1]
            ids = [*prompt, *[4] * len(answer), 2]
            with torch.inference_mode():
                found = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            values = [float(found[len(prompt) + place, piece]) for place, piece in enumerate(answer)]
            assert scores[row, column] == pytest.approx(np.mean(values), abs=1e-4)


def test_batches_by_length_hold_everything_once() -> None:
    lengths = [5, 90, 7, 7, 30, 2]
    found = list(scoring.by_length(lengths, 64))
    assert sorted(index for batch in found for index in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 64 for batch in found)
