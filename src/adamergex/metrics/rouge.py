"""ROUGE with tokenizers for every script.

rouge-score's tokenizer keeps only [a-z0-9], so a Chinese, Thai, Bengali, Hindi or Arabic summary scores 0 against
itself (evaluate#256). Report the tokenizer with every score.

    >>> tokens("ROUGE 很有用, ดี!")
    ['rouge', '很', '有', '用', 'ด', 'ี']
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from adamergex.errors import DataError
from adamergex.metrics.checks import check_pairs, check_texts, known, percent
from adamergex.metrics.text import UNSPACED, comparable

Tokenizer = str | Callable[[str], list[str]]

_ALONE = re.compile(f"([{UNSPACED}])")  # one token per character


class Rouge(NamedTuple):
    """In percent."""

    precision: float
    recall: float
    f1: float


def mixed(text: str) -> list[str]:
    """Lower case; punctuation and symbols (P*, S*) separate; each character of scripts without spaces is a token."""
    lowered = text.lower()
    spaced = lowered.translate({ord(char): " " for char in set(lowered) if unicodedata.category(char)[0] in "PS"})
    return _ALONE.sub(r" \1 ", spaced).split()


def whitespace(text: str) -> list[str]:
    """Lower case, split at white space; punctuation stays attached to words."""
    return text.lower().split()


def ascii_words(text: str) -> list[str]:
    """Runs of a-z and 0-9, as in rouge-score 0.1.2 without stemmer. For comparisons in English."""
    return re.findall("[a-z0-9]+", text.lower())


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"mixed": mixed, "whitespace": whitespace, "ascii": ascii_words}


def tokens(text: str, tokenizer: Tokenizer = "mixed") -> list[str]:
    """The tokens that ROUGE counts, by a name in ``TOKENIZERS`` or a function (a stemmer, a segmenter).

    The text is first normalised by ``metrics.text.comparable``, so texts that look alike have equal tokens.
    Raises: DataError for an unknown name.
    """
    split = known(tokenizer, TOKENIZERS, "tokenizer", "ROUGE") if isinstance(tokenizer, str) else tokenizer
    return split(comparable(text))


def rouge_l(prediction: str, reference: str, tokenizer: Tokenizer = "mixed") -> Rouge:
    """Longest common subsequence of tokens, in percent; 0 if a side has no tokens.

    P = LCS/|prediction|, R = LCS/|reference|, F1 = 2PR/(P+R). Source: Lin 2004, "ROUGE", §3.1 (β = 1, one sequence
    per text, as in rouge-score's rougeL).
    """
    predicted, gold = tokens(prediction, tokenizer), tokens(reference, tokenizer)
    return _scores(_common_subsequence(predicted, gold), len(predicted), len(gold))


def corpus_rouge_l(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, tokenizer: Tokenizer = "mixed"
) -> float:
    """Mean over items of ROUGE-L F1, the maximum over an item's references, in percent.

    Raises: DataError (lengths, no items, a reference without a token: it would score 0 against itself).
    """
    check_pairs(predictions, references, "ROUGE-L")
    check_texts(predictions, "ROUGE-L")
    golds = [_alternatives(reference, number, tokenizer) for number, reference in enumerate(references)]
    best = (
        max(rouge_l(prediction, gold, tokenizer).f1 for gold in alternatives)
        for prediction, alternatives in zip(predictions, golds, strict=True)
    )
    return percent([value / 100 for value in best])


def _alternatives(reference: str | Sequence[str], number: int, tokenizer: Tokenizer) -> Sequence[str]:
    alternatives = [reference] if isinstance(reference, str) else reference
    usable = isinstance(alternatives, Sequence) and all(
        isinstance(text, str) and tokens(text, tokenizer) for text in alternatives
    )
    if not usable or not alternatives:
        raise DataError(
            "a reference is empty",
            where=f"ROUGE-L, reference {number}",
            found=repr(reference),
            expected="text with at least one token, or a list of such texts",
            fix="drop the item, or choose another tokenizer",
        )
    return alternatives


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, all rows of the table at once as bits (Hyyrö 2004)."""
    positions: dict[str, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | (1 << index)
    full = (1 << len(first)) - 1
    row = full  # zero bits: tokens of ``first`` where the subsequence grows
    for token in second:
        matches = row & positions.get(token, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


def _scores(common: int, predicted: int, gold: int) -> Rouge:
    if not common:
        return Rouge(0.0, 0.0, 0.0)
    return Rouge(100.0 * common / predicted, 100.0 * common / gold, 200.0 * common / (predicted + gold))
