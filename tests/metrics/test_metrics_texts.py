"""Texts that a reader cannot tell apart score alike in every metric; numbers are read as their language writes them."""

from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from adamergex.metrics import numbers, rouge, separators, spans
from adamergex.metrics.accuracy import gold_labels, predicted_labels
from adamergex.metrics.echo import without_prompt
from adamergex.metrics.text import comparable, is_blank
from adamergex.tasks.datasets import mgsm


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


ALIKE = [
    ("yo", nfd("Ẹ kú àárọ̀"), "Ẹ kú àárọ̀"),
    ("vi", nfd("Tiếng Việt"), "Tiếng Việt"),
    ("ko", nfd("대한민국"), "대한민국"),
    ("hi", nfd("क़लम"), "क़लम"),
    ("th", "กรุง\u200bเทพ", "กรุงเทพ"),
    ("km", "ភ្នំ\u200bពេញ", "ភ្នំពេញ"),
    ("my", "မြန်\u200bမာ", "မြန်မာ"),
    ("ar", "\u200fالقاهرة\u200e", "القاهرة"),
    ("fa", "می\u200cخواهم", "میخواهم"),
    ("de", "Schiff\u00adfahrt", "Schifffahrt"),
    ("en", "\u2068isolated\u2069 \ufeffword", "isolated word"),
    ("en", "☎\ufe0e call ☀\ufe0f", "☎ call ☀"),
    ("ja", "葛\U000e0100城", "葛城"),
    ("el", "α\u0301", "ά"),  # combining on a letter against one letter
    ("en", "\u212bngstro\u0308m", "Ångström"),  # the Angstrom sign
    ("en", "a\u034fb", "ab"),
    ("th", "ก\u0e4d\u0e32ลัง", "กำลัง"),  # AM in two parts
    ("th", "น\u0e49\u0e4d\u0e32", "น้ำ"),
    ("th", "น\u0e4d\u0e49\u0e32", "น้ำ"),
    ("lo", "ນ\u0ec9\u0ecd\u0eb2", "ນ້ຳ"),
    ("ml", "അവന\u0d4d\u200d", "അവൻ"),  # chillu with a joiner
    ("bn", "হঠাত\u09cd\u200d", "হঠাৎ"),
]


@pytest.mark.parametrize(("language", "one", "other"), ALIKE, ids=[row[0] for row in ALIKE])
def test_texts_that_look_alike_score_100(language: str, one: str, other: str) -> None:
    assert comparable(one) == comparable(other) == comparable(comparable(one))
    for tokenizer in ("mixed", "whitespace"):
        for predicted, gold in ((one, other), (other, one)):
            assert rouge.rouge_l(predicted, gold, tokenizer).f1 == 100
            assert rouge.corpus_rouge_l([predicted], [gold], tokenizer=tokenizer) == 100
    normalisations: tuple[spans.Normalisation, ...] = ("mlqa", "squad")
    for normalisation in normalisations:
        found = spans.best_over_answers(one, ["x", other], language, normalisation)
        assert found.exact_match == 100 and found.f1 == (100 if spans.normalised(other, language, normalisation) else 0)
    assert predicted_labels([one], [other], "here") == [other]
    assert without_prompt(f"{one} answer", other).strip() == "answer"


def test_other_texts_stay_other_texts() -> None:
    assert comparable("कि") != comparable("की") and comparable("ﬁ") == "ﬁ"  # NFC alone: no compatibility forms
    assert rouge.rouge_l("ดี", "ดื").f1 < 100
    assert is_blank(" \u200b\ufeff\u00a0") and not is_blank(".")


def test_thai_answers_are_measured_by_character() -> None:
    assert spans.span_scores(["กรุงเทพ"], [["กรุงไทย"]], "th").f1 == pytest.approx(100 * 2 * 5 / 14)
    assert spans.span_scores(["กรุง\u200bเทพ"], [["กรุงเทพ"]], "tha_Thai") == (100, 100)


