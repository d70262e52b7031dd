"""Text for pretraining: plain sentences by language, and rows that are translations of one another.

Only sets under CC0, CC BY or CC BY-SA are read (see ``LICENCES``). Swahili, Xhosa and Igbo are never read: they are the
languages that the shipped backbones have not seen.
"""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from pathlib import Path

UNSEEN = frozenset({"sw", "xh", "ig"})
LICENCES = {
    "commonvoice-large": "CC0 1.0",
    "tico19": "CC0 1.0",
    "ntrex": "CC BY-SA 4.0",
    "sib200": "CC BY-SA 4.0 (text; labels unused)",
    "xquad": "CC BY-SA 4.0 (contexts; questions and answers unused)",
}
# Languages of commonvoice-large that are read: those of the parallel sets, and widely used ones beside them.
PLAIN = [
    "ar",
    "bg",
    "cs",
    "de",
    "el",
    "en",
    "es",
    "et",
    "fa",
    "fr",
    "gn",
    "ha",
    "hi",
    "id",
    "it",
    "ja",
    "kk",
    "lg",
    "nb-NO",
    "nl",
    "pl",
    "pt",
    "ro",
    "rw",
    "sv",
    "ta",
    "tr",
    "uk",
    "ur",
    "uz",
    "vi",
    "zh",
]
PARALLEL = {"tico19": "train", "ntrex": "train", "sib200": "train", "xquad": "contexts"}


def plain_sentences(data: Path) -> dict[str, list[str]]:
    """Sentences of each language in ``commonvoice-large``."""
    sentences = {}
    for language in PLAIN:
        with gzip.open(data / "commonvoice-large" / f"{language}.txt.gz", "rt", encoding="utf-8") as lines:
            sentences[language.split("-")[0]] = [line.strip() for line in lines if line.strip()]
    return sentences


def parallel_rows(data: Path) -> dict[str, dict[str, str]]:
    """``{row id: {language: sentence}}`` over the training parts; every row has its English."""
    rows: dict[str, dict[str, str]] = {}
    for name, part in PARALLEL.items():
        for path in sorted((data / name).glob(f"*.{part}.jsonl.gz")):
            language = path.name.split(".")[0]
            if language in UNSEEN:
                continue
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    item = json.loads(line)
                    key, text = (
                        (item["id"], item["text"]) if "id" in item else (f"xquad-{item['context_id']}", item["context"])
                    )
                    rows.setdefault(key, {})[language] = unicodedata.normalize("NFC", text)
    return {key: row for key, row in sorted(rows.items()) if "en" in row}


def tempered_sample(sentences: dict[str, list[str]], characters: int, temperature: float, seed: int) -> list[str]:
    """About ``characters`` characters of text, language shares raised to ``temperature`` so that small ones count.

    English, the usual source language, counts three times."""
    sizes = {language: sum(map(len, lines)) for language, lines in sentences.items()}
    weights = {language: size**temperature * (3 if language == "en" else 1) for language, size in sizes.items()}
    total = sum(weights.values())
    generator = random.Random(seed)
    sample: list[str] = []
    for language in sorted(sentences):
        budget = characters * weights[language] / total
        for line in generator.sample(sentences[language], len(sentences[language])):
            if budget <= 0:
                break
            sample.append(line)
            budget -= len(line)
    return sample
