"""Free answers: greedy decoding after prompts, and the examples that teach answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adamergex.backbones.logits import without_adapter
from adamergex.errors import ConfigError, DataError
from adamergex.tasks import Examples, pieces_of
from adamergex.tasks.answering.prompts import Pieces, Prompt, fitted, following, framed
from adamergex.tasks.answering.reading import Reading, by_length, read
from adamergex.tasks.classification import PromptExamples, answered

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
    """What the model says after each prompt, most probable piece by piece, and how many prompts were cut.

    An answer ends before an end piece or the first of the ``stop`` strings, or after ``max_new_tokens`` pieces; it
    never holds the prompt, special pieces, or space around it. ``chat``: each prompt is a user's message in the
    tokenizer's chat template. Only a ``Prompt``'s text is cut; of a plain string, the beginning.
    ``thought``: the model retells its prompt before the answer, so the cap on new pieces is the prompt's length plus
    ``max_new_tokens``, at least ``thought``; prompt and cap share ``longest``. 0: ``max_new_tokens`` alone.
    Raises: ConfigError when a prompt does not fit, or when a chat is asked for that the tokenizer has no template of.
    """
    asked, before, after = framed(prompts, tokenizer, chat=chat)
    both = bool(without_adapter(model).config.is_encoder_decoder)
    after = after if both else []
    window = longest - len(before) - len(after)
    room = window - (0 if both else max_new_tokens)
    if thought:
        room = min((window - max_new_tokens) // 2, window if both else window - max(thought, max_new_tokens))
    found, truncated = fitted(asked, tokenizer, [room] * len(asked), where="longest")
    whole = [before + pieces + after for pieces in found]
    caps = [max(len(pieces) + max_new_tokens, thought) if thought else max_new_tokens for pieces in found]
    answers = [""] * len(whole)
    for indices in by_length([len(pieces) + cap for pieces, cap in zip(whole, caps, strict=True)], batch_tokens):
        reading = read(model, [whole[index] for index in indices], tokenizer)
        for index, answer in zip(
            indices, _say(reading, tokenizer, [caps[index] for index in indices], stop), strict=True
        ):
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
    """Examples whose loss is on each answer and the end piece after it, never on its prompt.

    A decoder reads prompt and answer in at most ``max_length`` pieces; of an encoder-decoder, the encoder's prompt and
    the decoder's answer have as many each. Only prompts are cut: a ``Prompt``'s text, a plain string's beginning.
    ``leave_out``: an answer that leaves no room for its prompt is not learned, instead of being an error.
    Raises: DataError for an empty answer or one that leaves no room; ConfigError for an encoder.
    """
    if family == "encoder":
        raise ConfigError("an encoder cannot generate an answer", fix="choose a decoder or an encoder-decoder")
    for number, answer in enumerate(answers, 1):
        if not answer.strip():
            raise DataError("an answer is empty", where=f"{where}, row {number}", fix="correct the data")
    (asked, before, after), limit = framed(prompts, tokenizer, chat=chat), min(max_length, longest)
    if family == "encoder-decoder":
        said = pieces_of(tokenizer, answers)
        spare = [limit - len(before) - len(pieces) - len(after) for pieces in said]
        kept = _with_room(spare, limit, where, leave_out)
        found, truncated = fitted([asked[at] for at in kept], tokenizer, [limit - len(before) - len(after)] * len(kept))
        inputs = [before + pieces + after for pieces in found]
        made = answered(inputs, [said[at] for at in kept], tokenizer, truncated)
        return replace(made, left_out=len(said) - len(kept))
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    said = [pieces + end for pieces in following(tokenizer, [prompt.whole for prompt in asked], answers)]
    rooms = [limit - len(before) - len(pieces) for pieces in said]
    # To leave out: where what is never cut of the prompt, and a piece of its text, have no room.
    uncut = pieces_of(tokenizer, [prompt.cut(0) for prompt in asked]) if leave_out else [[]] * len(asked)
    kept = _with_room([room - len(part) - 1 for room, part in zip(rooms, uncut, strict=True)], limit, where, leave_out)
    found, truncated = fitted([asked[at] for at in kept], tokenizer, [rooms[at] for at in kept])
    inputs, learned = [before + pieces for pieces in found], [said[at] for at in kept]
    return PromptExamples(inputs, learned, int(tokenizer.pad_token_id), truncated, len(said) - len(kept))


def _say(reading: Reading, tokenizer: PreTrainedTokenizerBase, caps: Sequence[int], stop: Sequence[str]) -> list[str]:
    """The answer of every row, at most its ``caps`` pieces; rows leave the batch as they end."""
    ends = _end_pieces(reading.model, tokenizer)
    said: list[Pieces] = [[] for _ in range(len(reading.seen))]
    texts = [""] * len(said)
    alive = list(range(len(said)))
    for _ in range(max(caps)):
        pieces = reading.logits.argmax(-1)
        going = []
        for place, (row, piece) in enumerate(zip(alive, pieces.tolist(), strict=True)):
            if piece in ends:
                continue
            said[row].append(piece)
            texts[row], stopped = _until(_text(said[row], tokenizer), stop)
            if not stopped and len(said[row]) < caps[row]:
                going.append(place)
        if not going:
            break
        if len(going) < len(alive):
            reading, alive, pieces = reading.select(going), [alive[place] for place in going], pieces[going]
        reading.logits = _next(reading, pieces[:, None])
    return [text.strip() for text in texts]


def _next(reading: Reading, ids: Tensor) -> Tensor:
    real = torch.ones_like(ids)
    return reading.go_on(ids, real, real.bool())


def _text(pieces: Pieces, tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(pieces, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _until(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there is one. A blank stop string ends an answer that has
    begun: a model that opens its answer with a line break has not answered yet."""
    begun = len(text) - len(text.lstrip())
    places = [place for mark in stop if (place := text.find(mark, 0 if mark.strip() else begun)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _end_pieces(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's end piece, and those of the model's generation settings (chat models end turns otherwise)."""
    named = getattr(model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, (list, tuple)) else [named]
    return {int(piece) for piece in (*several, tokenizer.eos_token_id) if piece is not None}


def _with_room(spare: Sequence[int], limit: int, where: object, leave_out: bool) -> list[int]:
    """The places of the answers that leave room for a prompt: all, or all but those to leave out."""
    kept = [place for place, room in enumerate(spare) if room >= 0]
    if len(kept) == len(spare) or (kept and leave_out):
        return kept
    number = next(place for place, room in enumerate(spare) if room < 0)
    raise DataError(
        "an answer leaves no room for its prompt",
        where=f"{where}, row {number + 1}",
        found=f"{limit - spare[number]} tokens",
        expected=f"at most {limit}",
        fix="raise max_length or shorten the answer (answers are never cut), or set too_long: leave-out",
    )
