"""Laws that hold for any input: self-match is 100, order of items does not matter, scores stay within 0 and 100."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamergex.errors import DataError
from adamergex.metrics import accuracy, entities, numbers, rouge, spans
from adamergex.metrics.echo import without_prompt

LETTERS = "abc ABCéñ中国政府ไทยกั้ভাংলা।हिनदीعربي,.!1 2\n"
WORDS = st.text(LETTERS, min_size=1, max_size=15).filter(rouge.mixed)
TEXT = st.text(LETTERS, max_size=15)
TAG = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
SENTENCE = st.lists(st.tuples(TAG, TAG), min_size=1, max_size=6)
LANGUAGE = st.sampled_from(["en", "es", "de", "vi", "ar", "hi", "zh", "th", "sw", "el"])


def rouge_score(predictions: Sequence[str], references: Sequence[str]) -> float:
    return rouge.corpus_rouge_l(predictions, references)


def entity_f1(predictions: Any, references: Any) -> float:
    return entities.entity_scores(predictions, references).f1


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_a_text_matches_itself(texts: list[str]) -> None:
    assert rouge_score(texts, texts) == pytest.approx(100)


@pytest.mark.parametrize(
    "text",
    [
        "ฝนตกหนักในกรุงเทพฯ วันนี้",
        "中国政府宣布新政策。",
        "أعلنت الحكومة سياسة جديدة.",
        "বাংলাদেশে ভারী বৃষ্টি হয়েছে।",
        "भारत ने मैच जीता।",
        "東京で大雨が降った。",
        "မိုးသည်းထန်စွာရွာသည်",
    ],
)
def test_summaries_in_every_script_score_100_against_themselves_and_less_cut_in_half(text: str) -> None:
    assert rouge.corpus_rouge_l([text], [text]) == 100
    assert 0 < rouge.corpus_rouge_l([text[: len(text) // 2]], [text]) < 100


@given(WORDS, LANGUAGE)
def test_an_answer_matches_itself(text: str, language: str) -> None:
    found = spans.best_over_answers(text, ["something else", text], language)
    assert found.exact_match == 100
    assert found.f1 == (100 if spans.normalised(text, language) else 0)


@given(st.lists(SENTENCE, min_size=1, max_size=4))
def test_tags_match_themselves(sentences: list[list[tuple[str, str]]]) -> None:
    tags = [[first for first, _ in sentence] for sentence in sentences]
    assert entity_f1(tags, tags) == (100 if any(entities.entities(sentence) for sentence in tags) else 0)


@given(st.integers(-(10**40), 10**40))
def test_a_number_is_found_in_any_writing(number: int) -> None:
    thai = str(number).translate(str.maketrans("0123456789", "๐๑๒๓๔๕๖๗๘๙"))
    for text in (f"2 + 2, so {number}.", f"The answer is {number:,}", f"{number}.00", f"คำตอบคือ {thai}"):
        assert numbers.last_number(text) == str(number)


METRICS: dict[str, tuple[Callable[..., float], Any]] = {
    "accuracy": (accuracy.accuracy, st.tuples(TAG, TAG)),
    "exact match": (numbers.exact_match, st.tuples(TEXT, st.integers(-20, 20))),
    "rougeL": (rouge_score, st.tuples(TEXT, WORDS)),
    "span F1": (lambda p, r: spans.span_scores(p, [[gold] for gold in r], "ar").f1, st.tuples(TEXT, WORDS)),
    "span EM": (lambda p, r: spans.span_scores(p, [[gold] for gold in r], "zh").exact_match, st.tuples(TEXT, WORDS)),
    "entity F1": (entity_f1, SENTENCE.map(lambda pairs: tuple(map(list, zip(*pairs, strict=True))))),
}


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=50)
@given(data=st.data())
def test_order_of_items_does_not_matter_and_scores_are_percent(name: str, data: st.DataObject) -> None:
    metric, item = METRICS[name]
    items = data.draw(st.lists(item, min_size=1, max_size=5))
    shuffled = random.Random(0).sample(items, len(items))
    value, again = (metric([p for p, _ in some], [r for _, r in some]) for some in (items, shuffled))
    assert again == pytest.approx(value, abs=1e-9)
    assert 0 <= value <= 100 + 1e-9


@given(st.lists(TAG, max_size=8))
def test_repaired_tags_are_iob2_and_hold_the_same_entities(tags: list[str]) -> None:
    repaired = entities.repaired(tags)
    entities.check_iob2(repaired, "here")
    assert entities.entities(repaired, "strict") == entities.entities(tags, "lenient") == entities.entities(repaired)
    assert entities.entities(tags, "strict") <= {(b, e, k) for b, e, k in entities.entities(tags)}


@given(st.text("ab", max_size=12), st.text("ab", max_size=12))
def test_the_longest_common_subsequence_is_that_of_the_table(first: str, second: str) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    length = table[-1][-1]
    expected = 200 * length / (len(first) + len(second)) if length else 0
    assert rouge.rouge_l(first, second, list).f1 == pytest.approx(expected)


@given(st.text(LETTERS, max_size=30), st.text("xyz", min_size=1, max_size=5))
def test_the_prompt_is_cut_off_whatever_its_white_space(prompt: str, answer: str) -> None:
    changed = "  ".join(prompt.split())
    assert without_prompt(f"{changed} {answer}", prompt).strip() == answer
    assert without_prompt(answer, prompt + " and more") == answer


@pytest.mark.parametrize("metric", [accuracy.accuracy, numbers.exact_match, rouge_score, entity_f1, None])
def test_lengths_nothing_and_a_single_string_are_refused(metric: Any) -> None:
    metric = metric or partial(spans.span_scores, language="en")
    with pytest.raises(DataError, match="numbers of predictions"):
        metric(["a"], ["a", "b"])
    with pytest.raises(DataError, match="nothing to score"):
        metric([], [])
    with pytest.raises(DataError, match="not a list"):
        metric("ab", ["a", "b"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: numbers.exact_match(["1"], ["none"]), "holds no number"),
        (lambda: numbers.exact_match(["1"], [True]), "holds no number"),
        (lambda: numbers.exact_match(["1"], [float("nan")]), "holds no number"),
        (lambda: numbers.exact_match(["1"], [1], extractor="harness"), "no extractor 'harness'"),
        (lambda: numbers.exact_match([None], [1]), "not text"),
        (lambda: spans.span_scores(["a"], [[]], "en"), "empty"),
        (lambda: spans.span_scores(["a"], [["a", " "]], "en"), "empty"),
        (lambda: spans.span_scores(["a"], ["a"], "en"), "not a list"),
        (lambda: spans.normalised("a", "en", "mlqaa"), "no such normalisation"),
        (lambda: rouge.corpus_rouge_l(["a"], ["?!"]), "empty"),
        (lambda: rouge.corpus_rouge_l(["a"], [[]]), "empty"),
        (lambda: rouge.corpus_rouge_l(["a"], ["a"], tokenizer="mix"), "perhaps 'mixed'"),
        (lambda: entities.entity_scores([["O"]], [["O", "O"]]), "sentence 0"),
        (lambda: entities.entity_scores([["PER"]], [["O"]]), "tag is not known"),
        (lambda: entities.entity_scores([["O"]], [["O"]], mode="loose"), "no mode 'loose'"),
        (lambda: entities.check_iob2(["O", "I-PER"], "here"), "here, token 1"),
        (lambda: entities.check_iob2(["B-DATE"], "here", ["PER"]), "type is not known"),
    ],
)
def test_errors_say_what_and_where(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
