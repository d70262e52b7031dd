"""Label words as answers: training examples of prompts with answers for decoders and encoder-decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adamergex.backbones.loading import frame
from adamergex.backbones.logits import IGNORE, labelled, labelled_loss
from adamergex.data.values import Row
from adamergex.errors import ConfigError
from adamergex.tasks import token_ids
from adamergex.tasks.answering.prompts import Prompt, TokenIds, fit, following, framed, prompt_of
from adamergex.tasks.labels import Labelled, label_indices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.backbones.loading import Family
    from adamergex.jobs.settings import Classification


@dataclass(frozen=True)
class PromptExamples:
    """Prompts and answers of a decoder; the loss is on the answer and its end token.

    ``left_out``: number of examples dropped because of a long answer (``LabelledTask.too_long``)."""

    prompts: list[TokenIds]
    answers: list[TokenIds]
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
        """Mean cross-entropy over the answers' tokens (nats)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return labelled_loss(model, inputs, batch["labels"], shift=True)

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """Number of tokens that the loss averages over."""
        return labelled(batch["labels"], shift=True)


@dataclass(frozen=True)
class AnswerExamples:
    """Prompts of an encoder and answers of its decoder, both with their special tokens.

    The loss is on the answer and its end token; ``opening``: number of special tokens before each answer.
    """

    prompts: list[TokenIds]
    answers: list[TokenIds]
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
        """Mean cross-entropy over the answers' tokens (nats)."""
        inputs, labels = {name: tensor for name, tensor in batch.items() if name != "labels"}, batch["labels"]
        return labelled_loss(model, inputs, labels, shift=False, learned=self._learned(labels))

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """Number of tokens that the loss averages over."""
        return labelled(batch["labels"], shift=False, learned=self._learned(batch["labels"]))

    def _learned(self, labels: Tensor) -> Tensor:
        return torch.arange(labels.shape[1], device=labels.device).expand_as(labels) >= self.opening


def encoder_decoder_examples(
    prompts: list[TokenIds], answers: Sequence[TokenIds], tokenizer: PreTrainedTokenizerBase, truncated: int
) -> AnswerExamples:
    """Examples of framed prompts and bare answers; adds the tokenizer's special tokens around each answer."""
    before, after = frame(tokenizer)
    labels = [before + answer + after for answer in answers]
    return AnswerExamples(prompts, labels, int(tokenizer.pad_token_id), truncated, len(before))


def prompt_examples(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    task: Classification,
    *,
    longest: int,
    where: object = None,
    family: Family = "decoder",
) -> PromptExamples | AnswerExamples:
    """Labelled texts for a decoder (prompt, label word, end token) or an encoder-decoder (prompt; label word).

    Raises: DataError for a label that the task does not have; ConfigError for a prompt that leaves no room for text.
    """
    words = answer_tokens(tokenizer, task, family)
    limit, texts = min(task.max_length, longest), [str(row["text"]) for row in rows]
    if family == "encoder-decoder":
        prompts, truncated = prompt_tokens(texts, tokenizer, task, limit, close=True)
        answers = [words[index] for index in label_indices(rows, task, where)]
        return encoder_decoder_examples(prompts, answers, tokenizer, truncated)
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    answers = [words[index] + end for index in label_indices(rows, task, where)]
    room = limit - max(map(len, words)) - len(end)
    prompts, truncated = prompt_tokens(texts, tokenizer, task, room, close=False)
    return PromptExamples(prompts, answers, int(tokenizer.pad_token_id), truncated)


def prompt_tokens(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, task: Classification, room: int, *, close: bool
) -> tuple[list[TokenIds], int]:
    """The filled prompts with the tokenizer's opening special tokens (``close``: also the closing ones), each in at
    most
    ``room`` tokens; and how many were cut. Only ``{text}`` is cut, at its end, never the prompt after it.
    """
    prompts, before, after = framed(text_prompts(texts, task.prompt), tokenizer, chat=task.chat)
    after = after if close else []
    fitted, truncated = fit(prompts, tokenizer, [room - len(before) - len(after)] * len(texts))
    return [before + tokens + after for tokens in fitted], truncated


def text_prompts(texts: Sequence[str], prompt: str) -> list[Prompt]:
    """The prompt around each text. Raises: ConfigError: the prompt has no ``{text}``."""
    if "{text}" not in prompt:
        raise ConfigError(
            "the prompt has no place for the text", where="prompt", found=repr(prompt), expected="'{text}' in it",
            fix="write {text} where the text belongs",
        )  # fmt: skip
    return [prompt_of(Prompt(text, lambda part: prompt.replace("{text}", part))) for text in texts]


def answer_tokens(tokenizer: PreTrainedTokenizerBase, task: Labelled, family: Family = "decoder") -> list[TokenIds]:
    """The tokens of each label's word (by default the label itself).

    For decoders and clozes the word is tokenised after the end of the prompt; for the decoder of an encoder-decoder, on
    its own. Raises: ConfigError when two labels have the same tokens.
    """
    words = [task.words.get(label, label) for label in task.labels]
    tail = task.prompt.rpartition("{text}")[2] or "a"
    if family == "encoder-decoder":
        result = token_ids(tokenizer, words)
    else:
        result = following(tokenizer, [tail] * len(words), words)
    for index, tokens in enumerate(result):
        if not tokens or tokens in result[:index]:
            raise ConfigError(
                "a label's word has the same tokens as another",
                where=f"label {task.labels[index]!r}",
                found=f"tokens {tokens}",
                expected="a different word for every label",
                fix="set words: {label: word}",
            )
    return result


def padded(rows: Sequence[TokenIds], value: int, *, left: bool = False) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` [rows, longest row], padded with ``value`` on the right (or ``left``)."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(len(row))
        ids[index, columns] = torch.tensor(row)
        mask[index, columns] = 1
    return {"input_ids": ids, "attention_mask": mask}