NUMBERS = [
    ("fr", "12 500", "12500"), ("fr", "Il reste 12\u202f500,5 €.", "12500.5"), ("fr", "12\u00a0000", "12000"),
    ("ru", "Ответ — 1 000 000.", "1000000"), ("sv", "3 100 kronor", "3100"), ("es", "12 500", "12500"),
    ("de", "1.234", "1234"), ("de", "1.234.567,89", "1234567.89"), ("de", "1,5", "1.5"), ("de", "1.5", "1.5"),
    ("de", "0.125", "0.125"), ("de", "-1.234,5", "-1234.5"), ("de", "1,234.56", "1234.56"),
    ("de-CH", "12’500.50", "12500.5"), ("de", "12’500", "12500"), ("en", "12'500", "12500"),
    ("it", "12’500,5", "12500.5"),
    ("pt", "2.500", "2500"), ("tr", "2.500,75", "2500.75"), ("id", "10.000", "10000"), ("vi", "1.250.000", "1250000"),
    ("en", "1,234.5", "1234.5"), ("en", "1.234", "1.234"), ("sw", "1,500", "1500"), ("zh", "12,500", "12500"),
    ("hi", "१,२३,४५६", "123456"), ("bn", "১২,৩৪৫.৫", "12345.5"), ("ar", "١٬٢٣٤٫٥", "1234.5"), ("fa", "۱٬۲۳۴", "1234"),
    ("my", "၁၂၃", "123"), ("th", "๑,๒๓๔", "1234"), ("te", "౧౨", "12"), ("he", "\u200f-5", "-5"),
    ("de", "\u22121.234", "-1234"),
    ("deu_Latn", "1.234", "1234"), ("spa", "1.234", "1234"), ("zho_Hans", "1.234", "1.234"), ("bzd", "1.234", "1.234"),
    ("en", "12 000", "12000"), ("sw", "ni 12 500.", "12500"), ("en", "3 and 100", "100"), ("en", "0.5 100", "100"),
    ("ps", "١٬٢٣٤", "1234"), ("ps", "١٬٢٣٤٫٥", "1234.5"), ("de", "١٬٢٣٤", "1234"), ("ar", "١،٢٣٤", "1234"),
    ("ar", "٣، ١٠٠", "100"), ("en", "-$ 5", "-5"), ("de", "\u2212€ 1.234", "-1234"), ("pt", "-R$ 2,50", "-2.5"),
    ("en", "-₱1,200", "-1200"), ("en", "$10-$4", "4"),
    ("fr", "le 3 et 100", "100"), ("en", "12\u00a0500", "12500"), ("fr", "1 5000", "5000"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "text", "number"), NUMBERS)
def test_numbers_as_their_language_writes_them(language: str, text: str, number: str) -> None:
    expected = numbers.last_number(number)
    assert numbers.last_number(text, language) == expected
    assert mgsm.score([f"= {text}"], [number], language) == {"exact_match": 100}


def test_characters_of_scripts_without_spaces_stand_alone() -> None:
    assert rouge.tokens("𠮷野家 人々 ｱｲ") == ["𠮷", "野", "家", "人", "々", "ｱ", "ｲ"]


def test_a_file_of_numbers_is_read_in_its_language(tmp_path: Path) -> None:
    (tmp_path / "mgsm").mkdir()
    row = {"question": "?", "answer": "Das sind 1.234,5 m", "rationale": "1"}
    with gzip.open(tmp_path / "mgsm" / "de.exemplars.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n" + json.dumps({**row, "answer": 1.125}) + "\n")
    assert [found["answer"] for found in mgsm.rows(tmp_path, "de", "exemplars")] == ["1234.5", "1.125"]


def test_a_reference_in_text_is_read_as_the_answer_is() -> None:
    score: Callable[..., float] = numbers.exact_match
    assert score(["1.234"], ["1.234"], language="de") == score(["1.234"], [1234], language="de") == 100
    assert score(["1,5"], [1.5], language="de") == score(["1.5"], [1.5], language="de") == 100
    assert score(["1.234"], [1.234], language="en") == score(["1.234"], ["1.234"]) == 100
    # Published numbers of the peers stay theirs.
    assert score(["1.234"], ["1.234"], extractor="harness-flexible", language="de") == 100


def test_separators_are_those_of_cldr() -> None:
    assert separators.separators("de") == (".", ",") and separators.separators("fr").group == "\u202f"
    for unknown in ("", "../x", "qq", "x" * 99):
        assert separators.separators(unknown) == (",", ".")


def test_references_may_be_positions_in_text() -> None:
    """Hub datasets number their labels, and rows carry labels as text."""
    assert gold_labels(["2", 0, "b"], ("a", "b", "c"), "here") == ["c", "a", "b"]
    assert gold_labels(["1"], ("1", "0"), "here") == ["1"]  # a name before a position
