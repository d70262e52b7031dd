"""Text for pretraining: plain sentences by language, and rows that are translations of one another.

Only sets under CC0, CC BY or CC BY-SA are read (see ``LICENCES``). Swahili, Xhosa and Igbo are never read: they are the
languages that the shipped backbones have not seen.
"""

from __future__ import annotations

import gzip
import json
import random
import re
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
# Languages whose text fills the vocabulary and the plain blocks: few enough that each gets whole words for pieces.
PLAIN = ["ar", "de", "el", "en", "es", "et", "fr", "gn", "ha", "hi", "id", "it", "ja", "ro", "rw", "tr", "vi", "zh"]
VOCABULARY = frozenset([*PLAIN, "ru", "th", "wo", "yo"])
PARALLEL = {"tico19": ("train", "dev"), "ntrex": ("train", "dev"), "sib200": ("train",), "xquad": ("contexts",)}
# Where a sentence ends, by script; the pieces of a paragraph are used only where a language has as many as English.
ENDS = {"zh": r"(?<=[。！？])", "hi": r"(?<=[।?!])\s+", "ar": r"(?<=[.!?؟])\s+"}
END = r"(?<=[.!?;])\s+(?=[^a-zа-я(])"


def plain_sentences(data: Path) -> dict[str, list[str]]:
    """Sentences of each language in ``commonvoice-large``."""
    sentences = {}
    for language in PLAIN:
        with gzip.open(data / "commonvoice-large" / f"{language}.txt.gz", "rt", encoding="utf-8") as lines:
            sentences[language.split("-")[0]] = [line.strip() for line in lines if line.strip()]
    return sentences


def parallel_rows(data: Path) -> dict[str, dict[str, str]]:
    """``{row id: {language: sentence}}`` over the parts of ``PARALLEL``; every row has its English."""
    rows: dict[str, dict[str, str]] = {}
    paragraphs: dict[str, dict[str, str]] = {}
    for name, parts in PARALLEL.items():
        for path in [path for part in parts for path in sorted((data / name).glob(f"*.{part}.jsonl.gz"))]:
            language = path.name.split(".")[0]
            if language in UNSEEN:
                continue
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for item in map(json.loads, lines):
                    key, text, place = (
                        (f"{name}-{item['id']}", item["text"], rows)
                        if "id" in item
                        else (f"{name}-{item['context_id']}", item["context"], paragraphs)
                    )
                    place.setdefault(key, {})[language] = unicodedata.normalize("NFC", text)
    for key, texts in paragraphs.items():
        _split(key, texts, rows)
    return {key: row for key, row in sorted(rows.items()) if "en" in row}


def _split(key: str, texts: dict[str, str], rows: dict[str, dict[str, str]]) -> None:
    """Rows of a paragraph's sentences where a language has as many of them as English, of the whole elsewhere."""
    count = len(_sentences(texts["en"], "en"))
    for language, text in texts.items():
        parts = _sentences(text, language)
        if len(parts) == count:
            for index, part in enumerate(parts):
                rows.setdefault(f"{key}-{index}", {})[language] = part
        else:
            rows.setdefault(key, {"en": texts["en"]})[language] = text


def _sentences(text: str, language: str) -> list[str]:
    return [part.strip() for part in re.split(ENDS.get(language, END), text) if part.strip()]


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
