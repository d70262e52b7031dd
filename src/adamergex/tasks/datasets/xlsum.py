"""XLSum: one-sentence summaries of BBC articles; 45 languages.

An item (our words; XLSum is CC BY-NC-SA 4.0):
  title    Ferry service returns
  text     After three years of repairs the ferry between the two islands sails again. …
  summary  The ferry between the islands runs again after three years.

Hasan et al. 2021, XL-Sum (arXiv 2106.13822). Metric: ROUGE-L F1 (Lin 2004) over tokens that exist in every script
(``metrics.rouge.mixed``). The XL-Sum authors' fork of rouge-score stems and segments with other tools: its numbers are
not comparable with ours; always report the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from adamergex.data.reader import hub_loader, read
from adamergex.data.values import Row
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Generation, Rows
from adamergex.metrics.checks import known
from adamergex.metrics.echo import without_prompts
from adamergex.metrics.rouge import Tokenizer, corpus_rouge_l

METRICS = ("rougeL",)
PROMPT = "Summarize the context in one sentence. Title: {title} Context: {text}"
TASK = Generation(name="xlsum", prompt=PROMPT, reference="summary", max_new_tokens=84)
SPLITS = ("train", "validation", "test")

# The repository is a loading script, which datasets 4 and later refuse. The hub's parquet copy has one folder per
# language and no configs: "name" would fail, "data_dir" reads the folder.
HUB = {"path": "csebuetnlp/xlsum", "revision": "refs/convert/parquet"}
_PAIRS = """
    am:amharic ar:arabic az:azerbaijani bn:bengali cy:welsh en:english es:spanish fa:persian fr:french
    gd:scottish_gaelic gu:gujarati ha:hausa hi:hindi id:indonesian ig:igbo ja:japanese ko:korean ky:kyrgyz
    mr:marathi my:burmese ne:nepali om:oromo pa:punjabi pcm:pidgin ps:pashto pt:portuguese rn:kirundi ru:russian
    si:sinhala so:somali sr:serbian_cyrillic sr-Latn:serbian_latin sw:swahili ta:tamil te:telugu th:thai
    ti:tigrinya tr:turkish uk:ukrainian ur:urdu uz:uzbek vi:vietnamese yo:yoruba zh:chinese_simplified
    zh-Hant:chinese_traditional
"""
HUB_FOLDERS = dict(pair.split(":") for pair in _PAIRS.split())
LOCAL = Rows(
    path="xlsum/{language}.{split}.jsonl.gz",
    columns={"text": "text", "title": "title", "summary": "summary", "id": "id"},
)
"""The hub's rows as JSON lines, if you wrote them to a folder; the project's data folder has none (licence)."""


def rows(source: str | Path, language: str, split: str = "test") -> list[dict[str, Json]]:
    """Rows {id, language, title, text, summary} from "hub" or a data folder. ``split``: train, validation, test.

    Raises: DataError (split, language, anything missing or empty in the data).
    """
    known(split, dict.fromkeys(SPLITS), "split", "XLSum")
    folder = known(language, HUB_FOLDERS, "language", "XLSum")
    if source == "hub":
        raw_rows: Iterable[Row] = _hub(folder, split)
    else:
        path = Path(source) / str(LOCAL.path).replace("{split}", split)
        raw_rows = read(LOCAL.model_copy(update={"path": str(path)}), language)
    names = ("id", "title", "text", "summary")
    return [{"language": language, **{name: raw[name] for name in names}} for raw in raw_rows]


def prompt(row: Row) -> str:
    """The papers' prompt (AdaMergeX, Table 1)."""
    return PROMPT.format(title=row["title"], text=row["text"])


def score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    language: str,
    *,
    prompts: Sequence[str] | None = None,
    tokenizer: Tokenizer = "mixed",
) -> dict[str, float]:
    """{"rougeL"} in percent: mean F1 of outputs against summaries.

    ``prompts``: removed from outputs that begin with their prompt, which shares words with the summary.
    Raises: DataError (lengths, no items, a reference without a token).
    """
    answers = without_prompts(predictions, prompts, "XLSum")
    return {"rougeL": corpus_rouge_l(answers, references, tokenizer=tokenizer)}


def _hub(folder: str, split: str) -> Iterable[Row]:
    load_dataset = hub_loader(HUB["path"])
    try:
        dataset: Iterable[Row] = load_dataset(**HUB, data_dir=folder, split=split)
    except Exception as error:  # builders and the network may raise anything
        raise DataError(
            "the hub dataset cannot be loaded",
            where=f"{HUB['path']} {folder} {split}",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="check that there is a network",
        ) from error
    return dataset
