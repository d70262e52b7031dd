"""NER: people, organisations, places (and dates) in a tokenised sentence, as IOB2 tags.

An item (en, CC BY-SA 4.0, Universal NER's English Web Treebank):
  tokens  colorado  beat  texas  a&m    .
  tags    B-ORG     O     B-ORG  I-ORG  O

Corpora: WikiANN (Pan et al. 2017; the split of Rahimi et al. 2019, arXiv 1902.00193), MasakhaNER 2.0 (Adelani et al.
2022, arXiv 2210.12391; also DATE), Universal NER (Mayhew et al. 2024, arXiv 2311.09122). Metric: micro entity F1 as in
conlleval (Tjong Kim Sang and De Meulder 2003). The papers use a token classification head, so there is no prompt.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from adamergex.data.reader import hub_loader
from adamergex.data.values import Row, texts
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Tagging
from adamergex.metrics.checks import check_pairs, known
from adamergex.metrics.entities import Mode, check_iob2, entity_scores, repaired

METRICS = ("f1",)
TYPES = {"wikiann": ("PER", "ORG", "LOC"), "masakhaner": ("PER", "ORG", "LOC", "DATE"), "uner": ("PER", "ORG", "LOC")}
TASK = Tagging(name="ner", types=TYPES["uner"], other_types="ignore")
"""DATE, which only MasakhaNER has, becomes O: an adapter trained on the other corpora cannot predict it."""
LABELS = ("O", *(f"{prefix}-{kind}" for kind in TYPES["masakhaner"] for prefix in "BI"))

# masakhaner2 is a loading script, which datasets 4 and later refuse: use the hub's parquet copy, one folder per
# language. universalner/universal_ner is a script without a parquet copy; BramVanroy/universal_ner is its parquet
# mirror.
HUB: dict[str, dict[str, str]] = {
    "wikiann": {"path": "unimelb-nlp/wikiann", "name": "{language}"},
    "masakhaner": {"path": "masakhane/masakhaner2", "data_dir": "{language}", "revision": "refs/convert/parquet"},
    "uner": {"path": "BramVanroy/universal_ner", "name": "{language}"},
}
_MASAKHANER = "ha:hau ig:ibo lg:lug luo:luo pcm:pcm rw:kin sw:swa tw:twi wo:wol xh:xho yo:yor zu:zul"
HUB_LANGUAGES = {
    "masakhaner": dict(pair.split(":") for pair in _MASAKHANER.split()),
    "uner": {"de": "de_pud", "en": "en_ewt", "pt": "pt_bosque", "ru": "ru_pud", "zh": "zh_gsd"},
}
FILE_SPLITS = {"train": "train", "validation": "dev", "test": "test"}
"""Our split -> the SPLIT of CORPUS/LANGUAGE.SPLIT.jsonl.gz, rows {id, tokens, tags}."""


def rows(
    source: str | Path,
    language: str,
    split: str = "test",
    corpus: str | None = None,
    broken: Literal["reject", "repair"] = "reject",
) -> list[dict[str, Json]]:
    """Rows {id, language, tokens, tags} from "hub" or a data folder. ``split``: train, validation, test.

    ``corpus``: a name of ``TYPES``; by default WikiANN on the hub, and in a folder MasakhaNER or UNER (the folder's
    substitute for WikiANN), whichever has the language. ``broken``: reject or repair tags that are not IOB2.
    Raises: DataError (split, corpus, language, broken tags, anything missing or empty in the data).
    """
    known(split, FILE_SPLITS, "split", "NER")
    if corpus is None:
        corpus = "wikiann" if source == "hub" else "masakhaner" if language in HUB_LANGUAGES["masakhaner"] else "uner"
    types = known(corpus, TYPES, "corpus", "NER")
    where = f"{corpus} {language} {split}"
    if source == "hub":
        raw_rows = _hub(corpus, language, split)
    else:
        raw_rows = _file(Path(source) / corpus / f"{language}.{FILE_SPLITS[split]}.jsonl.gz")
    result = [_row(raw, language, f"{where}, row {number}", number) for number, raw in enumerate(raw_rows)]
    for number, row in enumerate(result):
        tags = texts(row["tags"])
        row["tags"] = tags = repaired(tags) if broken == "repair" else tags
        check_iob2(tags, f"{where}, row {number}", types)
    if not result:
        raise DataError("there are no rows", where=where, expected="at least one")
    return result


def score(
    predictions: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    language: str,
    *,
    mode: Mode = "lenient",
    types: Sequence[str] | None = None,
) -> dict[str, float]:
    """{"f1"} in percent: micro F1 of entities, from lists of tags, one tag per token.

    Predictions: an I without an entity before it begins an entity ("lenient") or is ignored ("strict"); an empty list
    means all O. References must be IOB2 (see ``repaired``). ``types``: the allowed entity types.
    Raises: DataError (lengths, no sentences, an unknown tag or type).
    """
    check_pairs(predictions, references, "NER")
    for number, tags in enumerate(references):
        check_iob2(tags, f"NER, reference {number}", types)
    answers = [tags or ["O"] * len(gold) for tags, gold in zip(predictions, references, strict=True)]
    if types is not None:
        for number, tags in enumerate(answers):
            check_iob2(repaired(tags), f"NER, prediction {number}", types)
    return {"f1": entity_scores(answers, references, mode=mode).f1}


def _row(raw: Row, language: str, where: str, number: int) -> dict[str, Json]:
    tokens, tags = raw.get("tokens"), raw.get("tags")
    if not isinstance(tokens, list) or not isinstance(tags, list) or not tokens or len(tokens) != len(tags):
        raise DataError(
            "a row does not have one tag per token",
            where=where,
            found=f"columns {', '.join(raw)}",
            expected="tokens, tags",
        )
    return {"id": str(raw.get("id", number)), "language": language, "tokens": tokens, "tags": tags}


def _file(path: Path) -> Iterable[Row]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            return [json.loads(line) for line in stream if line.strip()]
    except FileNotFoundError:
        raise DataError("there is no such file", where=path, fix="check folder, corpus, language and split") from None
    except (OSError, EOFError, ValueError) as error:
        raise DataError("the file cannot be read", where=path, found=error, expected="gzipped JSON lines") from error


def _hub(corpus: str, language: str, split: str) -> Iterable[Row]:
    table = HUB_LANGUAGES.get(corpus, {language: language})
    code = known(language, table, "language", f"{corpus} on the hub")
    named = {name: value.replace("{language}", code) for name, value in HUB[corpus].items()}
    load_dataset = hub_loader(named["path"])
    try:
        dataset = load_dataset(**named, split=split)
        names = dataset.features["ner_tags"].feature.names
    except Exception as error:  # builders and the network may raise anything
        raise DataError(
            "the hub dataset cannot be loaded",
            where=f"{named['path']} {code} {split}",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="check language and split, and that there is a network",
        ) from error
    identity = next((column for column in ("id", "idx") if column in dataset.column_names), None)
    return [
        {
            "id": row[identity] if identity else number,
            "tokens": row["tokens"],
            "tags": [names[tag] for tag in row["ner_tags"]],
        }
        for number, row in enumerate(dataset)
    ]
