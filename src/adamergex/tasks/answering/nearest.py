"""Labels by the nearest name: what a sentence encoder answers without a head and without any training.

    score(label | text) = log softmax over labels of cos(v(text), v(name)) / τ

v are mean-pooled vectors (``pooling``), τ = 0.01 is E5's (2212.03533). The name of a label is what the prompt says
after the text, and the label's word: "Topic: food".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from adamergex.backbones.loading import frame, is_sentence_encoder
from adamergex.backbones.pooling import all_text_vectors
from adamergex.data.values import Row
from adamergex.tasks import pieces_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.jobs.settings import Classification

TEMPERATURE = 0.01


def answers_by_name(task: Classification, base: str) -> bool:
    """Whether a base without a trained head answers so: a sentence encoder, which has no head for a cloze either."""
    return task.head != "cls" and is_sentence_encoder(base)


def nearest_scores(
    model: nn.Module,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    task: Classification,
    *,
    longest: int,
) -> tuple[list[NDArray[np.float64]], int]:
    """log p(label | text) of each row, and how many texts were cut."""
    before, after = frame(tokenizer)
    room, pad = min(task.max_length, longest) - len(before) - len(after), int(tokenizer.pad_token_id)
    texts = [str(row["text"]) for row in rows]
    found = [pieces_of(tokenizer, items) for items in (texts, label_names(task))]
    vectors, names = (
        functional.normalize(
            all_text_vectors(model, [before + ids[:room] + after for ids in part], pad).double(), dim=1
        )
        for part in found
    )
    scores = (vectors @ names.T / TEMPERATURE).log_softmax(-1)
    return list(scores.numpy()), sum(len(ids) > room for ids in found[0])


def label_names(task: Classification) -> list[str]:
    """What stands for each label."""
    after = task.prompt.rpartition("{text}")[2].strip()
    return [f"{after} {task.words.get(label, label)}".strip() for label in task.labels]
