"""What models write is read back: an exact match first, then the longest match on word bounds."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamergex.jobs.settings import MultipleChoice, PairClassification
from adamergex.tasks.answering.written import exact, mentions, read_entities, sign, written_entities
from adamergex.tasks.kinds import kind_of


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


PAIRS = [
    ("She went", "She went home"),
    ("It", "Bit"),
    ("5", "15"),
    ("C", "C++"),
    ("5%", "5"),
    ("-3", "3"),
    ("5％", "5"),
    ("Café", "Cafe"),
    ("下雨", "下雨了"),
    ("彼は来た", "彼は来たか"),
    ("मैं गया", "मैं गयी"),
    ("काल", "कला"),
    ("มา", "ม้า"),
    ("ខែ", "ខៃ"),
    ("ကာ", "ကိ"),
    ("কথা", "কথো"),
    ("yes!", "yes?"),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_choice_that_is_written_out_is_read(pair: tuple[str, str]) -> None:
    row = {"premise": "?", "choice1": pair[0], "choice2": pair[1]}
    read = kind_of("multiple-choice").writing.read
    for number, text in enumerate(pair):
        for written in (text, nfd(text), f" {text}\n", f"\ufeff{text}", text.upper()):
            assert read(MultipleChoice(), row, written) == (number, True)


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        (("The man left.", "The man left early."), "I think the man left early, yes", [1]),
        (("The man left.", "The man left early."), "The man left because", [0]),
        (("no", "yes"), "I know nothing", []),
        (("no", "yes"), "No: I know", [0]),
        (("He", "She"), "She knows", [1]),
        (("10", "100"), "It is 100.", [1]),
        (("5", "6"), "1.5 or 1,5 metres", []),
        (("1", "1.5"), "about 1.5", [1]),
        (("entailment", "not entailment"), "This is not entailment", [1]),
        (("是", "不是"), "答案：不是。", [1]),
        (("是", "不是"), "答案是", [0]),
        (("ใช่", "ไม่ใช่"), "คำตอบคือไม่ใช่ครับ", [1]),
        (("กา", "ขา"), "กาา", [0]),  # a letter of a script without spaces
        (("ดี", "ร้าย"), "ดีี", []),  # another mark on the last letter
        (("पानी", "आग"), "पानीं", []),
        (("!", "?"), "what!", []),
        (("5", "-5"), "it is \u22125 degrees", [1]),
        (("5", "\u22125"), "it is -5 degrees", [1]),
        (("not_entailment", "entailment"), "not entailment", [0]),
    ],
)
def test_mentions_are_whole_words_and_the_longest(options: tuple[str, ...], text: str, expected: list[int]) -> None:
    assert mentions(text, options) == expected


def test_labels_are_read_by_their_words() -> None:
    task = PairClassification(labels=("e", "c"), words={"e": "yes", "c": "no"}, answer_by="generate")
    read = kind_of("pair-classification").writing.read
    found = {text: read(task, {}, text)[0] for text in ("Yes.", "I know: no", "nothing known", "no, not yes", "e")}
    assert found == {"Yes.": "e", "I know: no": "c", "nothing known": None, "no, not yes": "c", "e": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("２", 1), ("২।", None), ("২", 1), ("(২)", 1), ("（B）", 1), ("Ｂ．", 1), ("choice2", 1), ("-choice1: it", 0),
     ("2.5", None),     ("choice1 or choice2", None),
     ("**B**", 1), ('"A"', 0), ("“B”", 1), ("A'dan", None)],
)  # fmt: skip
def test_signs_in_any_script(text: str, expected: int | None) -> None:
    assert sign(text, 2) == expected


def test_equal_choices_are_not_told_apart_by_case_alone() -> None:
    assert exact("polish", ("Polish", "polish")) == 1 and exact("POLISH", ("Polish", "polish")) is None


TYPES = ["PER", "ORG", "LOC"]


def tagged(text: str) -> tuple[list[str], list[str]]:
    """Tokens and tags of "Juma/B-PER runs"."""
    pairs = [token.rpartition("/") if "/" in token else (token, "/", "O") for token in text.split()]
    return [token for token, _, _ in pairs], [tag for _, _, tag in pairs]


@pytest.mark.parametrize(
    "text",
    [
        "at Yahoo!/B-ORG Inc./I-ORG today",
        "the U.K./B-LOC and D.C./B-LOC",
        "Sammy/B-PER Davis/I-PER Jr./I-PER",
        "A/B-ORG ;/I-ORG B/I-ORG and C/B-PER",
        "Re/B-ORG :/I-ORG Work/I-ORG",
        "Mr/B-PER ./I-PER Juma/I-PER ./O",
        "York/O and New/B-LOC York/I-LOC or York/B-LOC",
        "ORG/B-ORG :/I-ORG x/I-ORG ;/I-ORG PER/I-ORG :/I-ORG y/I-ORG",
        "一号店；/B-ORG 北京。/B-LOC",
        "a b",
        "none/B-PER",
        "A./B-ORG ;/I-ORG",
    ],
)
def test_what_is_taught_is_read_back(text: str) -> None:
    tokens, tags = tagged(text)
    written = written_entities(tokens, tags)
    assert read_entities(tokens, TYPES, written) == (tags, True)
    assert read_entities(tokens, TYPES, nfd(written) + "\u200b") == (tags, True)


@given(st.data())
def test_any_tags_of_distinct_words_are_read_back(data: st.DataObject) -> None:
    words = ["a", "b.", "Inc.", ";", ":", ".", "PER", "é", "कि", "北京", "U.S.", "x;y"]
    tokens = data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=8, unique=True))
    tags: list[str] = []
    for _ in tokens:
        last = tags[-1][2:] if tags and tags[-1] != "O" else ""
        tags.append(data.draw(st.sampled_from(["O", "B-PER", "B-LOC", *([f"I-{last}"] if last else [])])))
    assert read_entities(tokens, TYPES, written_entities(tokens, tags)) == (tags, True)


@pytest.mark.parametrize(
    ("text", "tags", "well"),
    [
        ("PER: Juma.", ["B-PER", "O", "O"], True),
        ("per：Juma; loc: Nairobi;", ["B-PER", "O", "B-LOC"], True),
        ("PER: Juma; DATE: May", ["B-PER", "O", "O"], False),
        ("DATE: May; PER: Juma", ["B-PER", "O", "O"], False),
        ("PER：Juma；LOC：Nairobi。", ["B-PER", "O", "B-LOC"], True),
        ("PER: Juma؛ LOC: Nairobi", ["B-PER", "O", "B-LOC"], True),
        ("LOC: Nairobi; PER: Juma", ["B-PER", "O", "B-LOC"], True),
        ("PER: Ju", ["O", "O", "O"], False),
        ("None.", ["O", "O", "O"], True),
        ("", ["O", "O", "O"], False),
        (";", ["O", "O", "O"], False),
    ],
)
def test_other_writings(text: str, tags: list[str], well: bool) -> None:
    assert read_entities(["Juma", "in", "Nairobi"], TYPES, text) == (tags, well)


def test_invisible_tokens_are_read_back() -> None:
    tokens, tags = ["\u200e", "Juma", "\ufe0f", "in", "\u200b"], ["B-PER", "I-PER", "I-PER", "O", "O"]
    assert read_entities(tokens, TYPES, written_entities(tokens, tags)) == (tags, True)
    assert read_entities(tokens, TYPES, "PER: Juma") == (["O", "B-PER", "O", "O", "O"], True)


def test_types_may_hold_signs() -> None:
    read: Any = read_entities(["Juma"], ["PER", "PER:first"], "PER:first: Juma")
    assert read == (["B-PER:first"], True)
