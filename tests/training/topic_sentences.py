"""The sentences that the tests of training learn from."""

from __future__ import annotations

TOPICS = {
    "food": ("The cook baked fresh bread with butter", "A soup of beans and onions boiled slowly"),
    "sports": ("The team won the match in the last minute", "A runner crossed the line before her rivals"),
    "travel": ("The train to the coast leaves at seven", "A ferry carried tourists to the quiet island"),
}


def sentences() -> list[str]:
    """72 sentences of three topics, some longer than others."""
    tails = ("", " today", " again", " and nobody was surprised", " as it did every year", " on a cold morning")
    return [
        f"{text}{first}{second}"
        for texts in TOPICS.values()
        for text in texts
        for first in tails
        for second in tails[:2]
    ]
