"""The shipped corpus: balanced, varied, and no part overlaps another."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from adamergex.tables.demo import CORPUS

LANGUAGES = ("en", "fr", "es", "de", "tr", "sw", "vi")
TOPICS = {"food", "health", "politics", "sports", "technology", "travel"}
LABELLED = [f"{language}.test" for language in LANGUAGES] + ["en.train", "fr.validation"]


def labelled(name: str) -> list[tuple[str, str]]:
    header, *lines = (CORPUS / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "label\ttext"
    return [tuple(line.split("\t")) for line in lines]  # type: ignore[misc]


def unlabelled(language: str) -> list[str]:
    return (CORPUS / f"{language}.text.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_balanced(name: str) -> None:
    counts = Counter(label for label, _ in labelled(name))
    assert set(counts) == TOPICS
    assert len(set(counts.values())) == 1
    assert sum(counts.values()) >= (350 if name == "en.train" else 120)


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_is_enough_unlabelled_text(language: str) -> None:
    assert len(unlabelled(language)) >= 500


@pytest.mark.parametrize("language", LANGUAGES)
def test_parts_do_not_overlap(language: str) -> None:
    """No sentence twice, and none nearly so: words shared over words in either stay under 0.6."""
    texts = [text for name in LABELLED if name.startswith(language) for _, text in labelled(name)]
    texts += unlabelled(language)
    assert len({text.casefold() for text in texts}) == len(texts)
    bags = [frozenset(text.casefold().split()) for text in texts]
    for first, second in combinations(bags, 2):
        assert len(first & second) < 0.6 * len(first | second), (first, second)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_varied(language: str) -> None:
    texts = [text for name in LABELLED if name.startswith(language) for _, text in labelled(name)]
    texts += unlabelled(language)
    openings = Counter(" ".join(text.casefold().split()[:3]) for text in texts)
    assert openings.most_common(1)[0][1] <= 6
    assert min(len(text) for text in texts) >= 20
