"""Greedy decoding after prompts, and training examples of prompts with answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from adamergex.backbones.logits import without_adapter
from adamergex.errors import ConfigError, DataError
from adamergex.tasks import Examples, token_ids
from adamergex.tasks.answering.prompts import Prompt, TokenIds, fit, following, framed
from adamergex.tasks.answering.reading import DecodingState, by_length, prefill
from adamergex.tasks.classification import PromptExamples, encoder_decoder_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.backbones.loading import Family


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompts: Sequence[str | Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = ("\n",),
    longest: int,
    batch_tokens: int,
    chat: bool = False,
    thought: int = 0,
) -> tuple[list[str], int]:
    """Greedily decoded answers to the prompts, and how many prompts were cut.

    An answer ends before an end token or the first of the ``stop`` strings, or after ``max_new_tokens`` tokens; it
    excludes the prompt, special tokens, and surrounding space. ``chat``: each prompt is a user message in the
    tokenizer's chat template. Only the text of a ``Prompt`` is cut; a plain string is cut at its beginning.
    ``thought``: the model retells its prompt before the answer, so the cap on new tokens is the prompt's length plus
    ``max_new_tokens``, at least ``thought``; prompt and cap share ``longest``. 0: ``max_new_tokens`` alone.
    Raises: ConfigError when a prompt does not fit, or for a chat without a template.
    """
    framed_prompts, before, after = framed(prompts, tokenizer, chat=chat)
    encoder_decoder = bool(without_adapter(model).config.is_encoder_decoder)
    after = after if encoder_decoder else []
    window = longest - len(before) - len(after)
    room = window - (0 if encoder_decoder else max_new_tokens)
    if thought:
        room = min((window - max_new_tokens) // 2, window if encoder_decoder else window - max(thought, max_new_tokens))
    fitted, truncated = fit(framed_prompts, tokenizer, [room] * len(prompts), where="longest")
    inputs = [before + tokens + after for tokens in fitted]
    caps = [max(len(tokens) + max_new_tokens, thought) if thought else max_new_tokens for tokens in fitted]
    answers = [""] * len(inputs)
    for indices in by_length([len(tokens) + cap for tokens, cap in zip(inputs, caps, strict=True)], batch_tokens):
        state = prefill(model, [inputs[index] for index in indices], tokenizer)
        decoded = _decode(state, tokenizer, [caps[index] for index in indices], stop)
        for index, answer in zip(indices, decoded, strict=True):
            answers[index] = answer
    return answers, truncated


def answer_examples(
    prompts: Sequence[str | Prompt],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    longest: int,
    where: object = None,
    family: Family,
    chat: bool = False,
    leave_out: bool = False,
) -> Examples:
    """Examples whose loss is on each answer and its end token, never on the prompt.

    A decoder reads prompt and answer in at most ``max_length`` tokens together; an encoder-decoder in ``max_length``
    tokens each. Only prompts are cut: the text of a ``Prompt``, a plain string at its beginning.
    ``leave_out``: answers that leave no room for their prompts are dropped instead of raising.
    Raises: DataError for an empty answer or one that leaves no room; ConfigError for an encoder.
    """
    if family == "encoder":
        raise ConfigError("an encoder cannot generate an answer", fix="choose a decoder or an encoder-decoder")
    for number, answer in enumerate(answers, 1):
        if not answer.strip():
            raise DataError("an answer is empty", where=f"{where}, row {number}", fix="correct the data")
    (framed_prompts, before, after), limit = framed(prompts, tokenizer, chat=chat), min(max_length, longest)
    if family == "encoder-decoder":
        labels = token_ids(tokenizer, answers)
        room = limit - len(before) - len(after)
        kept = _with_room([room - len(tokens) for tokens in labels], limit, where, leave_out)
        fitted, truncated = fit([framed_prompts[index] for index in kept], tokenizer, [room] * len(kept))
        inputs = [before + tokens + after for tokens in fitted]
        examples = encoder_decoder_examples(inputs, [labels[index] for index in kept], tokenizer, truncated)
        return replace(examples, left_out=len(labels) - len(kept))
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    labels = [tokens + end for tokens in following(tokenizer, [prompt.whole for prompt in framed_prompts], answers)]
    rooms = [limit - len(before) - len(tokens) for tokens in labels]
    # Dropped: answers without room for the prompt's fixed part and one token of its text.
    fixed = token_ids(tokenizer, [prompt.cut(0) for prompt in framed_prompts]) if leave_out else [[]] * len(rooms)
    kept = _with_room([room - len(part) - 1 for room, part in zip(rooms, fixed, strict=True)], limit, where, leave_out)
    fitted, truncated = fit([framed_prompts[index] for index in kept], tokenizer, [rooms[index] for index in kept])
    inputs, labels = [before + tokens for tokens in fitted], [labels[index] for index in kept]
    return PromptExamples(inputs, labels, int(tokenizer.pad_token_id), truncated, len(rooms) - len(kept))


def _decode(
    state: DecodingState, tokenizer: PreTrainedTokenizerBase, caps: Sequence[int], stop: Sequence[str]
) -> list[str]:
    """The answer of every row, at most ``caps`` tokens each; rows leave the batch when they end."""
    ends = _end_tokens(state.model, tokenizer)
    answers: list[TokenIds] = [[] for _ in range(len(state.mask))]
    texts = [""] * len(answers)
    active = list(range(len(answers)))
    for _ in range(max(caps)):
        tokens = state.logits.argmax(-1)
        unfinished = []
        for index, (row, token) in enumerate(zip(active, tokens.tolist(), strict=True)):
            if token in ends:
                continue
            answers[row].append(token)
            text = tokenizer.decode(answers[row], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            texts[row], stopped = _until(str(text), stop)
            if not stopped and len(answers[row]) < caps[row]:
                unfinished.append(index)
        if not unfinished:
            break
        if len(unfinished) < len(active):
            state, active = state.select(unfinished), [active[index] for index in unfinished]
            tokens = tokens[unfinished]
        mask = torch.ones_like(tokens[:, None])
        state.logits = state.extend(tokens[:, None], mask, mask.bool())
    return [text.strip() for text in texts]


def _until(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there is one. A blank stop string counts only after the first
    visible character: a line break that opens an answer does not end it."""
    begun = len(text) - len(text.lstrip())
    ends = [end for mark in stop if (end := text.find(mark, 0 if mark.strip() else begun)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def _end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's end token and those of the model's generation config (chat models end turns with another one)."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, (list, tuple)) else [configured]
    return {int(token) for token in (*several, tokenizer.eos_token_id) if token is not None}


def _with_room(spare: Sequence[int], limit: int, where: object, leave_out: bool) -> list[int]:
    """Indices of the answers that leave room for a prompt. Raises: DataError: one does not, unless ``leave_out``."""
    kept = [index for index, room in enumerate(spare) if room >= 0]
    if len(kept) == len(spare) or (kept and leave_out):
        return kept
    number = next(index for index, room in enumerate(spare) if room < 0)
    raise DataError(
        "an answer leaves no room for its prompt",
        where=f"{where}, row {number + 1}",
        found=f"{limit - spare[number]} tokens",
        expected=f"at most {limit}",
        fix="raise max_length or shorten the answer (answers are never cut), or set too_long: leave-out",
    )
