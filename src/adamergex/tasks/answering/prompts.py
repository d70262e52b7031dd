"""Prompts: the part that may be cut, and the tokens of an answer that follows a prompt."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from adamergex.data.values import Row
from adamergex.errors import ConfigError
from adamergex.tasks import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = list[int]
_TAIL = 80  # characters


class Prompt(NamedTuple):
    """A prompt ``fill(text)`` of which only ``text`` may be cut; ``keep``: the side of the text that is kept."""

    text: str
    fill: Callable[[str], str]
    keep: Literal["start", "end"] = "start"

    @classmethod
    def of(cls, template: str, fields: Row, cut: str) -> Prompt:
        """``template`` with its {fields}; the field named ``cut`` is cut at its end when the prompt is too long."""
        return cls(str(fields[cut]), lambda text: template.format(**{**fields, cut: text}))

    @property
    def whole(self) -> str:
        return self.fill(self.text)

    def cut(self, characters: int) -> str:
        """The prompt with only ``characters`` of its text."""
        return self.fill(self.text[:characters] if self.keep == "start" else self.text[len(self.text) - characters :])


def prompt_of(prompt: str | Prompt) -> Prompt:
    """The prompt without trailing spaces, whose tokens no answer follows in training.

    A plain string is cut at its beginning, so that the part next to the answer is kept.
    """
    full = prompt if isinstance(prompt, Prompt) else Prompt(prompt, str, "end")
    return full._replace(fill=lambda text: full.fill(text).rstrip(" "))


def framed(
    prompts: Sequence[str | Prompt], tokenizer: PreTrainedTokenizerBase, *, chat: bool = False
) -> tuple[list[Prompt], TokenIds, TokenIds]:
    """The prompts, and the special tokens before and after each; in a ``chat`` the template writes them.

    Raises: ConfigError: ``chat`` with a tokenizer whose template is missing or fails.
    """
    from adamergex.backbones.loading import frame

    trimmed = [prompt_of(prompt) for prompt in prompts]
    if chat:
        return [_in_chat(prompt, tokenizer) for prompt in trimmed], [], []
    return trimmed, *frame(tokenizer)


def _in_chat(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    from adamergex.backbones.chat import in_chat

    return prompt._replace(fill=lambda text: in_chat(tokenizer, prompt.fill(text)))


def fit(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, rooms: Sequence[int], *, where: object = "max_length"
) -> tuple[list[TokenIds], int]:
    """The tokens of each prompt without special tokens, at most ``rooms`` of them; and how many prompts were cut.

    Raises: ConfigError for a prompt whose fixed part leaves no room for its text.
    """
    fitted, truncated = token_ids(tokenizer, [prompt.whole for prompt in prompts]), 0
    for index, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
        if len(fitted[index]) <= room:
            continue
        truncated += 1
        # The longest part of the text whose prompt fits; the token count grows with the characters.
        keep = bisect.bisect_right(range(len(prompt.text)), room, key=partial(_count, tokenizer, prompt))
        if keep <= 1:
            raise ConfigError(
                "the prompt leaves no room for the text",
                where=where,
                found=f"{room} tokens for prompt and text",
                expected="more than the prompt alone takes",
                fix="raise max_length, or shorten the prompt or the answer",
            )
        fitted[index] = token_ids(tokenizer, [prompt.cut(keep - 1)])[0]
    return fitted, truncated


def following(tokenizer: PreTrainedTokenizerBase, contexts: Sequence[str], answers: Sequence[str]) -> list[TokenIds]:
    """The tokens of each answer after its context and a space (no space after a line break).

    The answer is tokenised together with the context's last words, since no tokenizer merges across more distant words.
    Where context and answer would share a token, the result is the tokens of " answer" alone.
    """
    contexts = [_last_words(context.rstrip(" ")) for context in contexts]
    spaces = ["" if not context or context[-1].isspace() else " " for context in contexts]
    starts = dict(zip(unique := list(dict.fromkeys(contexts)), token_ids(tokenizer, unique), strict=True))
    wholes = token_ids(tokenizer, [c + s + answer for c, s, answer in zip(contexts, spaces, answers, strict=True)])
    result = []
    for context, space, answer, whole in zip(contexts, spaces, answers, wholes, strict=True):
        start = starts[context]
        follows = whole[: len(start)] == start and len(whole) > len(start)
        result.append(whole[len(start) :] if follows else token_ids(tokenizer, [space + answer])[0])
    return result


def _last_words(context: str) -> str:
    """The last two or more words of a long context; a short context, or one without spaces, as it is."""
    tail = context[-_TAIL:].partition(" ")[2] if len(context) > _TAIL else ""
    return tail if " " in tail.strip() else context


def _count(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, characters: int) -> int:
    return len(token_ids(tokenizer, [prompt.cut(characters)])[0])
