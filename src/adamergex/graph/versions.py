"""The version of every kind of step, which is part of a step's key.

Raise a kind's version whenever the same inputs give a different result, so that stores never return results of earlier
code. Steps that read such a result need no new version: their keys contain the keys of their inputs.
"""

from __future__ import annotations

VERSIONS: dict[str, int] = {
    # 2: sparse fine-tuning of a language model unties and freezes the output matrix (LF-SFT); heads train in float32,
    #    multimodal models in their language part, (IA)³ of one's own modules at what down-projections read.
    # 3: alignment and contrast of sentences compute in the precision that was asked for.
    "train": 3,
    "import": 1,
    # 2: TIES and DARE act on task vectors (ΔW of LoRA, l − 1 of (IA)³), no longer on A and B.
    "merge": 2,
    # 2: scores of written answers, and sampled test items.
    # 3: intervals (Wilson, clusters of rows that share a passage or premise).
    # 4: spellings that look alike, signs and separators of written answers.
    "tune": 4,
    "choose": 1,
    # 2: the same; and a sparse difference leaves the output matrix of a tied model as it is.
    # 3: intervals, and the group of each item.
    # 4: as of "tune".
    "evaluate": 4,
}


def version(kind: str) -> int:
    """The version of a kind of step; 1 for a kind that is not listed."""
    return VERSIONS.get(kind, 1)
