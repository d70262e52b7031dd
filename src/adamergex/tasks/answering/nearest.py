"""Labels by the nearest label name: zero-shot answers of a sentence encoder without a head.

    score(label | text) = log softmax over labels of cos(v(text), v(name)) / τ

v are mean-pooled vectors (``pooling``), τ = 0.01 as in E5 (2212.03533). The name of a label is the part of the prompt
after the text, followed by the label's word: "Topic: food".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from adamergex.backbones.loading import is_sentence_encoder
from adamergex.backbones.pooling import all_text_vectors
from adamergex.data.values import Row
from adamergex.tasks.sequences import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamergex.jobs.settings import Classification

TEMPERATURE = 0.01


def answers_by_name(task: Classification, base: str) -> bool:
    """Whether a base without a trained head answers by label name: a sentence encoder, which cannot fill a cloze."""
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
    limit, pad = min(task.max_length, longest), int(tokenizer.pad_token_id)
    texts, truncated = encode_texts([str(row["text"]) for row in rows], tokenizer, limit)
    names, _ = encode_texts(label_names(task), tokenizer, limit)
    text_vectors, name_vectors = (
        functional.normalize(all_text_vectors(model, ids, pad).double(), dim=1) for ids in (texts, names)
    )
    scores = (text_vectors @ name_vectors.T / TEMPERATURE).log_softmax(-1)
    return list(scores.numpy()), truncated


def label_names(task: Classification) -> list[str]:
    """The text that represents each label."""
    after = task.prompt.rpartition("{text}")[2].strip()
    return [f"{after} {task.words.get(label, label)}".strip() for label in task.labels]
