"""Log-likelihood of each row's choices after its context, which is encoded once for all choices.

With n choices of c tokens after a context of P tokens, separate passes cost n(P + c) tokens and this one P + nc. Models
known to follow any attention mask read all choices side by side in one pass; others reuse the context's KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adamergex.adapters.peft_backed import virtual_tokens
from adamergex.backbones.logits import logits_at, without_adapter
from adamergex.errors import ConfigError, DataError
from adamergex.tasks import token_ids
from adamergex.tasks.answering.prompts import Prompt, TokenIds, fit, following, framed
from adamergex.tasks.answering.reading import DecodingState, by_length, prefill
from adamergex.tasks.classification import padded
from adamergex.tasks.sequences import on_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANY_MASK = ("llama", "mistral", "qwen2", "qwen3", "gemma")  # rotary positions as given, full attention
CALL = 48  # fixed cost of a small model's forward pass, in tokens


def choice_scores(
    model: nn.Module,
    contexts: Sequence[str | Prompt],
    choices: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    longest: int,
    batch_tokens: int,
    normalised: bool = False,
    chat: bool = False,
) -> tuple[list[NDArray[np.float64]], int]:
    """log p(choice | context) of each row's choices (nats), and how many contexts were cut.

    The score is the sum over the choice's tokens, without an end token, as lm-evaluation-harness scores ``acc``.
    ``normalised``: divided by the choice's characters, as in ``acc_norm`` (comparable between languages whose tokens
    differ in length; dividing by UTF-8 bytes would give ``acc_bytes``). A decoder reads "context choice"; in an
    encoder-decoder, the encoder reads the context and the decoder scores the choice. ``chat``: contexts are user
    messages in the chat template. Only the text of a ``Prompt`` is cut; a plain string is cut at its beginning.
    Raises: DataError for a row without choices or an empty choice; ConfigError when a context does not fit, or for a
    chat without a template.
    """
    _require_choices(contexts, choices)
    prompts, before, after = framed(contexts, tokenizer, chat=chat)
    counts = [len(row) for row in choices]
    flat = [choice for row in choices for choice in row]
    if without_adapter(model).config.is_encoder_decoder:
        tokens, closing = token_ids(tokenizer, flat), after
        rooms = [longest - len(before) - len(after)] * len(prompts)
    else:
        repeated = [prompt.whole for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        tokens, closing = following(tokenizer, repeated, flat), []
        rooms = [longest - len(before) - max(map(len, row)) for row in _grouped(tokens, counts)]
    fitted, truncated = fit(prompts, tokenizer, rooms, where="longest")
    inputs = [before + context + closing for context in fitted]
    scores = tokenized_choice_scores(model, inputs, _grouped(tokens, counts), tokenizer, batch_tokens)
    if normalised:
        scores = [row / [len(text) for text in texts] for row, texts in zip(scores, choices, strict=True)]
    return scores, truncated


@torch.inference_mode()
def tokenized_choice_scores(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    choices: Sequence[Sequence[TokenIds]],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int,
) -> list[NDArray[np.float64]]:
    """Summed log-probabilities of each row's choices after its prompt, all as token ids with special tokens."""
    result: list[NDArray[np.float64]] = [np.zeros(0)] * len(prompts)
    lengths = [len(prompt) + sum(map(len, row)) for prompt, row in zip(prompts, choices, strict=True)]
    one_pass = _supports_any_mask(model)
    for indices in by_length(lengths, batch_tokens):
        batch, batch_choices = [prompts[index] for index in indices], [choices[index] for index in indices]
        if one_pass:
            sums = _side_by_side(model, batch, batch_choices)
        else:
            sums = _from_cache(prefill(model, batch, tokenizer), batch_choices)
        ends = np.cumsum(list(map(len, batch_choices)))[:-1]
        for index, scores in zip(indices, np.split(sums.double().cpu().numpy(), ends), strict=True):
            result[index] = scores
    return result


def _supports_any_mask(model: nn.Module) -> bool:
    """Whether the model is known to follow any mask and positions, so that one pass without a copied cache suffices."""
    config = without_adapter(model).config
    return (
        config.model_type in _ANY_MASK
        and config._attn_implementation in ("sdpa", "eager")
        and getattr(config, "sliding_window", None) is None
        and not virtual_tokens(model)
    )


