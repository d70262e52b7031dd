"""Zero-shot SIB-200 from English on frozen sentence vectors: ridge regression on English, read in other languages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from backbones import pooled

LANGUAGES = ("en", "fr", "es", "de", "tr", "vi", "ha", "ru", "sw", "xh", "ig")


def rows(data: Path, language: str, split: str) -> tuple[list[str], list[str]]:
    with gzip.open(data / "sib200" / f"{language}.{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        items = [json.loads(line) for line in lines]
    return [item["text"] for item in items], [item["label"] for item in items]


@torch.no_grad()
def vectors(model: nn.Module, tokenizer: PreTrainedTokenizerFast, texts: list[str], causal: bool) -> np.ndarray:
    model.eval()
    body, parts = (model.model if causal else model.roberta), []
    tokenizer.padding_side = "right"
    for start in range(0, len(texts), 32):
        chunk = [text + (" Topic:" if causal else "") for text in texts[start : start + 32]]
        batch = tokenizer(chunk, padding=True, truncation=True, max_length=200, return_tensors="pt")
        if causal:  # the vector is read at the cue, before a </s> that the template may close with
            ended = batch["input_ids"] != tokenizer.eos_token_id
            batch["attention_mask"] = batch["attention_mask"] * ended
        hidden = body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        parts.append(pooled(hidden, batch["attention_mask"], causal)[0])
    return torch.cat(parts).double().numpy()


def probe(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, data: Path, causal: bool, split: str = "dev"
) -> dict[str, float]:
    """Accuracy of the model's sentence vectors, in percent on a part of each language."""
    return probe_vectors(lambda texts: vectors(model, tokenizer, texts, causal), data, split)


def probe_vectors(embed: Callable[[list[str]], np.ndarray], data: Path, split: str = "dev") -> dict[str, float]:
    """Accuracy of any sentence vectors, in percent on a part of each language."""
    texts, labels = rows(data, "en", "train")
    names = sorted(set(labels))
    x = embed(texts)
    centre, spread = x.mean(0), x.std(0) + 1e-6
    x = np.concatenate([(x - centre) / spread, np.ones((len(x), 1))], axis=1)
    y = np.eye(len(names))[[names.index(label) for label in labels]]
    weights = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ y)
    result = {}
    for language in LANGUAGES:
        texts, labels = rows(data, language, split)
        z = (embed(texts) - centre) / spread
        guess = np.concatenate([z, np.ones((len(z), 1))], axis=1) @ weights
        gold = np.asarray([names.index(label) for label in labels])
        result[language] = round(100 * float((guess.argmax(1) == gold).mean()), 1)
    return result
