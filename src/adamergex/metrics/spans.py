"""Exact match and token F1 of answers, maximum over the gold answers (SQuAD 1.1, MLQA).

>>> normalised("Der Dreißigjährige Krieg!", "de")
'dreißigjährige krieg'
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from adamergex.errors import DataError
from adamergex.metrics.checks import check_pairs, check_texts, percent
from adamergex.metrics.text import comparable, is_blank

Normalisation = Literal["mlqa", "squad"]

# Arabic: MLQA drops the two letters of the article everywhere, also inside words.
_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": "ال",
}
# ISO 639-3, as in FLORES and NLLB ("zho_Hans") -> the code of the rules.
_CODES = {
    "arb": "ar", "ara": "ar", "deu": "de", "eng": "en", "jpn": "ja", "khm": "km", "lao": "lo", "mya": "my",
    "spa": "es", "tha": "th", "vie": "vi", "zho": "zh", "cmn": "zh",
}  # fmt: skip
# Characters that count as words. zh is MLQA's; the others are ours, since MLQA lacks them.
_ALONE = {
    "zh": "\u4e00-\u9fa5",
    "ja": "\u3040-\u30ff\u4e00-\u9fa5",
    "th": "\u0e00-\u0e7f",
    "lo": "\u0e80-\u0eff",
    "my": "\u1000-\u109f",
    "km": "\u1780-\u17ff",
}


class SpanScores(NamedTuple):
    """In percent."""

    exact_match: float
    f1: float


def normalised(text: str, language: str, normalisation: Normalisation = "mlqa") -> str:
    """Lower case without punctuation and articles, words separated by one space, after ``metrics.text.comparable``.

    "mlqa": removes Unicode punctuation (P*), string.punctuation and the language's articles; characters are words in
    scripts without spaces. Languages outside MLQA (en, es, hi, vi, de, ar, zh) keep articles. "squad": removes ASCII
    punctuation and English articles in every language, as XTREME scores XQuAD.
    Source: Lewis et al. 2020, MLQA (arXiv 1910.07475) §2.4, mlqa_evaluation_v1.py; Rajpurkar et al. 2016,
    SQuAD evaluate-v1.1.py.
    """
    if normalisation not in ("mlqa", "squad"):
        raise DataError("there is no such normalisation", found=normalisation, expected="mlqa, squad")
    unicode_rules = normalisation == "mlqa"
    code = re.split("[-_]", language.lower())[0] if unicode_rules else "en"
    code = _CODES.get(code, code)
    lowered = comparable(comparable(text).lower())
    words = lowered.translate({ord(char): None for char in set(lowered) if _is_punctuation(char, unicode_rules)})
    if code in _ARTICLES:
        words = re.sub(_ARTICLES[code], " ", words)
    if code in _ALONE:
        words = re.sub(f"([{_ALONE[code]}])", r" \1 ", words)
    return " ".join(words.split())


def best_over_answers(
    prediction: str, answers: Sequence[str], language: str, normalisation: Normalisation = "mlqa"
) -> SpanScores:
    """Exact match and F1 of one prediction, each the maximum over the gold answers, in percent.

    F1 = 2PR / (P + R) over the multiset of common words, 0 without common words; so two answers that are empty after
    normalisation match exactly with F1 0, as in the official scripts.
    """
    predicted = normalised(prediction, language, normalisation)
    golds = [normalised(answer, language, normalisation) for answer in answers]
    exact = max(predicted == gold for gold in golds)
    return SpanScores(100.0 * exact, 100.0 * max(_f1(predicted.split(), gold.split()) for gold in golds))


def span_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str,
    *,
    normalisation: Normalisation = "mlqa",
) -> SpanScores:
    """Means over items of ``best_over_answers``, in percent.

    Raises: DataError (lengths, no items, an item without gold answers or with a blank one).
    """
    check_pairs(predictions, references, "answers")
    check_texts(predictions, "answers")
    for number, answers in enumerate(references):
        _check_answers(answers, f"answers, reference {number}")
    scores = [
        best_over_answers(prediction, answers, language, normalisation)
        for prediction, answers in zip(predictions, references, strict=True)
    ]
    return SpanScores(*(percent([value / 100 for value in column]) for column in zip(*scores, strict=True)))


def _is_punctuation(char: str, unicode_rules: bool) -> bool:
    return char in string.punctuation or (unicode_rules and unicodedata.category(char).startswith("P"))


def _f1(predicted: list[str], gold: list[str]) -> float:
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0


def _check_answers(answers: Sequence[str], where: str) -> None:
    if isinstance(answers, str) or not isinstance(answers, Sequence):
        raise DataError(
            "gold answers are not a list", where=where, found=repr(answers), expected='["308", "308 points"]'
        )
    if not answers or not all(isinstance(answer, str) and not is_blank(answer) for answer in answers):
        raise DataError("a gold answer is empty", where=where, found=repr(answers), expected="at least one, none blank")
