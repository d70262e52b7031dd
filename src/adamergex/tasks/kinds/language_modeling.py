"""The reference task on unlabelled text: masked LM, causal LM, span corruption or continuation, by family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamergex.jobs.settings import LanguageModeling
from adamergex.tasks.task_kind import Answering, Request, TaskKind

if TYPE_CHECKING:
    from adamergex.tasks import Examples


def _segments(request: Request[LanguageModeling]) -> Examples:
    from adamergex.tasks.denoising import denoising_examples
    from adamergex.tasks.language_modeling import segments

    texts, loaded = [str(row["text"]) for row in request.rows], request.loaded
    if loaded.kind == "sequence-to-sequence":
        return denoising_examples(
            texts, loaded.tokenizer, request.task, seed=request.seed, longest=request.longest, where=request.where
        )
    masked = loaded.kind == "masked-lm"
    return segments(
        texts, loaded.tokenizer, request.task, masked=masked, seed=request.seed, longest=request.longest,
        where=request.where,
    )  # fmt: skip


_TEXT = Answering(_segments, None)

KIND = TaskKind(
    settings=LanguageModeling,
    columns=lambda task: ("text",),
    answering={"masked-lm": _TEXT, "causal-lm": _TEXT, "sequence-to-sequence": _TEXT},
)
