"""Choices of each row scored by log-likelihood after its context, which is read once for all of them.

With n choices of c pieces after a context of P, reading one by one costs n(P + c) pieces, this P + nc.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adamergex.errors import ConfigError, DataError
from adamergex.logits import without_adapter
from adamergex.models import frame
from adamergex.tasks import pieces_of
from adamergex.tasks.classification import padded
from adamergex.tasks.prompts import Pieces, Prompt, fitted, following, prompt_of
from adamergex.tasks.reading import Reading, by_length, read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def choice_scores(
    model: nn.Module,
    contexts: Sequence[str | Prompt],
    choices: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    longest: int,
    batch_tokens: int,
    normalised: bool = False,
) -> tuple[list[NDArray[np.float64]], int]:
    """log p(choice | context) of each row's choices (nats), and how many contexts were cut.

    The sum over the choice's pieces, without an end piece, as lm-evaluation-harness scores ``acc``. ``normalised``:
    divided by the choice's characters, as it does for ``acc_norm`` (fair between languages whose pieces differ in
    length; by UTF-8 bytes it would be ``acc_bytes``). A decoder reads "context choice"; an encoder-decoder's encoder
    reads the context, its decoder says the choice. Only a ``Prompt``'s text is cut; of a plain string, the beginning.
    Raises: DataError for a row without choices or an empty choice; ConfigError when a context does not fit.
    """
    _require_choices(contexts, choices)
    prompts = [prompt_of(context) for context in contexts]
    counts = [len(row) for row in choices]
    flat = [choice for row in choices for choice in row]
    before, after = frame(tokenizer)
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
    for indices in by_length(lengths, batch_tokens):
        reading = read(model, [prompts[index] for index in indices], tokenizer)
        found = _after(reading, [choices[index] for index in indices]).double().cpu().numpy()
        ends = np.cumsum([len(choices[index]) for index in indices])[:-1]
        for index, scores in zip(indices, np.split(found, ends), strict=True):
            result[index] = scores
    return result


def _after(reading: Reading, choices: Sequence[Sequence[Pieces]]) -> Tensor:
    """Sums of log-probabilities of all rows' choices, one row's after the other's."""
    rows = [row for row, group in enumerate(choices) for _ in group]
    flat = [pieces for group in choices for pieces in group]
    device = reading.logits.device
    first = torch.tensor([pieces[0] for pieces in flat], device=device)
    scores: Tensor = reading.logits.float().log_softmax(-1)[torch.tensor(rows, device=device), first]
    long = [place for place, pieces in enumerate(flat) if len(pieces) > 1]
    if long:
        scores[long] += _rest(reading.select([rows[place] for place in long]), [flat[place] for place in long])
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


def _require_choices(contexts: Sequence[str | Prompt], choices: Sequence[Sequence[str]]) -> None:
    if len(contexts) != len(choices):
        raise ConfigError(
            "contexts and choices are not of the same rows", found=f"{len(contexts)} and {len(choices)}",
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
