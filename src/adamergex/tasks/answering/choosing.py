"""Choices of each row scored by log-likelihood after its context, which is read once for all of them.

With n choices of c pieces after a context of P, reading one by one costs n(P + c) pieces, this P + nc: with the choices
side by side in one pass where the model is known to follow any mask, else over the context's keys and values.
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
from adamergex.tasks import pieces_of
from adamergex.tasks.answering.prompts import Pieces, Prompt, fitted, following, framed
from adamergex.tasks.answering.reading import Reading, by_length, read
from adamergex.tasks.classification import padded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BESIDE = ("llama", "mistral", "qwen2", "qwen3", "gemma")  # rotary positions as given, full attention
CALL = 48  # what a forward pass of a small model costs beside its pieces, in pieces


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

    The sum over the choice's pieces, without an end piece, as lm-evaluation-harness scores ``acc``. ``normalised``:
    divided by the choice's characters, as it does for ``acc_norm`` (fair between languages whose pieces differ in
    length; by UTF-8 bytes it would be ``acc_bytes``). A decoder reads "context choice"; an encoder-decoder's encoder
    reads the context, its decoder says the choice. ``chat``: contexts are users' messages in the chat template. Only a
    ``Prompt``'s text is cut; of a plain string, the beginning.
    Raises: DataError for a row without choices or an empty choice; ConfigError when a context does not fit, or for a
    chat without a template.
    """
    _require_choices(contexts, choices)
    prompts, before, after = framed(contexts, tokenizer, chat=chat)
    counts = [len(row) for row in choices]
    flat = [choice for row in choices for choice in row]
    if without_adapter(model).config.is_encoder_decoder:
        pieces, closing = pieces_of(tokenizer, flat), after
        rooms = [longest - len(before) - len(after)] * len(prompts)
    else:
        repeated = [prompt.whole for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        pieces, closing = following(tokenizer, repeated, flat), []
        rooms = [longest - len(before) - max(map(len, row)) for row in _grouped(pieces, counts)]
    found, truncated = fitted(prompts, tokenizer, rooms, where="longest")
    read_as = [before + context + closing for context in found]
    scores = piece_scores(model, read_as, _grouped(pieces, counts), tokenizer, batch_tokens)
    if normalised:
        scores = [row / [len(text) for text in texts] for row, texts in zip(scores, choices, strict=True)]
    return scores, truncated


@torch.inference_mode()
def piece_scores(
    model: nn.Module,
    prompts: Sequence[Pieces],
    choices: Sequence[Sequence[Pieces]],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int,
) -> list[NDArray[np.float64]]:
    """Sums of log-probabilities of each row's choices after its prompt, both in pieces, special ones included."""
    result: list[NDArray[np.float64]] = [np.zeros(0)] * len(prompts)
    lengths = [len(prompt) + sum(map(len, row)) for prompt, row in zip(prompts, choices, strict=True)]
    beside = _reads_beside(model)
    for indices in by_length(lengths, batch_tokens):
        chosen, group = [prompts[index] for index in indices], [choices[index] for index in indices]
        sums = _beside(model, chosen, group) if beside else _after(read(model, chosen, tokenizer), group)
        found = sums.double().cpu().numpy()
        ends = np.cumsum([len(choices[index]) for index in indices])[:-1]
        for index, scores in zip(indices, np.split(found, ends), strict=True):
            result[index] = scores
    return result


def _reads_beside(model: nn.Module) -> bool:
    """Whether the model is known to follow a mask and positions of any shape: one pass then, and no copied cache."""
    config = without_adapter(model).config
    return (
        config.model_type in _BESIDE
        and config._attn_implementation in ("sdpa", "eager")
        and getattr(config, "sliding_window", None) is None
        and not virtual_tokens(model)
    )


def _beside(model: nn.Module, prompts: Sequence[Pieces], choices: Sequence[Sequence[Pieces]]) -> Tensor:
    """Sums of log-probabilities as of ``_after``: each row's choices stand one behind the other after its prompt, every
    one at the positions that follow the prompt, and sees the prompt and itself alone."""
    flat = [pieces for group in choices for pieces in group]
    rows = [p + [x for c in group for x in c[:-1]] for p, group in zip(prompts, choices, strict=True)]
    parts = torch.full((len(rows), max(map(len, rows))), -1)  # 0 in the prompt, 1 in the first choice, …
    positions = torch.zeros_like(parts)
    wanted = torch.zeros_like(positions, dtype=torch.bool)
    sources: list[int] = []  # of every piece of every choice: the number of the wanted place that predicts it
    seen = 0
    for row, (prompt, group) in enumerate(zip(prompts, choices, strict=True)):
        at, first = len(prompt), seen
        parts[row, :at], positions[row, :at], wanted[row, at - 1] = 0, torch.arange(at), True
        seen += 1
        for number, pieces in enumerate(group, 1):
            end = at + len(pieces) - 1
            parts[row, at:end], wanted[row, at:end] = number, True
            positions[row, at:end] = torch.arange(len(prompt), len(prompt) + end - at)
            sources += [first, *range(seen, seen + end - at)]
            seen, at = seen + end - at, end
    sees = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
    parameter = next(model.parameters())
    mask = torch.zeros(sees.shape, dtype=parameter.dtype).masked_fill(~sees.tril(), torch.finfo(parameter.dtype).min)
    given = {"input_ids": padded(rows, 0)["input_ids"], "attention_mask": mask[:, None], "position_ids": positions}
    given, device = {name: tensor.to(parameter.device) for name, tensor in given.items()}, parameter.device
    found = logits_at(without_adapter(model), given, wanted.to(device)).float().log_softmax(-1)
    labels = torch.tensor([piece for pieces in flat for piece in pieces], device=device)
    said = found[torch.tensor(sources, device=device), labels]
    owners = torch.tensor([place for place, pieces in enumerate(flat) for _ in pieces], device=device)
    return torch.zeros(len(flat), device=device).index_add(0, owners, said)


def _after(reading: Reading, choices: Sequence[Sequence[Pieces]]) -> Tensor:
    """Sums of log-probabilities of all rows' choices, one row's after the other's."""
    rows = [row for row, group in enumerate(choices) for _ in group]
    flat = [pieces for group in choices for pieces in group]
    device = reading.logits.device
    first = torch.tensor([pieces[0] for pieces in flat], device=device)
    scores: Tensor = reading.logits.float().log_softmax(-1)[torch.tensor(rows, device=device), first]
    for places in _groups([len(pieces) - 1 for pieces in flat]):
        scores[places] += _rest(reading.select([rows[place] for place in places]), [flat[place] for place in places])
    return scores


def _rest(reading: Reading, choices: Sequence[Pieces]) -> Tensor:
    """Sum of log-probabilities of all pieces of each row's choice but the first."""
    given = padded([pieces[:-1] for pieces in choices], 0)
    ids, real = (given[name].to(reading.seen.device) for name in ("input_ids", "attention_mask"))
    labels = padded([pieces[1:] for pieces in choices], 0)["input_ids"].to(ids.device)
    wanted = real.bool()
    found = reading.go_on(ids, real, wanted).float().log_softmax(-1).gather(1, labels[wanted][:, None])[:, 0]
    sums = torch.zeros(ids.shape, device=ids.device)
    sums[wanted] = found
    return sums.sum(1)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Places of similar lengths above 0, longest first: a new group where it saves more padding than a call costs."""
    order = sorted((place for place, length in enumerate(lengths) if length), key=lambda place: -lengths[place])
    groups: list[list[int]] = []
    for done, place in enumerate(order):
        if not groups or (lengths[groups[-1][0]] - lengths[place]) * (len(order) - done) > CALL:
            groups.append([])
        groups[-1].append(place)
    return groups


def _require_choices(contexts: Sequence[str | Prompt], choices: Sequence[Sequence[str]]) -> None:
    if len(contexts) != len(choices):
        raise ConfigError(
            "the numbers of contexts and of rows of choices differ", found=f"{len(contexts)} and {len(choices)}",
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


def _grouped(flat: list[Pieces], counts: Sequence[int]) -> list[list[Pieces]]:
    ends = np.cumsum(counts)
    return [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]
