"""MGSM: grade-school maths word problems with numeric answers, the same 250 in eleven languages.

An item (sw, CC BY 4.0, google-research/url-nlp):
  question  James anaamua kukimbia mbio 3 fupi mara 3 kwa wiki. Anakimbia mita 60 kwa kila mbio fupi. Huwa anakimbia
            jumla ya mita ngapi kwa wiki?
  answer    540
The output "… 3 × 3 × 60 = 540. Jibu ni 540." is correct; so is "৫৪০" in Bengali.

Train: GSM8K (Cobbe et al. 2021, arXiv 2110.14168), English. Test and metric: Shi et al. 2022 (arXiv 2210.03057), exact
match of the last number (``metrics.numbers``). A base model of 10 M parameters can only guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from adamergex.data.reader import read
from adamergex.data.values import Row
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Generation, Rows
from adamergex.metrics.checks import known
from adamergex.metrics.echo import without_prompts
from adamergex.metrics.numbers import exact_match, last_number

METRICS = ("exact_match",)
LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
PROMPT = "Let's think step by step.\nQuestion: {question}"
TASK = Generation(
    name="mgsm",
    prompt=PROMPT,
    cut="question",
    reference="answer",
    target="{rationale} The answer is {answer}.",
    max_length=2048,  # one token per byte and room for the answer: no question is cut
    max_new_tokens=256,
    stop=("\nQuestion:",),
    metric="exact_match",
    measured_as="mgsm",
)
FOLDER_SPLITS = {"validation": "exemplars"}

# juletxara/mgsm is a loading script, which datasets 4 and later refuse; lm-evaluation-harness reads this mirror of it.
# Its 8 training rows are the paper's exemplars. No revision is pinned: written offline, from the dataset cards.
_MIRROR = "jbross-ibm-research/mgsm"
HUB = {
    "train": Rows(hub="openai/gsm8k", config="main", split="train", columns={"text": "question", "answer": "answer"}),
    "exemplars": Rows(
        hub=_MIRROR,
        config="{language}",
        split="train",
        columns={"text": "question", "answer": "answer_number", "rationale": "answer"},
    ),
    "test": Rows(
        hub=_MIRROR, config="{language}", split="test", columns={"text": "question", "answer": "answer_number"}
    ),
}
LOCAL = {
    "train": Rows(
        path="gsm8k/{language}.train.jsonl.gz",
        columns={"text": "question", "answer": "answer", "rationale": "rationale"},
    ),
    "exemplars": Rows(
        path="mgsm/{language}.exemplars.jsonl.gz",
        columns={"text": "question", "answer": "answer", "rationale": "rationale"},
    ),
    "test": Rows(path="mgsm/{language}.test.jsonl.gz", columns={"text": "question", "answer": "answer"}),
}
# The exemplars' prefixes of question and chain of thought, and their sentence that states the answer. Our prompt and
# target already contain them.
_EXEMPLAR_WORDS = {
    "bn": ("প্রশ্ন", "ধাপে ধাপে উত্তর", "উত্তর হল"),
    "de": ("Frage", "Schritt-für-Schritt-Antwort", "Die Antwort (?:ist|lautet)"),
    "en": ("Question", "Step-by-Step Answer", "The answer is"),
    "es": ("Pregunta", "Respuesta paso a paso", "La respuesta es"),
    "fr": ("Question", "Réponse étape par étape", "La réponse est"),
    "ja": ("問題", "ステップごとの答え", "答えは"),
    "ru": ("Задача", "Пошаговое решение", "Ответ —"),
    "sw": ("Swali", "Jibu la Hatua kwa Hatua", "Jibu ni"),
    "te": ("ప్రశ్న", "దశలవారీగా సమాధానం", "సమాధానం"),
    "th": ("โจทย์", "คำตอบทีละขั้นตอน", "คำตอบคือ"),
    "zh": ("问题", "逐步解答", "答案是"),
}
SPLIT_LANGUAGES = {"train": ("en",), "exemplars": LANGUAGES, "test": LANGUAGES}


def rows(source: str | Path, language: str, split: str = "test") -> list[dict[str, Json]]:
    """Rows {id, language, question, answer, optional rationale} from "hub" or a data folder.

    ``split``: train (GSM8K, en), exemplars (8 with chains of thought), test. ``answer`` is a number in canonical form;
    the files' prefixes ("Question:", in each language) are removed.
    Raises: DataError (split, language, anything missing or empty in the data).
    """
    languages = known(split, SPLIT_LANGUAGES, "split", "MGSM")
    known(language, dict.fromkeys(languages), "language", f"MGSM {split}")
    location = HUB[split] if source == "hub" else LOCAL[split]
    if location.path is not None:
        location = location.model_copy(update={"path": str(Path(source) / location.path)})
    return [_row(raw, language, split, number) for number, raw in enumerate(read(location, language))]


def prompt(row: Row) -> str:
    """The papers' prompt (AdaMergeX, Table 1)."""
    return PROMPT.format(question=row["question"])


def readable(text: str) -> bool:
    """Whether an answer contains a number."""
    return last_number(text) is not None


def score(
    predictions: Sequence[str],
    references: Sequence[str | int | float],
    language: str,
    *,
    prompts: Sequence[str] | None = None,
    extractor: str = "recommended",
) -> dict[str, float]:
    """{"exact_match"} in percent, of raw outputs against numbers, both parsed with the language's separators.

    ``prompts``: removed from outputs that begin with their prompt (5 of the 250 questions end with their answer).
    ``extractor``: see ``metrics.numbers.EXTRACTORS``. Raises: DataError as ``metrics.numbers.exact_match``.
    """
    answers = without_prompts(predictions, prompts, "MGSM")
    return {"exact_match": exact_match(answers, references, extractor=extractor, language=language)}


def _row(raw: Row, language: str, split: str, number: int) -> dict[str, Json]:
    text = str(raw["answer"])
    # GSM8K on the hub: a chain of thought with <<48/2=24>> marks, "####", the answer.
    rationale = text.rpartition("####")[0]
    answer = last_number(text, language if isinstance(raw["answer"], str) else None)
    if answer is None:
        raise DataError("an answer holds no number", where=f"MGSM {language} {split}, row {number}", found=repr(text))
    row = {
        "id": raw.get("id", f"mgsm-{split}-{number:03d}"),
        "language": language,
        "question": without_own_words(str(raw["text"]), language),
        "answer": answer,
    }
    thought = without_own_words(str(raw.get("rationale") or _without_marks(rationale)), language)
    return {**row, "rationale": thought} if thought else row


def without_own_words(text: str, language: str) -> str:
    """A question or chain of thought without the exemplars' prefix ("Question:", "Step-by-Step Answer:") and without
    their final sentence that states the answer, in the language or in English; ``TASK`` adds its own."""
    english = _EXEMPLAR_WORDS["en"]
    questions, steps, answers = zip(_EXEMPLAR_WORDS.get(language, english), english, strict=True)
    either = "|".join
    prefix = re.match(rf"\s*(?:{either(questions)}|({either(steps)}))\s*[:：]\s*", text, re.IGNORECASE)
    if prefix is None:
        return text
    text = text[prefix.end() :]
    answer = re.search(rf"\s*(?:{either(answers)})\W*[0-9][^ \n]*?[^0-9\n]*$", text) if prefix[1] else None
    return text[: answer.start()] if answer else text


def _without_marks(rationale: str) -> str:
    first, *parts = rationale.split("<<")
    return "".join([first, *(part.partition(">>")[2] for part in parts)]).strip()
