"""Every number of tests/goldens/g5_metrics, which the peers produced, to 1e-9 (percent)."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from adamergex.metrics import accuracy, entities, numbers, rouge, spans

GOLDENS = Path(__file__).parents[1] / "goldens" / "g5_metrics"
TOLERANCE = 1e-9


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def near(fractions: Any) -> Any:
    return pytest.approx([100 * value for value in fractions], abs=TOLERANCE)


def test_classification() -> None:
    found = golden("classification")
    assert accuracy.accuracy(found["y_pred"], found["y_true"]) == pytest.approx(100 * found["accuracy"], abs=TOLERANCE)


@pytest.mark.parametrize("case", golden("mgsm")["cases"], ids=lambda case: case["text"][:20])
def test_last_number_and_the_peers(case: dict[str, Any]) -> None:
    text = case["text"]
    assert numbers.last_number(text) == case["recommended"]
    assert (numbers.harness_flexible(text) or "[invalid]") == case["lm_eval_flexible_extract"]
    assert (numbers.harness_strict(text) or "[invalid]") == case["lm_eval_strict"]
    assert int(numbers.reference_code(text)) == case["adamergex_upstream_int_last_digits"]


@pytest.mark.parametrize("case", golden("squad_mlqa")["cases"], ids=lambda case: f"{case['lang']} {case['prediction']}")
def test_spans(case: dict[str, Any]) -> None:
    language, prediction, answers = case["lang"], case["prediction"], case["answers"]
    assert spans.normalised(prediction, language, "squad") == case["squad"]["norm_pred"]
    assert spans.normalised(prediction, language) == case["mlqa"]["norm_pred"]
    assert [spans.normalised(answer, language) for answer in answers] == case["mlqa"]["norm_answers"]
    for normalisation in ("squad", "mlqa"):
        expected = near([case[normalisation]["em"], case[normalisation]["f1"]])
        assert list(spans.best_over_answers(prediction, answers, language, normalisation)) == expected
        assert list(spans.span_scores([prediction], [answers], language, normalisation=normalisation)) == expected


@pytest.mark.parametrize("case", golden("rouge")["cases"], ids=lambda case: case["reference"][:20])
def test_rouge(case: dict[str, Any]) -> None:
    prediction, reference = case["prediction"], case["reference"]
    assert rouge.mixed(prediction) == case["mixed_tokens"]
    for scorer, tokenizer in (("mixed", "mixed"), ("whitespace", "whitespace"), ("default_nostem", "ascii")):
        expected = case["scores"][scorer]
        assert list(rouge.rouge_l(prediction, reference, tokenizer)) == near(expected["rougeL"])


@pytest.mark.parametrize("case", golden("rouge")["cases"], ids=lambda case: case["reference"][:20])
def test_rouge_with_somebody_elses_tokenizer(case: dict[str, Any]) -> None:
    stem = import_module("nltk.stem.porter").PorterStemmer().stem

    def stemmed(text: str) -> list[str]:
        return [stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower())]

    expected = case["scores"]["default_stem"]["rougeL"]
    assert list(rouge.rouge_l(case["prediction"], case["reference"], stemmed)) == near(expected)


@pytest.mark.parametrize(("name", "case"), golden("seqeval")["cases"].items())
def test_entities(name: str, case: dict[str, Any]) -> None:
    for mode, scheme in (("lenient", "default"), ("strict", "strict_iob2")):
        found = entities.entity_scores(case["y_pred"], case["y_true"], mode=mode)
        assert list(found) == near([case[scheme][score] for score in ("precision", "recall", "f1")])
