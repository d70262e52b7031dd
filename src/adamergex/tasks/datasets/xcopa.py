"""XCOPA: which of two sentences is the more plausible cause or effect of a premise; ten languages, 500 items each.

An item (sw, CC BY 4.0, cambridgeltl/xcopa):
  premise   Mchwa walivamia nyumba.                                  question  effect
  choice1   Mchwa waliondoka kutoka kwenye nyumba.
  choice2   Mchwa walikula kupitia mbao ndani ya nyumba.             label     1

Train: English COPA (Roemmele et al. 2011). Test: Ponti et al. 2020 (arXiv 2005.00333); metric: accuracy (their §4).
Upstream's ``question`` is wrong in th (half of the rows), tr, sw, and in some rows of id and it; rows here take it from
the same English item.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adamergex.data.reader import read
from adamergex.data.values import Row
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import MultipleChoice, Rows
from adamergex.metrics.accuracy import accuracy, gold_labels, predicted_labels
from adamergex.metrics.checks import known

METRICS = ("accuracy",)
LABELS = ("0", "1")
"""choice1, choice2; rows and references have them as numbers."""
PROMPT = (
    "Here is a premise and a question. Help me pick the more plausible option. Premise: {premise} "
    "Question: What is the {question}? (A) {choice1} (B) {choice2}"
)
TASK = MultipleChoice(name="xcopa", context="{premise} What is the {question}?", prompt=PROMPT, max_length=128)

_COLUMNS = {"text": "premise", "choice1": "choice1", "choice2": "choice2", "label": "label"}
_HUB_COLUMNS = {**_COLUMNS, "question": "question", "item": "idx"}
_XCOPA = Rows(hub="cambridgeltl/xcopa", config="{language}", columns=_HUB_COLUMNS)
# COPA's test labels are hidden in SuperGLUE: English test rows come only from a data folder. Both are on main.
HUB = {
    "train": Rows(hub="aps/super_glue", config="copa", split="train", columns=_HUB_COLUMNS),
    "validation": _XCOPA.model_copy(update={"split": "validation"}),
    "test": _XCOPA.model_copy(update={"split": "test"}),
}
HUB_ENGLISH_VALIDATION = Rows(hub="aps/super_glue", config="copa", split="validation", columns=_HUB_COLUMNS)
HUB_LANGUAGES = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
HUB_TRUE_QUESTIONS = "et"
"""A language whose ``question`` equals English COPA's in every row; the items are parallel."""

_LOCAL_COLUMNS = {**_COLUMNS, "question": "question_en", "id": "id"}
LOCAL = {
    split: Rows(path=f"xcopa/{{language}}.{name}.jsonl.gz", columns=_LOCAL_COLUMNS)
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))
}


def rows(source: str | Path, language: str, split: str = "test") -> list[dict[str, Json]]:
    """Rows {id, language, premise, question, choice1, choice2, label (0 or 1)} from "hub" or a data folder.

    ``split``: train (en only; in a folder with the 400 mirrored Balanced COPA items), validation, test.
    Raises: DataError (split, language, hidden labels, anything missing or empty in the data).
    """
    known(split, LOCAL, "split", "XCOPA")
    if split == "train":
        known(language, {"en": None}, "language", "XCOPA train")
    if source == "hub":
        return _hub_rows(language, split)
    location = LOCAL[split].model_copy(update={"path": str(Path(source) / str(LOCAL[split].path))})
    return [_row(raw, language, str(raw["id"]), str(raw["question"])) for raw in read(location, language)]


def prompt(row: Row) -> str:
    """The papers' prompt (AdaMergeX, Table 1)."""
    return PROMPT.format(**{name: row[name] for name in ("premise", "question", "choice1", "choice2")})


def score(predictions: Sequence[int | str | None], references: Sequence[int | str], language: str) -> dict[str, float]:
    """{"accuracy"} in percent, of 0 (choice1) and 1 (choice2); text that is not a label (an echoed prompt) is wrong.

    Raises: DataError (lengths, no items, a number or a reference that is not a label).
    """
    golds = gold_labels(references, LABELS, "XCOPA")
    return {"accuracy": accuracy(predicted_labels(predictions, LABELS, "XCOPA"), golds)}


def _hub_rows(language: str, split: str) -> list[dict[str, Json]]:
    if language == "en":
        location = {"train": HUB["train"], "validation": HUB_ENGLISH_VALIDATION}.get(split)
        if location is None:
            raise DataError(
                "the labels of English COPA's test set are not on the hub",
                where="XCOPA test, en",
                fix="read it from a data folder: rows(folder, 'en', 'test')",
            )
        questions: dict[str, Json] = {}
    else:
        known(language, dict.fromkeys(HUB_LANGUAGES), "language", f"XCOPA {split}")
        location = HUB[split]
        questions = {str(row["item"]): row["question"] for row in read(location, HUB_TRUE_QUESTIONS)}
    return [
        _row(row, language, f"copa-{split}-{row['item']}", str(questions.get(str(row["item"]), row["question"])))
        for row in read(location, language)
    ]


def _row(raw: Row, language: str, identity: str, question: str) -> dict[str, Json]:
    where = f"XCOPA {language}, {identity}"
    known(question, {"cause": None, "effect": None}, "question", where)
    label = int(gold_labels([raw["label"]], LABELS, where)[0])
    choices = {name: raw[name] for name in ("choice1", "choice2")}
    return {
        "id": identity,
        "language": language,
        "premise": raw["text"],
        "question": question,
        **choices,
        "label": label,
    }
