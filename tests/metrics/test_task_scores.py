"""Every task's ``score``: gold scores 100, an echoed prompt 0, nothing 0; what does not fit is refused."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from adamergex.errors import DataError
from adamergex.tasks.datasets import mgsm, ner, sib200, tata, xcopa, xlsum, xnli, xquad

# Row, reference, and the answer that is right.
ITEMS: dict[ModuleType, list[tuple[dict[str, Any], Any, Any]]] = {
    mgsm: [
        ({"question": "Bei ya vitabu 3 ni 1,500. Kimoja ni bei gani?"}, 500, "1,500 / 3 = 500. Jibu ni 500."),
        ({"question": "রহিমের ৪টি কলম আছে, সে ২টি দিল। কয়টি রইল, যদি ৭টি কেনে?"}, "9", "উত্তর ৯।"),
    ],
    xcopa: [({"premise": "Mvua ilinyesha.", "question": "effect", "choice1": "Kavu.", "choice2": "Maji."}, 1, 1)],
    xnli: [
        ({"premise": "Soko hufunguliwa saa kumi na mbili.", "hypothesis": "Soko lipo."}, "entailment", "entailment"),
        ({"premise": "Soko hufunguliwa saa kumi na mbili.", "hypothesis": "Halipo."}, 2, "contradiction"),
    ],
    sib200: [({"text": "The ferry leaves twice a day."}, "travel", "travel")],
    xquad: [
        ({"context": "สะพานสร้างเสร็จในปี 1932", "question": "เมื่อใด?"}, ["ในปี 1932", "ปี 1932"], "ปี 1932"),
        ({"context": "桥于1932年建成。", "question": "何时?"}, ["1932年"], "“1932年”"),
    ],
    xlsum: [({"title": "ฝนตกหนัก", "text": "ฝนตกหนักในกรุงเทพฯ วันนี้"}, "ฝนตกในกรุงเทพฯ", "ฝนตกในกรุงเทพฯ")],
    tata: [({"input": "نسبة | (نساء، 17)"}, ["١٧ في المئة من النساء", "النساء: 17%"], "النساء: 17%")],
}
NEED_PROMPTS = (xquad, xlsum, tata)
"""Tasks whose answer shares words with the prompt: an echo scores 0 only where it is known to be one."""


@pytest.mark.parametrize("task", ITEMS, ids=lambda task: task.__name__)
def test_gold_scores_100_and_an_echo_and_nothing_0(task: ModuleType) -> None:
    rows, references, answers = map(list, zip(*ITEMS[task], strict=True))
    prompts = [task.prompt(row) for row in rows]
    options = {"prompts": prompts} if task in NEED_PROMPTS else {}
    gold, zero = dict.fromkeys(task.METRICS, pytest.approx(100)), dict.fromkeys(task.METRICS, 0)
    assert task.score(answers, references, "th", **options) == gold
    assert task.score(prompts, references, "th", **options) == zero
    assert task.score([""] * len(rows), references, "th", **options) == zero


@pytest.mark.parametrize("task", [mgsm, xquad, xlsum, tata], ids=lambda task: task.__name__)
def test_the_answer_after_an_echoed_prompt_counts(task: ModuleType) -> None:
    rows, references, answers = map(list, zip(*ITEMS[task], strict=True))
    prompts = [task.prompt(row) for row in rows]
    outputs = [f"{prompt}\n {answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    assert task.score(outputs, references, "zh", prompts=prompts) == dict.fromkeys(task.METRICS, pytest.approx(100))
    with pytest.raises(DataError, match="numbers of predictions"):
        task.score(outputs, references, "zh", prompts=[*prompts, "one more"])


def test_an_echoed_question_that_ends_with_its_answer_is_no_answer() -> None:
    question = mgsm.prompt({"question": "How much is 3 and 4, if it is 7?"})
    assert mgsm.score([question], [7], "en") == {"exact_match": 100}
    assert mgsm.score([question], [7], "en", prompts=[question]) == {"exact_match": 0}


def test_entities() -> None:
    gold = [["B-PER", "I-PER", "O"], ["O", "B-LOC", "I-LOC"]]
    assert ner.score(gold, gold, "sw") == {"f1": 100}
    assert ner.score([["O"] * 3] * 2, gold, "sw") == ner.score([[], []], gold, "sw") == {"f1": 0}
    broken = [["I-PER", "I-PER", "O"], ["O", "B-LOC", "I-LOC"]]
    assert ner.score(broken, gold, "sw") == {"f1": 100}
    assert ner.score(broken, gold, "sw", mode="strict")["f1"] == pytest.approx(200 / 3)
    for predictions, references, options, message in (
        (gold, broken, {}, "NER, reference 0, token 0"),
        ([["O"], ["O"]], gold, {}, "sentence 0"),
        ([["B-DATE", "O", "O"], []], gold, {"types": ("PER", "LOC")}, "type is not known"),
        ([["PER", "O", "O"], []], gold, {}, "tag is not known"),
    ):
        with pytest.raises(DataError, match=message):
            ner.score(predictions, references, "sw", **options)


def test_labels_are_names_or_their_numbers() -> None:
    assert xnli.score([0, "neutral", 2], ["entailment", 1, "contradiction"], "sw") == {"accuracy": 100}
    assert xcopa.score([0, "1", None, "(A)"], [0, 1, 0, 0], "th") == {"accuracy": 50}
    assert sib200.score(["it is about travel"], ["travel"], "en") == {"accuracy": 0}


@pytest.mark.parametrize("task", [xcopa, xnli, sib200], ids=lambda task: task.__name__)
def test_labels_that_are_not_known_are_refused(task: ModuleType) -> None:
    known = task.LABELS[0]
    for predictions, references in (([known], ["nonsense"]), ([known], [7]), ([known], [None]), ([7], [known])):
        with pytest.raises(DataError, match="label is not known"):
            task.score(predictions, references, "sw")
    with pytest.raises(DataError, match="numbers of predictions"):
        task.score([known], [known, known], "sw")


def test_xquad_in_xtremes_normalisation_and_with_two_gold_answers() -> None:
    predictions, references = ["La ciudad de México"], [["ciudad de México", "la Ciudad de México, D.F."]]
    assert xquad.score(predictions, references, "es") == {"exact_match": 100, "f1": 100}
    squad = xquad.score(predictions, references, "es", normalisation="squad")
    assert squad == {"exact_match": 0, "f1": pytest.approx(100 * 8 / 9)}
