"""One label a text. Encoders get a head; decoders and encoder-decoders a prompt, and the label's word as the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamergex.backbones.loading import frame
from adamergex.backbones.logits import IGNORE, labelled, labelled_loss
from adamergex.data.values import Row
from adamergex.errors import ConfigError
from adamergex.tasks import pieces_of
from adamergex.tasks.answering.prompts import Pieces, Prompt, fitted, following, framed, prompt_of
from adamergex.tasks.labels import Labelled, label_indices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.backbones.loading import Family
    from adamergex.jobs.settings import Classification


@dataclass(frozen=True)
class HeadExamples:
    """Texts as an encoder reads them. ``truncated``: how many were cut."""

    ids: list[Pieces]
    labels: list[int]
    pad: int
    truncated: int

    @property
    def lengths(self) -> Sequence[int]:
        return [len(ids) for ids in self.ids]

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Padded only to the longest text of the batch."""
        batch = padded([self.ids[index] for index in indices], self.pad)
        return {**batch, "labels": torch.tensor([self.labels[index] for index in indices])}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the texts (nats)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return functional.cross_entropy(model(**inputs).logits.float(), batch["labels"])

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """How many texts the loss is a mean over."""
        return len(batch["labels"])


@dataclass(frozen=True)
class PromptExamples:
    """Prompts and answers as a decoder reads them; only the answer, and the end after it, are learned.

    ``left_out``: examples whose answer was too long (``LabelledTask.too_long``)."""

    prompts: list[Pieces]
    answers: list[Pieces]
    pad: int
    truncated: int
    left_out: int = 0

    @property
    def lengths(self) -> Sequence[int]:
        return [len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Padded on the right; labels are -100 on the prompt and the padding."""
        chosen = [(self.prompts[index], self.answers[index]) for index in indices]
        batch = padded([prompt + answer for prompt, answer in chosen], self.pad)
        labels = padded([[IGNORE] * len(prompt) + answer for prompt, answer in chosen], IGNORE)["input_ids"]
        return {**batch, "labels": labels}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the answers' pieces (nats)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return labelled_loss(model, inputs, batch["labels"], shift=True)

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """How many pieces the loss is a mean over."""
        return labelled(batch["labels"], shift=True)


@dataclass(frozen=True)
class AnswerExamples:
    """Prompts as an encoder reads them, answers as a decoder says them, both with their special pieces.

    The answer and the end after it are learned; ``opening``: how many pieces of each answer come before it and are not.
    """

    prompts: list[Pieces]
    answers: list[Pieces]
    pad: int
    truncated: int
    opening: int
    left_out: int = 0

    @property
    def lengths(self) -> Sequence[int]:
        return [len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Prompts and answers, each padded on the right; labels are -100 on the padding."""
        labels = padded([self.answers[index] for index in indices], IGNORE)["input_ids"]
        return {**padded([self.prompts[index] for index in indices], self.pad), "labels": labels}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the answers' pieces (nats)."""
        inputs, labels = {name: tensor for name, tensor in batch.items() if name != "labels"}, batch["labels"]
        return labelled_loss(model, inputs, labels, shift=False, learned=self._learned(labels))

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """How many pieces the loss is a mean over."""
        return labelled(batch["labels"], shift=False, learned=self._learned(batch["labels"]))

    def _learned(self, labels: Tensor) -> Tensor:
        return torch.arange(labels.shape[1], device=labels.device).expand_as(labels) >= self.opening


def answered(
    prompts: list[Pieces], answers: Sequence[Pieces], tokenizer: PreTrainedTokenizerBase, truncated: int
) -> AnswerExamples:
    """Examples of whole prompts and bare answers: the tokenizer's special pieces are put around each answer."""
    before, after = frame(tokenizer)
    said = [before + answer + after for answer in answers]
    return AnswerExamples(prompts, said, int(tokenizer.pad_token_id), truncated, len(before))


def head_examples(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    task: Classification,
    *,
    longest: int,
    where: object = None,
) -> HeadExamples:
    """Labelled texts for an encoder with a head; a text over ``task.max_length`` pieces is cut at its end.

    Raises: DataError for a label that the task does not have.
    """
    labels = label_indices(rows, task, where)
    before, after = frame(tokenizer)
    room = min(task.max_length, longest) - len(before) - len(after)
    pieces = pieces_of(tokenizer, [str(row["text"]) for row in rows])
    ids = [before + found[:room] + after for found in pieces]
    return HeadExamples(ids, labels, int(tokenizer.pad_token_id), sum(len(found) > room for found in pieces))


def prompt_examples(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    task: Classification,
    *,
    longest: int,
    where: object = None,
    family: Family = "decoder",
) -> PromptExamples | AnswerExamples:
    """Labelled texts for a decoder (prompt, the label's word, end), or for an encoder (prompt) and a decoder (word).

    Raises: DataError for a label that the task does not have; ConfigError for a prompt that leaves no room for text.
    """
    words = answer_pieces(tokenizer, task, family)
    limit, texts = min(task.max_length, longest), [str(row["text"]) for row in rows]
    if family == "encoder-decoder":
        prompts, truncated = prompt_pieces(texts, tokenizer, task, limit, close=True)
        said = [words[index] for index in label_indices(rows, task, where)]
        return answered(prompts, said, tokenizer, truncated)
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    answers = [words[index] + end for index in label_indices(rows, task, where)]
    room = limit - max(map(len, words)) - len(end)
    prompts, truncated = prompt_pieces(texts, tokenizer, task, room, close=False)
    return PromptExamples(prompts, answers, int(tokenizer.pad_token_id), truncated)


def prompt_pieces(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, task: Classification, room: int, *, close: bool
) -> tuple[list[Pieces], int]:
    """The filled prompts after the special pieces that open a text, with ``close`` before those that end it, in at most
    ``room`` pieces; and how many were cut: only ``{text}`` ever is, at its end, not what the prompt says after it.
    """
    prompts, before, after = framed(text_prompts(texts, task.prompt), tokenizer, chat=task.chat)
    after = after if close else []
    found, truncated = fitted(prompts, tokenizer, [room - len(before) - len(after)] * len(texts))
    return [before + pieces + after for pieces in found], truncated


def text_prompts(texts: Sequence[str], prompt: str) -> list[Prompt]:
    """The prompt around each text. Raises: ConfigError: it has no place for one."""
    if "{text}" not in prompt:
        raise ConfigError(
            "the prompt has no place for the text", where="prompt", found=repr(prompt), expected="'{text}' in it",
            fix="write {text} where the text belongs",
        )  # fmt: skip
    return [prompt_of(Prompt(text, lambda part: prompt.replace("{text}", part))) for text in texts]


def answer_pieces(tokenizer: PreTrainedTokenizerBase, task: Labelled, family: Family = "decoder") -> list[Pieces]:
    """What a model says for each label: the label's word (by default the label).

    A decoder, and an encoder's cloze, say it after the prompt's end, with which it is tokenised; the decoder of an
    encoder-decoder begins with it. Raises: ConfigError when two labels have the same pieces.
    """
    words = [task.words.get(label, label) for label in task.labels]
    tail = task.prompt.rpartition("{text}")[2] or "a"
    if family == "encoder-decoder":
        result = pieces_of(tokenizer, words)
    else:
        result = following(tokenizer, [tail] * len(words), words)
    for index, pieces in enumerate(result):
        if not pieces or pieces in result[:index]:
            raise ConfigError(
                "a label's word cannot be told from the others",
                where=f"label {task.labels[index]!r}",
                found=f"tokens {pieces}",
                expected="a different word for every label",
                fix="set words: {label: word}",
            )
    return result


def padded(rows: Sequence[Pieces], value: int, *, left: bool = False) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` [rows, longest row]."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
