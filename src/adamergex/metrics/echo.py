"""The prompt never counts as answer: a decoder's output may begin with what it was asked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from adamergex.metrics.checks import check_pairs
from adamergex.metrics.text import comparable


def without_prompt(output: str, prompt: str) -> str:
    """``output`` after the prompt it begins with, or all of it. Decoding may change white space and compose marks."""
    if prompt and output.startswith(prompt):
        return output[len(prompt) :]
    words, written = comparable(prompt).split(), comparable(output)
    echo = re.match(r"\s*" + r"\s+".join(map(re.escape, words)), written) if words else None
    return written[echo.end() :] if echo else output


def without_prompts(outputs: Sequence[str], prompts: Sequence[str] | None, where: str) -> Sequence[str]:
    """``without_prompt`` of each; no prompts: the outputs as they are (the caller has cut the prompt's tokens off).

    Raises: DataError: not as many prompts as outputs.
    """
    if prompts is None:
        return outputs
    check_pairs(outputs, prompts, f"{where}, prompts")
    return [without_prompt(output, prompt) for output, prompt in zip(outputs, prompts, strict=True)]
