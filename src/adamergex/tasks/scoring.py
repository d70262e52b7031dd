"""Scores of the labels of each text: from a head, from label words after a prompt, or from a cloze."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adamergex.errors import ConfigError
from adamergex.logits import logits_at, only_at
from adamergex.models import frame
from adamergex.tasks.classification import HeadExamples, Pieces, answer_pieces, padded, prompt_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.settings import Classification

Scores = NDArray[np.float64]  # [texts, labels], natural logarithms


@torch.inference_mode()
def head_scores(model: nn.Module, examples: HeadExamples, batch_tokens: int) -> Scores:
    """log p(label | text) from a sequence-classification head, [texts, labels]."""
    parts = {}
    for indices in by_length(examples.lengths, batch_tokens):
        batch = _to(model, padded([examples.ids[index] for index in indices], examples.pad))
        parts[tuple(indices)] = model(**batch).logits.float().log_softmax(-1)
    return _gather(parts, len(examples.ids))


@torch.inference_mode()
def word_scores(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    task: Classification,
    *,
    longest: int,
    batch_tokens: int,
) -> tuple[Scores, int]:
    """log p(label's word | prompt) of a causal model [texts, labels], and how many texts were cut.

    The *sum* over the word's pieces, the quantity that training raises: a mean would favour words of many pieces, of
    which all but the first are near certain once learned. The end piece is counted only where a word is the beginning
    of another, which the sum could not tell apart. The prompt is read once for all labels.
    """
    answers = answer_pieces(tokenizer, task)
    if _one_begins_another(answers) and tokenizer.eos_token_id is not None:
        answers = [answer + [int(tokenizer.eos_token_id)] for answer in answers]
    room = min(task.max_length, longest) - max(map(len, answers))
    prompts, truncated = prompt_pieces(texts, tokenizer, task.prompt, room)
    extra = sum(map(len, answers))
    parts = {}
    for indices in by_length([len(prompt) + extra for prompt in prompts], batch_tokens):
        batch = padded([prompts[index] for index in indices], int(tokenizer.pad_token_id), left=True)
        parts[tuple(indices)] = _continue(model, _to(model, batch), answers)
    return _gather(parts, len(texts)), truncated


@torch.inference_mode()
def cloze_scores(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    task: Classification,
    *,
    longest: int,
    batch_tokens: int,
) -> tuple[Scores, int]:
    """Label words filled into a masked model's prompt [texts, labels], and how many texts were cut.

    The prompt is followed by as many masks as the word has pieces; the score is the *mean* log-probability a piece,
    since masked pieces are predicted independently. Words of one length share their forward pass.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError("the tokenizer has no mask piece", where=tokenizer.name_or_path, fix="choose an encoder")
    answers = answer_pieces(tokenizer, task)
    _, after = frame(tokenizer)
    scores, truncated = np.zeros((len(texts), len(answers))), 0
    for count in sorted(set(map(len, answers))):
        special = count + len(after)
        prompts, cut = prompt_pieces(texts, tokenizer, task.prompt, min(task.max_length, longest), special=special)
        filled = [prompt + [int(tokenizer.mask_token_id)] * count + after for prompt in prompts]
        same = [label for label, answer in enumerate(answers) if len(answer) == count]
        words = torch.tensor([answers[label] for label in same])
        scores[:, same] = _fill(model, filled, words, tokenizer, batch_tokens)
        truncated = max(truncated, cut)
    return scores, truncated


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most ``batch_tokens`` padded pieces each, longest first."""
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch = []
        width = lengths[index] if not batch else width
        batch.append(index)
    if batch:
        yield batch


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


def _continue(model: nn.Module, batch: dict[str, Tensor], answers: list[Pieces]) -> Tensor:
    """Sum of log-probabilities [texts, answers] of each answer after each left-padded prompt."""
    mask, device = batch["attention_mask"], batch["input_ids"].device
    last = torch.zeros_like(mask, dtype=torch.bool)
    last[:, -1] = True
    long = [label for label, answer in enumerate(answers) if len(answer) > 1]
    with only_at(model, last):
        output = model(**batch, **_positions(model, (mask.cumsum(1) - 1).clamp(min=0)), use_cache=bool(long))
    first = torch.tensor([answer[0] for answer in answers], device=device)
    scores: Tensor = output.logits[0].float().log_softmax(-1)[:, first]
    if long:
        scores[:, long] += _rest(model, output.past_key_values, mask, [answers[label] for label in long])
    return scores


def _rest(model: nn.Module, cache: Any, mask: Tensor, answers: list[Pieces]) -> Tensor:
    """Sum of log-probabilities [texts, answers] of all pieces but the first, over the prompts' keys and values."""
    texts, count = len(mask), len(answers)
    cache.batch_repeat_interleave(count)
    given = padded([answer[:-1] for answer in answers], 0)
    labels = padded([answer[1:] for answer in answers], 0)["input_ids"].to(mask.device).repeat(texts, 1)
    ids, real = (given[name].to(mask.device).repeat(texts, 1) for name in ("input_ids", "attention_mask"))
    attention = torch.cat([mask.repeat_interleave(count, 0), real], 1)
    positions = mask.sum(1).repeat_interleave(count)[:, None] + torch.arange(ids.shape[1], device=mask.device)
    wanted = real.bool()
    with only_at(model, wanted):
        output = model(input_ids=ids, attention_mask=attention, past_key_values=cache, **_positions(model, positions))
    found = output.logits[0].float().log_softmax(-1).gather(1, labels[wanted][:, None])[:, 0]
    sums = torch.zeros(ids.shape, device=mask.device)
    sums[wanted] = found
    return sums.sum(1).view(texts, count)


def _positions(model: Any, positions: Tensor) -> dict[str, Tensor]:
    alone = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"position_ids": positions} if "position_ids" in signature(alone.forward).parameters else {}


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
