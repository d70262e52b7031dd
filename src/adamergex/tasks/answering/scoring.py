"""Scores of the labels of each text: from a head, from label words after a prompt, or from a cloze."""

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
from adamergex.tasks.answering.choosing import piece_scores
from adamergex.tasks.answering.prompts import Pieces, Prompt, fitted
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.classification import HeadExamples, answer_pieces, padded, prompt_pieces, text_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.backbones.loading import Family
    from adamergex.jobs.settings import Classification

Scores = NDArray[np.float64]  # [texts, labels], natural logarithms


@torch.inference_mode()
def head_scores(model: nn.Module, examples: HeadExamples, batch_tokens: int) -> Scores:
    """log p(label | text) from a sequence-classification head, [texts, labels]."""
    parts = {}
    for indices in by_length(examples.lengths, batch_tokens):
        batch = _to(model, padded([examples.ids[index] for index in indices], examples.pad))
        parts[tuple(indices)] = model(**batch).logits.float().log_softmax(-1)
    return _gather(parts, len(examples.ids))


def word_scores(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    task: Classification,
    *,
    longest: int,
    batch_tokens: int,
) -> tuple[Scores, int]:
    """log p(label's word | prompt) of a (encoder-)decoder [texts, labels], and how many texts were cut.

    The *sum* over the word's pieces, the quantity that training raises: a mean would favour words of many pieces, of
    which all but the first are near certain once learned. The end piece is counted only where a word is the beginning
    of another, which the sum could not tell apart.
    ``normalised``: divided by the word's characters. The prompt is read once for all labels.
    """
    family: Family = "encoder-decoder" if without_adapter(model).config.is_encoder_decoder else "decoder"
    answers = answer_pieces(tokenizer, task, family)
    if _one_begins_another(answers) and tokenizer.eos_token_id is not None:
        answers = [answer + [int(tokenizer.eos_token_id)] for answer in answers]
    room = min(task.max_length, longest) - (max(map(len, answers)) if family == "decoder" else 0)
    prompts, truncated = prompt_pieces(texts, tokenizer, task, room, close=family == "encoder-decoder")
    scores = np.stack(piece_scores(model, prompts, [answers] * len(prompts), tokenizer, batch_tokens))
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
    """Label words filled into a masked model's prompt [texts, labels], and how many were cut; see ``cloze_of``."""
    prompts, limit = text_prompts(texts, task.prompt), min(task.max_length, longest)
    return cloze_of(model, prompts, answer_pieces(tokenizer, task), tokenizer, limit=limit, batch_tokens=batch_tokens)


@torch.inference_mode()
def cloze_of(
    model: nn.Module,
    prompts: Sequence[Prompt],
    answers: Sequence[Pieces],
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int,
    batch_tokens: int,
) -> tuple[Scores, int]:
    """Words (in pieces) filled into the end of a masked model's prompts [prompts, words], and how many were cut.

    The prompt is followed by as many masks as the word has pieces; the score is the *mean* log-probability a piece,
    since masked pieces are predicted independently. Words of one length share their forward pass.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError("the tokenizer has no mask token", where=tokenizer.name_or_path, fix="choose an encoder")
    before, after = frame(tokenizer)
    scores, truncated = np.zeros((len(prompts), len(answers))), 0
    for count in sorted(set(map(len, answers))):
        room = limit - len(before) - count - len(after)
        found, cut = fitted(prompts, tokenizer, [room] * len(prompts))
        filled = [before + pieces + [int(tokenizer.mask_token_id)] * count + after for pieces in found]
        same = [label for label, answer in enumerate(answers) if len(answer) == count]
        words = torch.tensor([answers[label] for label in same])
        scores[:, same] = _fill(model, filled, words, tokenizer, batch_tokens)
        truncated = max(truncated, cut)
    return scores, truncated


def _fill(
    model: nn.Module, filled: list[Pieces], words: Tensor, tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> Scores:
    """Mean log-probability [texts, words] of words [words, pieces] in the last masks of each text."""
    parts, count = {}, words.shape[1]
    for indices in by_length([len(ids) for ids in filled], batch_tokens):
        batch = _to(model, padded([filled[index] for index in indices], int(tokenizer.pad_token_id)))
        # A text may hold a mask of its own: only the last ones are the prompt's.
        masks = batch["input_ids"] == tokenizer.mask_token_id
        masks &= masks.flip(1).cumsum(1).flip(1) <= count
        found = logits_at(model, batch, masks).float().log_softmax(-1).view(len(indices), count, -1)
        chosen = words.to(found.device).T[None].expand(len(indices), -1, -1)
        parts[tuple(indices)] = found.gather(2, chosen).mean(1)
    return _gather(parts, len(filled))


def _one_begins_another(answers: list[Pieces]) -> bool:
    return any(one != other and other[: len(one)] == one for one in answers for other in answers)


def _to(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _gather(parts: dict[tuple[int, ...], Tensor], count: int) -> Scores:
    result = np.zeros((count, next(iter(parts.values())).shape[1]))
    for indices, scores in parts.items():
        result[list(indices)] = scores.double().cpu().numpy()
    return result
