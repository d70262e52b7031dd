"""Label scores of texts from label words: after a prompt, or in a cloze."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adamergex.backbones.loading import frame
from adamergex.backbones.logits import logits_at, without_adapter
from adamergex.errors import ConfigError
from adamergex.tasks.answering.choosing import tokenized_choice_scores
from adamergex.tasks.answering.prompts import Prompt, TokenIds, fit
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.classification import answer_tokens, padded, prompt_tokens, text_prompts
from adamergex.tasks.sequences import on_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.backbones.loading import Family
    from adamergex.jobs.settings import Classification

Scores = NDArray[np.float64]  # [texts, labels], natural logarithms


def word_scores(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    task: Classification,
    *,
    longest: int,
    batch_tokens: int,
) -> tuple[Scores, int]:
    """log p(label's word | prompt) of an (encoder-)decoder [texts, labels], and how many texts were cut.

    The score is the *sum* over the word's tokens, which training maximises: a mean would favour words of many tokens,
    of which all but the first are near certain once learned. The end token counts only where one word is a prefix of
    another, since the sum cannot separate those.
    ``normalised``: divided by the word's characters. The prompt is encoded once for all labels.
    """
    family: Family = "encoder-decoder" if without_adapter(model).config.is_encoder_decoder else "decoder"
    answers = answer_tokens(tokenizer, task, family)
    if _any_prefix(answers) and tokenizer.eos_token_id is not None:
        answers = [answer + [int(tokenizer.eos_token_id)] for answer in answers]
    room = min(task.max_length, longest) - (max(map(len, answers)) if family == "decoder" else 0)
    prompts, truncated = prompt_tokens(texts, tokenizer, task, room, close=family == "encoder-decoder")
    scores = np.stack(tokenized_choice_scores(model, prompts, [answers] * len(prompts), tokenizer, batch_tokens))
    if task.normalised:
        scores = scores / [len(task.words.get(label, label)) for label in task.labels]
    return scores, truncated


def cloze_scores(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    task: Classification,
    *,
    longest: int,
    batch_tokens: int,
) -> tuple[Scores, int]:
    """Scores of label words in a masked model's cloze [texts, labels], and how many were cut; see ``cloze_of``."""
    prompts, limit = text_prompts(texts, task.prompt), min(task.max_length, longest)
    return cloze_of(model, prompts, answer_tokens(tokenizer, task), tokenizer, limit=limit, batch_tokens=batch_tokens)


@torch.inference_mode()
def cloze_of(
    model: nn.Module,
    prompts: Sequence[Prompt],
    answers: Sequence[TokenIds],
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int,
    batch_tokens: int,
) -> tuple[Scores, int]:
    """Scores of tokenised words at the end of a masked model's prompts [prompts, words], and how many prompts were cut.

    The prompt is followed by one mask per token of the word. The score is the *mean* log-probability per token, since
    masked tokens are predicted independently. Words of the same length share a forward pass.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError("the tokenizer has no mask token", where=tokenizer.name_or_path, fix="choose an encoder")
    before, after = frame(tokenizer)
    scores, truncated = np.zeros((len(prompts), len(answers))), 0
    for count in sorted(set(map(len, answers))):
        room = limit - len(before) - count - len(after)
        fitted, cut = fit(prompts, tokenizer, [room] * len(prompts))
        clozes = [before + tokens + [int(tokenizer.mask_token_id)] * count + after for tokens in fitted]
        labels = [label for label, answer in enumerate(answers) if len(answer) == count]
        words = torch.tensor([answers[label] for label in labels])
        scores[:, labels] = _cloze_scores(model, clozes, words, tokenizer, batch_tokens)
        truncated = max(truncated, cut)
    return scores, truncated


def _cloze_scores(
    model: nn.Module, clozes: list[TokenIds], words: Tensor, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> Scores:
    """Mean log-probability [texts, words] of words [words, tokens] at the last masks of each text."""
    scores, count = np.zeros((len(clozes), len(words))), words.shape[1]
    for indices in by_length([len(ids) for ids in clozes], batch_tokens):
        batch = on_device(model, padded([clozes[index] for index in indices], int(tokenizer.pad_token_id)))
        # The text itself may hold mask tokens: only the last ones belong to the cloze.
        masks = batch["input_ids"] == tokenizer.mask_token_id
        masks &= masks.flip(1).cumsum(1).flip(1) <= count
        log_p = logits_at(model, batch, masks).float().log_softmax(-1).view(len(indices), count, -1)
        labels = words.to(log_p.device).T[None].expand(len(indices), -1, -1)
        scores[indices] = log_p.gather(2, labels).mean(1).double().cpu().numpy()
    return scores


def _any_prefix(answers: list[TokenIds]) -> bool:
    """Whether one answer is a proper prefix of another."""
    return any(short != full and full[: len(short)] == short for short in answers for full in answers)
