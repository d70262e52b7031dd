"""Prompts: which part of one may be cut, and the pieces that an answer has after it."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from adamergex.data.values import Row
from adamergex.errors import ConfigError
from adamergex.tasks import pieces_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pieces = list[int]
_TAIL = 80  # characters


class Prompt(NamedTuple):
    """A prompt of which only ``text`` may be cut: what is read is ``fill(text)``, with the ``keep`` of the text."""

    text: str
    fill: Callable[[str], str]
    keep: Literal["start", "end"] = "start"

    @classmethod
    def of(cls, template: str, fields: Row, cut: str) -> Prompt:
        """``template`` with its {fields}; the field named ``cut`` loses its end where the whole is too long."""
        return cls(str(fields[cut]), lambda text: template.format(**{**fields, cut: text}))

    @property
    def whole(self) -> str:
        return self.fill(self.text)

    def cut(self, characters: int) -> str:
        """The prompt with so many characters of its text."""
        return self.fill(self.text[:characters] if self.keep == "start" else self.text[len(self.text) - characters :])


def prompt_of(prompt: str | Prompt) -> Prompt:
    """The prompt without spaces at its end, which would be pieces that no answer follows in training.

    A plain string is cut at its beginning: what is nearest to the answer stays.
    """
    given = prompt if isinstance(prompt, Prompt) else Prompt(prompt, str, "end")
    return given._replace(fill=lambda text: given.fill(text).rstrip(" "))


def framed(
    prompts: Sequence[str | Prompt], tokenizer: PreTrainedTokenizerBase, *, chat: bool = False
) -> tuple[list[Prompt], Pieces, Pieces]:
    """The prompts, and the special pieces before and after each; in a ``chat`` the template has written those.

    Raises: ConfigError: a chat is asked for, and the tokenizer has no template, or one that fails.
    """
    from adamergex.backbones.loading import frame

    asked = [prompt_of(prompt) for prompt in prompts]
    if chat:
        return [_in_chat(prompt, tokenizer) for prompt in asked], [], []
    return asked, *frame(tokenizer)


def _in_chat(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    from adamergex.backbones.chat import in_chat

    return prompt._replace(fill=lambda text: in_chat(tokenizer, prompt.fill(text)))


def fitted(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, rooms: Sequence[int], *, where: object = "max_length"
) -> tuple[list[Pieces], int]:
    """The pieces of each prompt, without special ones, in at most its ``rooms`` pieces; and how many were cut.

    Raises: ConfigError for a prompt whose other parts leave no room for any of its text.
    """
    found, truncated = pieces_of(tokenizer, [prompt.whole for prompt in prompts]), 0
    for index, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
        if len(found[index]) <= room:
            continue
        truncated += 1
        # The longest part of the text whose prompt fits; pieces grow with the characters.
        keep = bisect.bisect_right(range(len(prompt.text)), room, key=partial(_count, tokenizer, prompt))
        if keep <= 1:
            raise ConfigError(
                "the prompt leaves no room for the text",
                where=where,
                found=f"{room} tokens for prompt and text",
                expected="more than the prompt alone has",
                fix="raise max_length, or shorten the prompt or the answer",
            )
        found[index] = pieces_of(tokenizer, [prompt.cut(keep - 1)])[0]
    return found, truncated


def following(tokenizer: PreTrainedTokenizerBase, contexts: Sequence[str], answers: Sequence[str]) -> list[Pieces]:
    """The pieces of each answer where it follows its context, after a space (none where the context ends a line).

    Tokenised with the context's last words before it: no tokenizer joins pieces over words further away. Where context
    and answer would share a piece, the pieces of " answer" alone.
    """
    contexts = [_last_words(context.rstrip(" ")) for context in contexts]
    spaces = ["" if not context or context[-1].isspace() else " " for context in contexts]
    starts = dict(zip(unique := list(dict.fromkeys(contexts)), pieces_of(tokenizer, unique), strict=True))
    wholes = pieces_of(tokenizer, [c + s + answer for c, s, answer in zip(contexts, spaces, answers, strict=True)])
    result = []
    for context, space, answer, whole in zip(contexts, spaces, answers, wholes, strict=True):
        start = starts[context]
        follows = whole[: len(start)] == start and len(whole) > len(start)
        result.append(whole[len(start) :] if follows else pieces_of(tokenizer, [space + answer])[0])
    return result


def _last_words(context: str) -> str:
    """At least two words of a long context's end; all of a short one, and of one whose script sets no spaces."""
    tail = context[-_TAIL:].partition(" ")[2] if len(context) > _TAIL else ""
    return tail if " " in tail.strip() else context


def _count(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, characters: int) -> int:
    return len(pieces_of(tokenizer, [prompt.cut(characters)])[0])
