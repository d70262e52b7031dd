"""How models that write are asked: per kind of task the prompt, the answers that teach it, the choices that are scored,
and how what was written is read.

Entities are written ``TYPE: words; TYPE: words`` in the sentence's order, ``none`` where there are none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from adamergex.metrics.entities import entities
from adamergex.settings import Generation, MultipleChoice, PairClassification, SpanAnswering, Tagging
from adamergex.tasks.catalogue import task_file
from adamergex.tasks.prompts import Prompt
from adamergex.tasks.templates import asked, filled

Row = Mapping[str, Any]
NOTHING = "none"


class Asked(NamedTuple):
    """How a kind of task is asked. ``read`` makes the prediction of a row from what was written, and says whether all
    of it had the expected form; ``choices`` (where answers are scored, not written) are what could be said."""

    prompt: Callable[[Any, Row], Prompt]
    answers: Callable[[Any, Row], Sequence[str]]
    read: Callable[[Any, Row, str], tuple[Any, bool]]
    choices: Callable[[Any, Row], Sequence[str]] | None = None


def words_of(task: PairClassification) -> list[str]:
    """What is said for each label."""
    return [task.words.get(label, label) for label in task.labels]


def _pair_prompt(task: PairClassification, row: Row) -> Prompt:
    return asked(task.prompt, row, "premise")


def _pair_read(task: PairClassification, row: Row, text: str) -> tuple[str | None, bool]:
    """The label whose word stands first; of words that begin at one place, the longest."""
    places = {label: text.lower().find(word.lower()) for label, word in zip(task.labels, words_of(task), strict=True)}
    found = [(place, -len(task.words.get(label, label)), label) for label, place in places.items() if place >= 0]
    return (min(found)[2], True) if found else (None, False)


def _choice_prompt(task: MultipleChoice, row: Row) -> Prompt:
    return asked(task.prompt, row, task.cut)


def _choice_texts(task: MultipleChoice, row: Row) -> list[str]:
    return [str(row[name]) for name in task.choices]


def _choice_read(task: MultipleChoice, row: Row, text: str) -> tuple[int | None, bool]:
    """The choice that is written out (alone), or its letter or number: "(A)", "A.", "B: …", "2", "… is (B)"."""
    said = [number for number, choice in enumerate(_choice_texts(task, row)) if _plain(choice) in _plain(text)]
    if len(said) == 1:
        return said[0], True
    # A bare sign at the start must end there: "A woman fell" is no letter, "2 things" no number.
    signs = set(re.findall(r"^\W*([A-Z1-9])(?=\s*(?:[).:,\]]|$))", text))
    signs = signs or set(re.findall(r"\(([A-Z1-9])\)", text))
    sign = signs.pop() if len(signs) == 1 else ""
    number = "123456789".find(sign) if sign.isdigit() else ord(sign or "@") - ord("A")
    return (number, True) if 0 <= number < len(task.choices) else (None, False)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"\W", " ", text.lower()).split())


def _span_prompt(task: SpanAnswering, row: Row) -> Prompt:
    return asked(task.prompt, row, "context")


def _tag_prompt(task: Tagging, row: Row) -> Prompt:
    return asked(task.prompt, {"text": " ".join(row["tokens"]), **row}, "text")


def written_entities(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """The entities of a sentence in the written form."""
    found = sorted(entities(tags))
    return "; ".join(f"{kind}: {' '.join(tokens[start:end])}" for start, end, kind in found) or NOTHING


def read_entities(tokens: Sequence[str], types: Sequence[str], text: str) -> tuple[list[str], bool]:
    """Tags of the tokens from the written form, and whether all of it could be read.

    An entity is the first run of tokens, not taken yet, that its words are; types compare without case. A part that is
    no ``TYPE: words`` of a known type and of this sentence is left out.
    """
    tags, well = ["O"] * len(tokens), True
    names = {kind.lower(): kind for kind in types}
    parts = [part.strip() for part in text.strip().rstrip(".;").split(";")]
    if [part.lower() for part in parts] in ([NOTHING], [""]):
        return tags, parts != [""]
    for part in parts:
        kind, colon, words = part.partition(":")
        place = _place(tokens, words.split(), tags) if colon and kind.strip().lower() in names else None
        if place is None:
            well = False
            continue
        start, end = place
        name = names[kind.strip().lower()]
        tags[start:end] = [f"B-{name}", *[f"I-{name}"] * (end - start - 1)]
    return tags, well


def _place(tokens: Sequence[str], words: Sequence[str], tags: Sequence[str]) -> tuple[int, int] | None:
    # Words of an entity may be divided otherwise than the tokens: only the characters count.
    wanted = "".join(words)
    for start in range(len(tokens) if wanted else 0):
        joined = ""
        for end in range(start, len(tokens)):
            joined += "".join(tokens[end].split())
            if joined == wanted and not any(tag != "O" for tag in tags[start : end + 1]):
                return start, end + 1
            if not wanted.startswith(joined):
                break
    return None


def _learned(task: Generation, row: Row) -> list[str]:
    found = row[task.reference]
    references = [str(text) for text in (found if isinstance(found, list) else [found])]
    if task.target is None:
        return references
    return [filled(task.target, {**row, task.reference: references[0]})]


def _free_read(task: Generation, row: Row, text: str) -> tuple[str, bool]:
    """What was written, and whether the task that measures it can read it."""
    readable = getattr(task_file(task.measured_as), "readable", bool) if task.measured_as else bool
    return text, bool(text) and readable(text)


ASKED: dict[str, Asked] = {
    "pair-classification": Asked(
        _pair_prompt,
        lambda task, row: [task.words.get(row["label"], row["label"])],
        _pair_read,
        lambda task, row: words_of(task),
    ),
    "multiple-choice": Asked(
        _choice_prompt, lambda task, row: [_choice_texts(task, row)[row["label"]]], _choice_read, _choice_texts
    ),
    "span": Asked(_span_prompt, lambda task, row: row["answers"][:1], lambda task, row, text: (text, bool(text))),
    "tagging": Asked(
        _tag_prompt,
        lambda task, row: [written_entities(row["tokens"], row["tags"])],
        lambda task, row, text: read_entities(row["tokens"], task.types, text),
    ),
    "generation": Asked(lambda task, row: asked(task.prompt, row, task.cut), _learned, _free_read),
}
