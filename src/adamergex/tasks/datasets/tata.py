"""TaTA: a sentence about a table; nine languages, four of them African, parallel.

An item (sw, CC BY 4.0, google-research/url-nlp):
  input    Kupanga Hali ya Uzazi | Asilimia | (Ulitakiwa wakati huo, 0.57) (Haukutakiwa, 0.17) (Ulitakiwa baadaye, 0.26)
  targets  ["Asilimia 17 ya uzazi nchini Kenya haukutakiwa, na asilimia 26 ulikuja kwa wakati usiokusudiwa (ulitakiwa
           baadaye).", … two more, each a reference of its own]

Gehrmann et al. 2023, TaTA (arXiv 2211.00142). Metric: ROUGE-L F1 (Lin 2004) as for XLSum, best over the references; the
authors report chrF and a learned metric. The AdaMergeX papers do not use this task: the prompt is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adamergex.data.reader import read
from adamergex.data.values import Row, texts
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Generation, Rows
from adamergex.metrics.checks import known
from adamergex.metrics.echo import without_prompts
from adamergex.metrics.rouge import Tokenizer, corpus_rouge_l

METRICS = ("rougeL",)
LANGUAGES = ("ar", "en", "fr", "ha", "ig", "pt", "ru", "sw", "yo")
PROMPT = "Describe the table in one sentence. Table: {input} Description:"
TASK = Generation(name="tata", prompt=PROMPT, cut="input", reference="targets", measured_as="tata")
FOLDER_SPLITS = {"validation": "train"}

_HUB_COLUMNS = {"text": "linearized_input", "targets": "table_text", "id": "example_id"}
# The repository is a loading script, which datasets 4 and later refuse: use the hub's parquet copy. One config holds
# all languages; an example's id names its language. Russian has only a test set, in a separate split.
HUB = {
    split: Rows(hub="GEM/TaTA", revision="refs/convert/parquet", split=split, columns=_HUB_COLUMNS)
    for split in ("train", "validation", "test", "ru")
}
# The training set is too large for the data folder, which trains on the dev set (from other reports than the test).
LOCAL = {
    split: Rows(path=f"tata/{{language}}.{name}.jsonl.gz", columns={"text": "input", "targets": "targets", "id": "id"})
    for split, name in (("train", "dev"), ("test", "test"))
}


def rows(source: str | Path, language: str, split: str = "test") -> list[dict[str, Json]]:
    """Rows {id, language, input, targets (references)} from "hub" or a data folder.

    ``split``: train, test; the hub also has validation, which is the folder's train. Rows without a reference are
    dropped. Raises: DataError (split, language, no rows, anything missing in the data).
    """
    known(language, dict.fromkeys(LANGUAGES), "language", "TaTA")
    location = known(split, HUB if source == "hub" else LOCAL, "split", "TaTA")
    if location.path is not None:
        raw_rows = read(location.model_copy(update={"path": str(Path(source) / location.path)}), language)
    else:
        location = HUB["ru"] if language == "ru" and split == "test" else location
        raw_rows = [raw for raw in read(location, language) if f"-{language}-" in str(raw["id"])]
    kept = [_row(raw, language) for raw in raw_rows if raw["targets"]]
    if not kept:
        raise DataError("there are no rows", where=f"TaTA {language} {split}", fix="check language and split")
    return kept


def prompt(row: Row) -> str:
    """Our prompt: an instruction and the table."""
    return PROMPT.format(input=row["input"])


def score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    language: str,
    *,
    prompts: Sequence[str] | None = None,
    tokenizer: Tokenizer = "mixed",
) -> dict[str, float]:
    """{"rougeL"} in percent: mean over items of the best F1 over an item's references (one string, or a list).

    ``prompts``: removed from outputs that begin with their prompt, which shares words with the references.
    Raises: DataError (lengths, no items, a reference without a token).
    """
    answers = without_prompts(predictions, prompts, "TaTA")
    return {"rougeL": corpus_rouge_l(answers, references, tokenizer=tokenizer)}


def _row(raw: Row, language: str) -> dict[str, Json]:
    return {"id": raw["id"], "language": language, "input": raw["text"], "targets": texts(raw["targets"])}
