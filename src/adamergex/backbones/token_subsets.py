"""Trim the vocabulary of a tokenizer.json to the tokens that texts use, without changing their tokenisation.

- Unigram (SentencePiece): the best segmentation of a text stays the best when others are removed. The token with the
  lowest score is kept, since it determines the score of unknown characters.
- BPE: the merges that build a token are kept, with their results.
- WordPiece: the longest match stays the longest, unless a word is unknown; tokens missing then are found by comparison.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from adamergex.errors import ModelError

MODELS = ("Unigram", "BPE", "WordPiece")
Document = dict[str, Any]


def require_kind(document: Document, where: object) -> str:
    """The kind of a tokenizer's model. Raises: ModelError: it is not one of ``MODELS``."""
    model = document.get("model")
    kind = str(model.get("type")) if isinstance(model, dict) else type(model).__name__
    if kind in MODELS:
        return kind
    raise ModelError(
        "the vocabulary of this kind of tokenizer cannot be trimmed",
        where=where,
        found=kind,
        expected=", ".join(MODELS),
        fix="use the base as it is",
    )


class Vocabulary:
    """Tokens and ids of a parsed tokenizer.json.

    Raises: ModelError: the tokenizer is not one of ``MODELS``, or its ids are not 0, 1, 2, …
    """

    def __init__(self, document: Document, where: object) -> None:
        self.document, self.where = document, where
        self.kind = require_kind(document, where)
        model = document["model"]
        self.added: dict[str, int] = {item["content"]: item["id"] for item in document.get("added_tokens") or ()}
        entries = model["vocab"]
        self.ids: dict[str, int] = (
            {token: index for index, (token, _) in enumerate(entries)} if self.kind == "Unigram" else dict(entries)
        )
        self.ordinary = frozenset(self.ids)
        self.ids |= self.added
        if sorted(self.ids.values()) != list(range(len(self.ids))):
            raise ModelError(
                "the tokenizer's ids have gaps or duplicates",
                where=where,
                found=f"{len(self.ids)} tokens, ids up to {max(self.ids.values(), default=-1)}",
                fix="use the base as it is",
            )

    def always(self) -> set[int]:
        """Tokens that are always kept: added and special tokens, single characters and bytes."""
        model, mark = self.document["model"], self._continuation()
        kept = set(self.added.values())
        for token in self.ordinary:
            if len(token) <= 1 or (mark and token.startswith(mark) and len(token) == len(mark) + 1) or _is_byte(token):
                kept.add(self.ids[token])
        if self.kind == "Unigram":
            if model.get("unk_id") is not None:
                kept.add(model["unk_id"])
            kept.add(min(range(len(model["vocab"])), key=lambda index: model["vocab"][index][1]))
        elif model.get("unk_token") in self.ids:
            kept.add(self.ids[model["unk_token"]])
        kept |= self._named_in_processor()
        if unknown := sorted(kept - set(self.ids.values())):
            raise ModelError(
                "the tokenizer inserts tokens that it does not have",
                where=self.where,
                found=f"id {unknown[0]}, of {len(self.ids)} tokens",
                fix="copy or download the checkpoint again",
            )
        return kept

    def parts(self, kept: Iterable[int]) -> set[int]:
        """The tokens and all tokens that they are merged from, recursively (BPE); otherwise the tokens themselves."""
        parts = set(kept)
        if self.kind != "BPE":
            return parts
        merges: dict[str, list[tuple[str, str]]] = {}
        for left, right in self._merges():
            merges.setdefault(self._merged(left, right), []).append((left, right))
        names = {index: token for token, index in self.ids.items()}
        waiting = list(parts)
        while waiting:
            for pair in merges.get(names[waiting.pop()], ()):
                for token in pair:
                    if token in self.ids and self.ids[token] not in parts:
                        parts.add(self.ids[token])
                        waiting.append(self.ids[token])
        return parts

    def within(self, text: str) -> set[int]:
        """All tokens that are substrings of a text after normaliser and pre-tokeniser."""
        mark = self._continuation()
        longest = max(map(len, self.ordinary), default=0)
        ranges = ((begin, end) for begin in range(len(text)) for end in range(begin + 1, begin + longest + 1))
        parts = {text[begin:end] for begin, end in ranges if end <= len(text)}
        return {self.ids[token] for part in parts for token in (part, mark + part) if token in self.ordinary}

    def trimmed(self, kept: Iterable[int]) -> tuple[Document, dict[int, int]]:
        """A tokenizer.json with only these tokens, in the same order, and old id -> new id."""
        new = {old: index for index, old in enumerate(sorted(kept))}
        document = copy.copy(self.document)
        model = document["model"] = dict(document["model"])
        document["added_tokens"] = [{**item, "id": new[item["id"]]} for item in document.get("added_tokens") or ()]
        if self.kind == "Unigram":
            model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new]
            if model.get("unk_id") is not None:
                model["unk_id"] = new[model["unk_id"]]
        else:
            model["vocab"] = {token: new[index] for token, index in model["vocab"].items() if index in new}
        if self.kind == "BPE":
            pairs = zip(model["merges"], self._merges(), strict=True)
            model["merges"] = [
                written
                for written, (left, right) in pairs
                if {left, right, self._merged(left, right)} <= model["vocab"].keys()
            ]
        document["post_processor"] = _renumbered(document.get("post_processor"), new)
        return document, new

    def _continuation(self) -> str:
        return str(self.document["model"].get("continuing_subword_prefix") or "")

    def _merges(self) -> list[tuple[str, str]]:
        merges = self.document["model"]["merges"]
        return [tuple(item.split(" ", 1) if isinstance(item, str) else item) for item in merges]

    def _merged(self, left: str, right: str) -> str:
        mark = self._continuation()
        return left + (right[len(mark) :] if mark and right.startswith(mark) else right)

    def _named_in_processor(self) -> set[int]:
        lookups = _RecordedLookups()
        _renumbered(self.document.get("post_processor"), lookups)
        return set(lookups)


class _RecordedLookups(dict[int, int]):
    """An identity mapping that records the ids that are looked up."""

    def __missing__(self, key: int) -> int:
        self[key] = key
        return key


def _renumbered(part: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with new ids: ``ids`` of templates; ``sep`` and ``cls`` of BERT's and RoBERTa's."""
    if isinstance(part, list):
        return [_renumbered(item, new) for item in part]
    if not isinstance(part, dict):
        return part
    result = {name: _renumbered(value, new) for name, value in part.items()}
    if isinstance(part.get("ids"), list):
        result["ids"] = [new[index] for index in part["ids"]]
    for name in ("sep", "cls"):
        value = part.get(name)
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
            result[name] = [value[0], new[value[1]]]
    return result


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
