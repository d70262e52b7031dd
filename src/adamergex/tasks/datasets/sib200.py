"""SIB-200: the topic of a sentence, seven topics, the same 204 test sentences in 205 languages.

An item (en, CC BY-SA 4.0, Davlan/sib200, a sentence of FLORES-200):
  text   Turkey is encircled by seas on three sides: the Aegean Sea to the west, the Black Sea to the north and the
         Mediterranean Sea to the south.                                              label  geography

Adelani et al. 2024, SIB-200 (arXiv 2309.07445); metric: accuracy (their §4). The AdaMergeX papers do not use this task:
the prompt is ours. Train and validation exist in every language; zero-shot transfer reads only those of source and
proxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adamergex.data.reader import read
from adamergex.data.values import Row
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Classification, Rows
from adamergex.metrics.accuracy import accuracy, gold_labels, predicted_labels
from adamergex.metrics.checks import known

METRICS = ("accuracy",)
LABELS = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
PROMPT = "What is the topic of the text: {topics}? Text: {{text}} Topic:".format(topics=", ".join(LABELS))
TASK = Classification(name="sib200", labels=LABELS, prompt=PROMPT)

# Our code -> FLORES-200 code. Any other FLORES code is accepted as it is.
_PAIRS = """
    ar:arb_Arab ay:ayr_Latn de:deu_Latn el:ell_Grek en:eng_Latn es:spa_Latn et:est_Latn fr:fra_Latn gn:grn_Latn
    ha:hau_Latn hi:hin_Deva id:ind_Latn ig:ibo_Latn ilo:ilo_Latn it:ita_Latn ja:jpn_Jpan jv:jav_Latn lg:lug_Latn
    mi:mri_Latn ro:ron_Latn ru:rus_Cyrl rw:kin_Latn sw:swh_Latn ta:tam_Taml th:tha_Thai tk:tuk_Latn tr:tur_Latn
    tw:twi_Latn vi:vie_Latn wo:wol_Latn xh:xho_Latn yo:yor_Latn zh:zho_Hans zu:zul_Latn
"""
FLORES = dict(pair.split(":") for pair in _PAIRS.split())
_HUB_COLUMNS = {"text": "text", "label": "category", "id": "index_id"}
# On main: tsv files, one config per language.
HUB = {
    split: Rows(hub="Davlan/sib200", config="{language}", split=split, columns=_HUB_COLUMNS)
    for split in ("train", "validation", "test")
}
_LOCAL_COLUMNS = {"text": "text", "label": "label", "id": "id"}
LOCAL = {
    split: Rows(path=f"sib200/{{language}}.{name}.jsonl.gz", columns=_LOCAL_COLUMNS)
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
}


def rows(source: str | Path, language: str, split: str = "test") -> list[dict[str, Json]]:
    """Rows {id, language, text, label (a name)} from "hub" or a data folder. ``split``: train, validation, test.

    Raises: DataError (split, an unknown label, anything missing or empty in the data).
    """
    location = known(split, HUB if source == "hub" else LOCAL, "split", "SIB-200")
    if location.path is not None:
        raw_rows = read(location.model_copy(update={"path": str(Path(source) / location.path)}), language)
    else:
        raw_rows = read(location, FLORES.get(language, language))
    return [_row(raw, language) for raw in raw_rows]


def prompt(row: Row) -> str:
    """Our prompt: the topics, the text."""
    return PROMPT.format(text=row["text"])


def score(predictions: Sequence[int | str | None], references: Sequence[int | str], language: str) -> dict[str, float]:
    """{"accuracy"} in percent, of names or their positions in ``LABELS``; text that is not a label counts as wrong.

    Raises: DataError (lengths, no items, a number or a reference that is not a label).
    """
    golds = gold_labels(references, LABELS, "SIB-200")
    return {"accuracy": accuracy(predicted_labels(predictions, LABELS, "SIB-200"), golds)}


def _row(raw: Row, language: str) -> dict[str, Json]:
    label = gold_labels([raw["label"]], LABELS, f"SIB-200 {language}, {raw['id']}")[0]
    return {"id": str(raw["id"]), "language": language, "text": raw["text"], "label": label}
