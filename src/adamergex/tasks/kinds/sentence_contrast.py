"""A reference task of sentence encoders on unlabelled text: match a text with its noisy copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamergex.jobs.settings import SentenceContrast
from adamergex.tasks.task_kind import Answering, Request, TaskKind

if TYPE_CHECKING:
    from adamergex.tasks import Examples


def _train_examples(request: Request[SentenceContrast]) -> Examples:
    from adamergex.tasks.sentences import contrast

    texts = [str(row["text"]) for row in request.rows]
    return contrast(
        texts, request.loaded, request.task, seed=request.seed, longest=request.longest, where=request.where
    )


KIND = TaskKind(
    settings=SentenceContrast,
    columns=lambda task: ("text",),
    answering={"sentence-encoder": Answering(_train_examples, None)},
    encoder=lambda task, base: "sentence-encoder",
)
