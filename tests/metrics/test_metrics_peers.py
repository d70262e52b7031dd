"""The same numbers as the peers on random input (the goldens hold some of them too)."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from importlib import import_module

import pytest

from adamergex.metrics import accuracy, entities, rouge

TAGS = ["O", "B-A", "I-A", "B-B", "I-B"]
WORDS = ["a", "b", "the", "中", "国", "ไ", "ท", ".", "é"]


def test_entities_as_seqeval() -> None:
    seqeval = import_module("seqeval.metrics")
    scheme = import_module("seqeval.scheme").IOB2
    chance = random.Random(0)
    for _ in range(200):
        lengths = [chance.randint(1, 8) for _ in range(3)]
        gold, found = ([chance.choices(TAGS, k=length) for length in lengths] for _ in range(2))
        for mode, options in (("lenient", {}), ("strict", {"mode": "strict", "scheme": scheme})):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                names = ("precision_score", "recall_score", "f1_score")
                expected = [100 * getattr(seqeval, name)(gold, found, **options) for name in names]
            assert list(entities.entity_scores(found, gold, mode=mode)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", rouge.TOKENIZERS)
def test_rouge_as_rouge_score(name: str) -> None:
    peer = import_module("rouge_score.rouge_scorer")
    scorer = peer.RougeScorer(["rougeL"], tokenizer=_Tokenizer(rouge.TOKENIZERS[name]))
    chance = random.Random(0)
    for _ in range(200):
        gold, found = (" ".join(chance.choices(WORDS, k=chance.randint(0, 12))) for _ in "12")
        expected = scorer.score(gold, found)
        assert list(rouge.rouge_l(found, gold, name)) == pytest.approx([100 * x for x in expected["rougeL"]], abs=1e-9)


def test_labels_as_scikit_learn() -> None:
    peer = import_module("sklearn.metrics")
    chance = random.Random(0)
    for _ in range(20):
        gold, found = ([chance.randint(0, 4) for _ in range(15)] for _ in "12")
        assert accuracy.accuracy(found, gold) == pytest.approx(100 * peer.accuracy_score(gold, found))


class _Tokenizer:
    def __init__(self, tokenize: Callable[[str], list[str]]) -> None:
        self.tokenize = tokenize