def _side_by_side(model: nn.Module, prompts: Sequence[TokenIds], choices: Sequence[Sequence[TokenIds]]) -> Tensor:
    """The sums of ``_from_cache`` in one pass: each row holds its prompt and all its choices, one after the other.
    Every choice has the positions that follow the prompt, and attends only to the prompt and itself."""
    flat = [tokens for group in choices for tokens in group]
    rows = [p + [x for c in group for x in c[:-1]] for p, group in zip(prompts, choices, strict=True)]
    parts = torch.full((len(rows), max(map(len, rows))), -1)  # 0 in the prompt, 1 in the first choice, …
    positions = torch.zeros_like(parts)
    wanted = torch.zeros_like(positions, dtype=torch.bool)
    sources: list[int] = []  # for each token of each choice: the number of the wanted position that predicts it
    seen = 0
    for row, (prompt, group) in enumerate(zip(prompts, choices, strict=True)):
        start, first = len(prompt), seen
        parts[row, :start], positions[row, :start], wanted[row, start - 1] = 0, torch.arange(start), True
        seen += 1
        for number, tokens in enumerate(group, 1):
            end = start + len(tokens) - 1
            parts[row, start:end], wanted[row, start:end] = number, True
            positions[row, start:end] = torch.arange(len(prompt), len(prompt) + end - start)
            sources += [first, *range(seen, seen + end - start)]
            seen, start = seen + end - start, end
    attends = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
    dtype, device = (parameter := next(model.parameters())).dtype, parameter.device
    mask = torch.zeros(attends.shape, dtype=dtype).masked_fill(~attends.tril(), torch.finfo(dtype).min)
    inputs = {"input_ids": padded(rows, 0)["input_ids"], "attention_mask": mask[:, None], "position_ids": positions}
    log_p = logits_at(without_adapter(model), on_device(model, inputs), wanted.to(device)).float().log_softmax(-1)
    labels = torch.tensor([token for tokens in flat for token in tokens], device=device)
    token_log_p = log_p[torch.tensor(sources, device=device), labels]
    owners = torch.tensor([choice for choice, tokens in enumerate(flat) for _ in tokens], device=device)
    return torch.zeros(len(flat), device=device).index_add(0, owners, token_log_p)


def _from_cache(state: DecodingState, choices: Sequence[Sequence[TokenIds]]) -> Tensor:
    """Summed log-probabilities of all rows' choices [choices of row 0, choices of row 1, …]."""
    rows = [row for row, group in enumerate(choices) for _ in group]
    flat = [tokens for group in choices for tokens in group]
    device = state.logits.device
    first = torch.tensor([tokens[0] for tokens in flat], device=device)
    scores: Tensor = state.logits.float().log_softmax(-1)[torch.tensor(rows, device=device), first]
    for group in _groups([len(tokens) - 1 for tokens in flat]):
        scores[group] += _rest(state.select([rows[index] for index in group]), [flat[index] for index in group])
    return scores


def _rest(state: DecodingState, choices: Sequence[TokenIds]) -> Tensor:
    """Summed log-probabilities of each row's choice, without its first token."""
    inputs = padded([tokens[:-1] for tokens in choices], 0)
    ids, mask = (inputs[name].to(state.mask.device) for name in ("input_ids", "attention_mask"))
    labels = padded([tokens[1:] for tokens in choices], 0)["input_ids"].to(ids.device)
    wanted = mask.bool()
    sums = torch.zeros(ids.shape, device=ids.device)
    sums[wanted] = state.extend(ids, mask, wanted).float().log_softmax(-1).gather(1, labels[wanted][:, None])[:, 0]
    return sums.sum(1)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of similar lengths above 0, longest first; a new group starts where it saves more padding than a call
    costs."""
    order = sorted((index for index, length in enumerate(lengths) if length), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    for done, index in enumerate(order):
        if not groups or (lengths[groups[-1][0]] - lengths[index]) * (len(order) - done) > CALL:
            groups.append([])
        groups[-1].append(index)
    return groups


def _require_choices(contexts: Sequence[str | Prompt], choices: Sequence[Sequence[str]]) -> None:
    if len(contexts) != len(choices):
        raise ConfigError(
            "contexts and rows of choices differ in number", found=f"{len(contexts)} and {len(choices)}",
            fix="give a list of choices for every context",
        )  # fmt: skip
    for number, row in enumerate(choices, 1):
        if not row or not all(choice.strip() for choice in row):
            raise DataError(
                "a row has no choices" if not row else "a choice is empty",
                where=f"row {number}",
                found=list(row),
                fix="correct the data",
            )


def _grouped(flat: list[TokenIds], counts: Sequence[int]) -> list[list[TokenIds]]:
    ends = np.cumsum(counts)
    return [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]
