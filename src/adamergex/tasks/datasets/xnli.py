"""XNLI and AmericasNLI: a premise entails a hypothesis, contradicts it, or neither.

An item (our words; XNLI itself is CC BY-NC 4.0):
  premise     The market opens at six, and by nine the fish is gone.
  hypothesis  Nobody sells fish at the market.                       label  contradiction

Train: MultiNLI (Williams et al. 2018), English; XNLI includes its machine translation into XNLI's other languages.
Test: Conneau et al. 2018, XNLI (arXiv 1809.05053), 5010 items; Ebrahimi et al. 2022, AmericasNLI (arXiv 2104.08726), up
to 750. Metric of both: accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adamergex.data.reader import read
from adamergex.data.values import Row
from adamergex.files.inputs import Json
from adamergex.jobs.settings import PairClassification, Rows
from adamergex.metrics.accuracy import accuracy, gold_labels, predicted_labels
from adamergex.metrics.checks import known

METRICS = ("accuracy",)
LABELS = ("entailment", "neutral", "contradiction")
"""In the order of the hub datasets' numbers."""
PROMPT = (
    "You should judge whether the hypothesis is true (entailment), false (contradiction), or undetermined (neutral) "
    "given the premise. Premise: {premise} Hypothesis: {hypothesis}"
)
TASK = PairClassification(name="xnli", labels=LABELS, prompt=PROMPT)
XNLI_LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
# Our code -> the code on the hub and upstream.
AMERICAS_LANGUAGES = {
    **{code: code for code in ("bzd", "cni", "gn", "hch", "nah", "oto", "shp", "tar")},
    "ay": "aym",
    "qu": "quy",
}

_COLUMNS = {"text": "premise", "hypothesis": "hypothesis", "label": "label"}
_XNLI = "facebook/xnli"
_AMERICAS = "nala-cub/americas_nli"
# All on main, labels as numbers (parquet: no loading script is needed).
HUB = {
    "train": Rows(hub="nyu-mll/multi_nli", split="train", columns=_COLUMNS),
    "translated train": Rows(hub=_XNLI, config="{language}", split="train", columns=_COLUMNS),
    "validation": Rows(hub=_XNLI, config="{language}", split="validation", columns=_COLUMNS),
    "test": Rows(hub=_XNLI, config="{language}", split="test", columns=_COLUMNS),
    "americas validation": Rows(hub=_AMERICAS, config="{language}", split="validation", columns=_COLUMNS),
    "americas test": Rows(hub=_AMERICAS, config="{language}", split="test", columns=_COLUMNS),
}
LOCAL = {
    "train": Rows(path="multinli/{language}.train.jsonl.gz", columns=_COLUMNS),
    "translated train": Rows(path="xnli/{language}.train.jsonl.gz", columns=_COLUMNS),
    "validation": Rows(path="xnli/{language}.dev.jsonl.gz", columns=_COLUMNS),
    "test": Rows(path="xnli/{language}.test.jsonl.gz", columns=_COLUMNS),
    "americas validation": Rows(path="americasnli/{language}.dev.jsonl.gz", columns=_COLUMNS),
    "americas test": Rows(path="americasnli/{language}.test.jsonl.gz", columns=_COLUMNS),
}
SPLITS = ("train", "validation", "test")


def rows(source: str | Path, language: str, split: str = "test") -> list[dict[str, Json]]:
    """Rows {id, language, premise, hypothesis, label (a name)} from "hub" or a data folder.

    ``split``: train (MultiNLI; in XNLI's other languages its machine translation), validation, test: of XNLI or of
    AmericasNLI, whichever has the language.
    Raises: DataError (split, language, anything missing or empty in the data).
    """
    known(split, dict.fromkeys(SPLITS), "split", "XNLI")
    others = {} if split == "train" else AMERICAS_LANGUAGES
    known(language, {**dict.fromkeys(XNLI_LANGUAGES), **others}, "language", f"XNLI {split}")
    name = f"americas {split}" if language in AMERICAS_LANGUAGES else split
    if split == "train" and language != "en":
        name = "translated train"
    if source == "hub":
        raw_rows = read(HUB[name], AMERICAS_LANGUAGES.get(language, language))
    else:
        location = LOCAL[name]
        raw_rows = read(location.model_copy(update={"path": str(Path(source) / str(location.path))}), language)
    return [_row(raw, language, f"xnli-{split}-{number:04d}") for number, raw in enumerate(raw_rows)]


def prompt(row: Row) -> str:
    """The papers' prompt (AdaMergeX, Table 1)."""
    return PROMPT.format(premise=row["premise"], hypothesis=row["hypothesis"])


def score(predictions: Sequence[int | str | None], references: Sequence[int | str], language: str) -> dict[str, float]:
    """{"accuracy"} in percent, of names or their numbers; text that is not a label (an echoed prompt) is wrong.

    Raises: DataError (lengths, no items, a number or a reference that is not a label).
    """
    golds = gold_labels(references, LABELS, "XNLI")
    return {"accuracy": accuracy(predicted_labels(predictions, LABELS, "XNLI"), golds)}


def _row(raw: Row, language: str, identity: str) -> dict[str, Json]:
    label = gold_labels([raw["label"]], LABELS, f"XNLI {language}, {identity}")[0]
    return {
        "id": raw.get("id", identity),
        "language": language,
        "premise": raw["text"],
        "hypothesis": raw["hypothesis"],
        "label": label,
    }
