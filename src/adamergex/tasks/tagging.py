"""Entities by an encoder's token head: a label on the first sub-word of every token, none on the others.

A sentence longer than the model reads is read in parts, cut between tokens; every token gets a tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamergex.backbones.loading import frame
from adamergex.backbones.logits import IGNORE
from adamergex.data.values import Row, texts
from adamergex.errors import ModelError
from adamergex.jobs.settings import Tagging
from adamergex.metrics.entities import repaired
from adamergex.tasks.answering.prompts import Pieces
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.classification import padded
from adamergex.tasks.kinds.tagging import tag_names
from adamergex.tasks.sequences import Sequences, on_device, require_fast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Part(NamedTuple):
    """The tokens of a row that an input holds, and the place of each one's first piece in it."""

    row: int
    tokens: list[int]
    places: list[int]


@dataclass(frozen=True)
class TagExamples:
    """Sentences, or parts of long ones; ``labels`` [pieces] are -100 where a piece is not the first of its token.

    ``truncated``: tokens of which pieces were cut, because one alone is longer than the model reads."""

    sequences: Sequences
    parts: list[Part]
    labels: list[list[int]]
    truncated: int

    @property
    def lengths(self) -> Sequence[int]:
        return self.sequences.lengths

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Padded only to the longest sentence of the batch."""
        labels = padded([self.labels[index] for index in indices], IGNORE)["input_ids"]
        return {**self.sequences.inputs(indices), "labels": labels}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the tokens of the batch (nats); 0 for a batch without tokens."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits, labels = model(**inputs).logits.float().flatten(0, 1), batch["labels"].flatten()
        total = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return total / (labels != IGNORE).sum().clamp(min=1)

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """How many tokens the loss is a mean over."""
        return int((batch["labels"] != IGNORE).sum())


def tag_examples(task: Tagging, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, longest: int) -> TagExamples:
    """Sentences with the labels of their tokens' first pieces. Raises: ModelError: the tokenizer cannot align them."""
    require_fast(tokenizer, "tagging")
    number_of = {tag: number for number, tag in enumerate(tag_names(task))}
    before, after = frame(tokenizer)
    room = min(task.max_length, longest) - len(before) - len(after)
    ids: list[Pieces] = []
    labels: list[list[int]] = []
    parts: list[Part] = []
    truncated = 0
    for number, words in enumerate(_words(rows, tokenizer)):
        truncated += sum(len(pieces) > room for _, pieces in words)
        for group in _groups([(token, pieces[:room]) for token, pieces in words], room):
            made, marks, places, tags = list(before), [IGNORE] * len(before), [], texts(rows[number]["tags"])
            for token, pieces in group:
                places.append(len(made))
                made += pieces
                marks += [number_of[tags[token]], *[IGNORE] * (len(pieces) - 1)]
            ids.append(made + after)
            labels.append(marks + [IGNORE] * len(after))
            parts.append(Part(number, [token for token, _ in group], places))
    return TagExamples(Sequences(ids, None, int(tokenizer.pad_token_id)), parts, labels, truncated)


@torch.inference_mode()
def predicted_tags(
    task: Tagging, rows: Sequence[Row], model: nn.Module, examples: TagExamples, batch_tokens: int
) -> list[list[str]]:
    """The likeliest tag of every token, as well-formed IOB2 (an I that continues nothing becomes B, as conlleval
    reads it); O for a token of which the tokenizer makes no piece."""
    names = tag_names(task)
    result = [["O"] * len(texts(row["tokens"])) for row in rows]
    for indices in by_length(examples.lengths, batch_tokens):
        best = model(**on_device(model, examples.sequences.inputs(indices))).logits.argmax(-1).cpu()
        for place, index in enumerate(indices):
            part = examples.parts[index]
            for token, piece in zip(part.tokens, part.places, strict=True):
                result[part.row][token] = names[int(best[place, piece])]
    return [repaired(tags) for tags in result]


def _words(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[tuple[int, Pieces]]]:
    """Of each row the tokens that have pieces, with them."""
    try:
        found = tokenizer(
            [texts(row["tokens"]) for row in rows], is_split_into_words=True, add_special_tokens=False, verbose=False
        )
    except AssertionError as error:  # GPT-2's and RoBERTa's: divided text needs a blank before each word
        raise ModelError(
            "the tokenizer does not accept text split into words",
            where=tokenizer.name_or_path,
            found=str(error),
            fix="set add_prefix_space to true in the checkpoint's tokenizer_config.json",
        ) from error
    for number in range(len(rows)):
        words: dict[int, Pieces] = {}
        for piece, word in zip(found["input_ids"][number], found.word_ids(number), strict=True):
            words.setdefault(word, []).append(piece)
        yield sorted(words.items())


def _groups(words: list[tuple[int, Pieces]], room: int) -> Iterator[list[tuple[int, Pieces]]]:
    """Consecutive tokens that fit into ``room`` pieces together; a sentence without pieces makes none."""
    group: list[tuple[int, Pieces]] = []
    size = 0
    for token, pieces in words:
        if group and size + len(pieces) > room:
            yield group
            group, size = [], 0
        group.append((token, pieces))
        size += len(pieces)
    if group:
        yield group
