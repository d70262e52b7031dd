"""XQuAD: a question on a paragraph, answered by a span of it; 1190 questions, the same in twelve languages.

An item (en, CC BY-SA 4.0, google/xquad), its context shortened here:
  context   The Panthers defense gave up just 308 points, ranking sixth in the league, while also leading the NFL in …
  question  How many points did the Panthers defense surrender?          answers  ["308"]

Train: SQuAD 1.1 (Rajpurkar et al. 2016), English. Test: Artetxe et al. 2020 (arXiv 1910.11856). Metrics: exact match
and token F1, best over the gold answers, with the multilingual normalisation of MLQA; ``normalisation="squad"`` is the
English one of XTREME's published numbers. SQuAD is not in the data folder: there, ``train`` is folds 0 to 2 of XQuAD
itself, and the test of an adapter trained on it is ``held-out``, fold 3. Its paragraphs are parallel, so ``test`` (all
folds) would contain translations of the training paragraphs. "fold 3" and "folds 0 1" are splits everywhere, so that an
adapter trained on XQuAD in a language without SQuAD can be tested on other articles.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from adamergex.data.reader import read
from adamergex.data.values import Row, position_of
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Rows, SpanAnswering
from adamergex.metrics.checks import known
from adamergex.metrics.echo import without_prompts
from adamergex.metrics.spans import Normalisation, span_scores
from adamergex.tasks.kinds.span import answers_of

METRICS = ("exact_match", "f1")
LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
PROMPT = "{context} Question: {question}"

_HUB_COLUMNS = {"text": "question", "context": "context", "answers": "answers", "id": "id"}
# google/xquad: the commit that made it parquet. rajpurkar/squad: parquet on main.
HUB = {
    "train": Rows(hub="rajpurkar/squad", config="plain_text", split="train", columns=_HUB_COLUMNS),
    "validation": Rows(hub="rajpurkar/squad", config="plain_text", split="validation", columns=_HUB_COLUMNS),
    "test": Rows(
        hub="google/xquad",
        config="xquad.{language}",
        split="validation",
        revision="51adfef1c1287aab1d2d91b5bead9bcfb9c68583",
        columns=_HUB_COLUMNS,
    ),
}
QUESTIONS = Rows(
    path="xquad/{language}.test.jsonl.gz",
    columns={"text": "question", "context_id": "context_id", "answers": "answers", "id": "id"},
)
CONTEXTS = Rows(
    path="xquad/{language}.contexts.jsonl.gz", columns={"text": "context", "context_id": "context_id", "fold": "fold"}
)
FOLDS = {"train": (0, 1, 2), "held-out": (3,), "test": (0, 1, 2, 3)}
"""Split of a data folder -> its folds (article number mod 4)."""
PARAGRAPHS = 5
"""Paragraphs per article, consecutive in the hub's rows (checked for all twelve languages of the data folder)."""
FOLDER_SPLITS = {"validation": "held-out", "test": "held-out"}
TASK = SpanAnswering(name="xquad", prompt=PROMPT)


def rows(
    source: str | Path, language: str, split: str = "test", folds: Collection[int] | None = None
) -> list[dict[str, Json]]:
    """Rows {id, language, context, question, answers (texts), starts (characters)} from "hub" or a data folder.

    ``split``: "hub" has train and validation (SQuAD, en) and test; a folder has train, held-out and test (``FOLDS``,
    or the ``folds`` given); both have "fold 3", "folds 0 1" and so on. Rows of folds carry ``fold``. Raises: DataError
    (split, language, anything missing or empty, an answer that is not at its start).
    """
    known(language, dict.fromkeys(LANGUAGES), "language", "XQuAD")
    if named := re.fullmatch(r"folds?((?: [0-3])+)", split):
        split, folds = "test", [int(number) for number in named[1].split()]
    if source != "hub":
        return _folder_rows(Path(source), language, folds or known(split, FOLDS, "split", "XQuAD in a folder"))
    location = known(split, HUB, "split", "XQuAD on the hub")
    if split != "test" and (folds is not None or language != "en"):
        raise DataError(
            "the hub has no such rows",
            where=f"XQuAD {split}, {language}" + (f", folds {folds}" if folds is not None else ""),
            expected="train and validation in en (SQuAD, without folds), test, folds of test",
        )
    rows = [_row(raw, language, str(raw["context"])) for raw in read(location, language)]
    return rows if folds is None else _in_folds(rows, folds)


def _in_folds(rows: Sequence[dict[str, Json]], folds: Collection[int]) -> list[dict[str, Json]]:
    """The rows whose article is in the folds; the hub names no articles, but its paragraphs are in order."""
    numbers: dict[str, int] = {}
    for row in rows:
        row["fold"] = numbers.setdefault(str(row["context"]), len(numbers)) // PARAGRAPHS % 4
    return [row for row in rows if row["fold"] in folds]


def prompt(row: Row) -> str:
    """The papers' prompt (AdaMergeX, Table 1)."""
    return PROMPT.format(context=row["context"], question=row["question"])


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str,
    *,
    prompts: Sequence[str] | None = None,
    normalisation: Normalisation = "mlqa",
) -> dict[str, float]:
    """{"exact_match", "f1"} in percent, of answers against lists of gold answers.

    ``prompts``: removed from outputs that begin with their prompt, which contains the answer.
    Raises: DataError (lengths, no items, no gold answer).
    """
    answers = without_prompts(predictions, prompts, "XQuAD")
    return span_scores(answers, references, language, normalisation=normalisation)._asdict()


def _folder_rows(folder: Path, language: str, folds: Collection[int]) -> list[dict[str, Json]]:
    context_rows, questions = (
        read(location.model_copy(update={"path": str(folder / str(location.path))}), language)
        for location in (CONTEXTS, QUESTIONS)
    )
    contexts = {str(row["context_id"]): row for row in context_rows}
    result = []
    for row in questions:
        context = known(str(row["context_id"]), contexts, "context", f"XQuAD {language}, {row['id']}")
        if context["fold"] in folds:
            result.append({**_row(row, language, str(context["text"])), "fold": context["fold"]})
    if not result:
        raise DataError("there are no rows in these folds", where=f"XQuAD {language}", found=folds, expected="0 to 3")
    return result


def _row(raw: Row, language: str, context: str) -> dict[str, Json]:
    where = f"XQuAD {language}, {raw['id']}"
    answers = [(str(text), position_of(start, "start", where) or 0) for text, start in answers_of(raw, where)]
    for text, start in answers:
        if context[start : start + len(text)] != text:
            raise DataError(
                "an answer is not at its start",
                where=where,
                found=repr(context[start : start + len(text)]),
                expected=repr(text),
            )
    row = {"id": raw["id"], "language": language, "context": context, "question": raw["text"]}
    return {**row, "answers": [text for text, _ in answers], "starts": [start for _, start in answers]}
