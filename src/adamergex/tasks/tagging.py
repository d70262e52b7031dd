"""Entity tagging with an encoder's token head: the first token of every word carries the word's label.

A sentence longer than the model's input is read in parts, cut between words; every word gets a tag.
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
from adamergex.tasks.answering.prompts import TokenIds
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.classification import padded
from adamergex.tasks.kinds.tagging import tag_names
from adamergex.tasks.sequences import Sequences, on_device, require_fast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TaggedPart(NamedTuple):
    """The words of a row that one input holds, and the position of each word's first token in the input."""

    row: int
    words: list[int]
    positions: list[int]


@dataclass(frozen=True)
class TagExamples:
    """Sentences, or parts of long ones; ``labels`` [tokens] are -100 where a token is not the first of its word.

    ``truncated``: words that were cut because they are longer than the model's input."""

    sequences: Sequences
    parts: list[TaggedPart]
    labels: list[list[int]]
    truncated: int

    @property
    def lengths(self) -> Sequence[int]:
        return self.sequences.lengths

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Inputs padded to the longest sentence of the batch, and labels."""
        labels = padded([self.labels[index] for index in indices], IGNORE)["input_ids"]
        return {**self.sequences.inputs(indices), "labels": labels}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the words of the batch (nats); 0 for a batch without words."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits, labels = model(**inputs).logits.float().flatten(0, 1), batch["labels"].flatten()
        total = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return total / (labels != IGNORE).sum().clamp(min=1)

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """Number of words that the loss averages over."""
        return int((batch["labels"] != IGNORE).sum())


def tag_examples(task: Tagging, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, longest: int) -> TagExamples:
    """Sentences with labels on the first token of each word. Raises: ModelError: the tokenizer cannot align words."""
    require_fast(tokenizer, "tagging")
    number_of = {tag: number for number, tag in enumerate(tag_names(task))}
    before, after = frame(tokenizer)
    room = min(task.max_length, longest) - len(before) - len(after)
    ids: list[TokenIds] = []
    labels: list[list[int]] = []
    parts: list[TaggedPart] = []
    truncated = 0
    for number, words in enumerate(_tokenized_words(rows, tokenizer)):
        tags = texts(rows[number]["tags"])
        truncated += sum(len(tokens) > room for _, tokens in words)
        for group in _groups([(word, tokens[:room]) for word, tokens in words], room):
            part_ids, part_labels, positions = list(before), [IGNORE] * len(before), []
            for word, tokens in group:
                positions.append(len(part_ids))
                part_ids += tokens
                part_labels += [number_of[tags[word]], *[IGNORE] * (len(tokens) - 1)]
            ids.append(part_ids + after)
            labels.append(part_labels + [IGNORE] * len(after))
            parts.append(TaggedPart(number, [word for word, _ in group], positions))
    return TagExamples(Sequences(ids, None, int(tokenizer.pad_token_id)), parts, labels, truncated)


@torch.inference_mode()
def predicted_tags(
    task: Tagging, rows: Sequence[Row], model: nn.Module, examples: TagExamples, batch_tokens: int
) -> list[list[str]]:
    """The most probable tag of every word, as valid IOB2 (an I without an entity before it becomes B, as in conlleval);
    O for a word without tokens."""
    names = tag_names(task)
    result = [["O"] * len(texts(row["tokens"])) for row in rows]
    for indices in by_length(examples.lengths, batch_tokens):
        best = model(**on_device(model, examples.sequences.inputs(indices))).logits.argmax(-1).cpu()
        for row, index in enumerate(indices):
            part = examples.parts[index]
            for word, position in zip(part.words, part.positions, strict=True):
                result[part.row][word] = names[int(best[row, position])]
    return [repaired(tags) for tags in result]


def _tokenized_words(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[tuple[int, TokenIds]]]:
    """For each row, the words that have tokens, with their tokens."""
    try:
        encoding = tokenizer(
            [texts(row["tokens"]) for row in rows], is_split_into_words=True, add_special_tokens=False, verbose=False
        )
    except AssertionError as error:  # GPT-2 and RoBERTa need a space before each word of split text
        raise ModelError(
            "the tokenizer does not accept text split into words",
            where=tokenizer.name_or_path,
            found=str(error),
            fix="set add_prefix_space to true in the checkpoint's tokenizer_config.json",
        ) from error
    for number in range(len(rows)):
        words: dict[int, TokenIds] = {}
        for token, word in zip(encoding["input_ids"][number], encoding.word_ids(number), strict=True):
            words.setdefault(word, []).append(token)
        yield sorted(words.items())


def _groups(words: list[tuple[int, TokenIds]], room: int) -> Iterator[list[tuple[int, TokenIds]]]:
    """Groups of consecutive words that fit into ``room`` tokens; none for a sentence without tokens."""
    group: list[tuple[int, TokenIds]] = []
    size = 0
    for word, tokens in words:
        if group and size + len(tokens) > room:
            yield group
            group, size = [], 0
        group.append((word, tokens))
        size += len(tokens)
    if group:
        yield group
