"""Entity F1 of tag sequences (IOB2).

>>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC"]))
[(0, 2, 'PER'), (3, 4, 'LOC')]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from adamergex.errors import DataError
from adamergex.metrics.checks import check_pairs, known

Mode = Literal["lenient", "strict"]
Entity = tuple[int, int, str]
"""First token, token after the last, type."""
_MODES = {"lenient": True, "strict": False}


class EntityScores(NamedTuple):
    """In percent."""

    precision: float
    recall: float
    f1: float


def entities(tags: Sequence[str], mode: Mode = "lenient") -> set[Entity]:
    """The entities of one sentence.

    "lenient": an I without a B (or an I of another type) before it starts an entity, as in CoNLL's conlleval and
    seqeval's default. "strict": only B starts one, as in seqeval's ``mode="strict", scheme=IOB2``.
    Raises: DataError for a tag that is not O, B-TYPE or I-TYPE. Source: Tjong Kim Sang and De Meulder 2003, §2.3.
    """
    inside_begins = known(mode, _MODES, "mode", "entity F1")
    result: set[Entity] = set()
    begin, kind = 0, ""  # kind "": no entity is open
    for index, tag in enumerate([*tags, "O"]):
        prefix, tag_kind = _parts(tag, index)
        if prefix == "I" and tag_kind == kind:
            continue
        if kind:
            result.add((begin, index, kind))
        begin, kind = index, tag_kind if prefix == "B" or inside_begins else ""
    return result


def entity_scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], *, mode: Mode = "lenient"
) -> EntityScores:
    """Micro precision, recall and F1 of entities with the same bounds and type, in percent; 0 for 0/0.

    P = TP/predicted, R = TP/gold, F1 = 2 TP/(predicted + gold), counts over all sentences.
    Raises: DataError (lengths of the lists or of a sentence, no sentences, a malformed tag).
    Source: conlleval; seqeval 1.2.2 ``f1_score``.
    """
    check_pairs(predictions, references, "entity F1")
    hits = predicted = gold = 0
    for number, (tags, gold_tags) in enumerate(zip(predictions, references, strict=True)):
        if len(tags) != len(gold_tags):
            raise DataError(
                "a sentence has fewer or more predicted tags than tokens",
                where=f"entity F1, sentence {number}",
                found=len(tags),
                expected=len(gold_tags),
                fix="use the tag O for truncated tokens",
            )
        predicted_entities, gold_entities = entities(tags, mode), entities(gold_tags, mode)
        hits += len(predicted_entities & gold_entities)
        predicted, gold = predicted + len(predicted_entities), gold + len(gold_entities)
    if not hits:
        return EntityScores(0.0, 0.0, 0.0)
    return EntityScores(100.0 * hits / predicted, 100.0 * hits / gold, 200.0 * hits / (predicted + gold))


def repaired(tags: Sequence[str]) -> list[str]:
    """The same (lenient) entities as well-formed IOB2: an I that continues nothing becomes B.

    Raises: DataError for a malformed tag.
    """
    broken = set(_broken(tags))
    return ["B" + tag[1:] if index in broken else tag for index, tag in enumerate(tags)]


def check_iob2(tags: Sequence[str], where: str, types: Collection[str] | None = None) -> None:
    """Refuse tags that are not IOB2, or of a type outside ``types``.

    Raises: DataError.
    """
    for index, tag in enumerate(tags):
        kind = _parts(tag, index, where)[1]
        if kind and types is not None and kind not in types:
            raise DataError(
                "an entity type is not known", where=f"{where}, token {index}", found=tag, expected=", ".join(types)
            )
    for index in _broken(tags):
        raise DataError(
            "the tags are not IOB2: an I continues nothing",
            where=f"{where}, token {index}",
            found=f"{tags[index]} after {tags[index - 1] if index else 'the beginning'}",
            expected="B" + tags[index][1:],
            fix="repair them first: adamergex.metrics.entities.repaired",
        )


def iob_tag(tag: object, where: str, types: Collection[str] = ()) -> str:
    """A tag as O, B-TYPE or I-TYPE; "b-per" becomes B-PER if ``types`` contains PER.

    Raises: DataError for anything else, such as a number or a type without a prefix.
    """
    shown = tag.strip() if isinstance(tag, str) else ""
    if shown.upper() == "O":
        return "O"
    prefix, kind = shown[:2].upper(), shown[2:]
    if prefix in ("B-", "I-") and kind.strip():
        same = [name for name in types if name.casefold() == kind.casefold()]
        return prefix + (same[0] if len(same) == 1 and kind not in types else kind)
    raise DataError(
        "a tag is not known", where=where, found=repr(tag), expected="O, B-TYPE or I-TYPE (IOB2)",
        fix="name the tags' numbers" if isinstance(tag, int) else "write the tags as IOB2",
    )  # fmt: skip


def _broken(tags: Sequence[str]) -> list[int]:
    """Indices of every I that is first, or follows O or another type."""
    parts = [("O", ""), *(_parts(tag, index) for index, tag in enumerate(tags))]
    return [index for index, (prefix, kind) in enumerate(parts[1:]) if prefix == "I" and parts[index][1] != kind]


def _parts(tag: str, index: int, where: str = "entity tags") -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    if isinstance(tag, str) and tag[:2] in ("B-", "I-") and len(tag) > 2:
        return tag[0], tag[2:]
    raise DataError(
        "a tag is not known", where=f"{where}, token {index}", found=repr(tag), expected="O, B-TYPE, I-TYPE"
    )
