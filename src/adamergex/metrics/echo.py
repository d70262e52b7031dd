"""Removes the prompt from a decoder's output: it is not part of the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from adamergex.metrics.checks import check_pairs
from adamergex.metrics.text import comparable


def without_prompt(output: str, prompt: str) -> str:
    """``output`` after the prompt if it starts with it. Decoding may change white space and compose marks."""
    if prompt and output.startswith(prompt):
        return output[len(prompt) :]
    words, written = comparable(prompt).split(), comparable(output)
    echo = re.match(r"\s*" + r"\s+".join(map(re.escape, words)), written) if words else None
    return written[echo.end() :] if echo else output


def without_prompts(outputs: Sequence[str], prompts: Sequence[str] | None, where: str) -> Sequence[str]:
    """``without_prompt`` of each output; without prompts, the outputs (the caller has removed the prompt's tokens).

    Raises: DataError for different numbers of prompts and outputs.
    """
    if prompts is None:
        return outputs
    check_pairs(outputs, prompts, f"{where}, prompts")
    return [without_prompt(output, prompt) for output, prompt in zip(outputs, prompts, strict=True)]
