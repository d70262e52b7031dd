"""Synthetic results: 4 methods × 5 languages; every number is made up and reproducible. Here as fixtures."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LANGUAGES = ("es", "de", "tr", "sw", "vi")
LEVELS = {"es": 66.0, "de": 64.0, "tr": 58.0, "sw": 41.0, "vi": 60.0}
GAINS = {"vanilla": -28.0, "english_tuning": 0.0, "average": -3.0, "adamergex": 1.6}
METHODS: list[dict[str, Any]] = [
    {"name": "vanilla", "label": "Vanilla", "space": None, "about": "the base model, prompted"},
    {"name": "english_tuning", "label": "Eng-FT", "space": None, "about": "the task adapter of the source, as it is"},
    {"name": "average", "label": "AriMerge", "space": None, "about": "half task adapter, half target reference"},
    {"name": "adamergex", "label": "AdaMergeX", "space": "factors", "about": "task + λ · (target − source reference)"},
]
KINDS = ("attention.self.query", "attention.self.value", "attention.self.key", "output.dense")


def sample(
    seeds: tuple[int, ...] = (0,), gap: float = 1.6, reach: float = 3.0, text: str = "", chosen: float = 0.4
) -> dict[str, Any]:
    """Results as transfer writes them. ``gap``: AdaMergeX minus Eng-FT; ``reach``: half an interval of a difference."""
    cells = [_cell(method, language, seed, gap, reach) for method in GAINS for language in LANGUAGES for seed in seeds]
    return {
        "title": f"Topics from English, nano{text}",
        "base": "nano",
        "task": "topics" + text,
        "metric": "accuracy",
        "structure": "LoRA, rank 8, alpha 16",
        "source": "en",
        "proxy": "fr",
        "pooled": [],
        "comparisons": [],
        "targets": list(LANGUAGES),
        "seeds": list(seeds),
        "methods": [{**method, "about": f"{method['about']}{text}"} for method in METHODS],
        "cells": cells,
        "tuning": [_tuning(seed, chosen) for seed in seeds],
        "weights": [_weights(language, seed, chosen, text) for language in LANGUAGES for seed in seeds],
        "adapters": [item for seed in seeds for item in _adapters(seed, len(seeds) > 1)],
        "merges": [_merge(language, seed, chosen) for language in LANGUAGES for seed in seeds],
        "missing": [],
        "environment": {"python": "3.11.2", "torch": "2.10.0", "transformers": "5.5.0", "peft": "0.21.0", "threads": 2},
        "commands": ["adamergex transfer topics.yaml" + text],
        "notes": ["Swahili is unseen by the backbone." + text],
        "papers": {},
    }


def _cell(method: str, language: str, seed: int, gap: float, reach: float) -> dict[str, Any]:
    noise = random.Random(f"{method}{language}{seed}").uniform(-0.9, 0.9)
    base = LEVELS[language] + random.Random(f"{language}{seed}").uniform(-1, 1)
    shift = gap + noise / 3 if method == "adamergex" else GAINS[method] + (noise if method != "english_tuning" else 0)
    accuracy = base + shift
    against = {
        "method": "english_tuning",
        "difference": shift,
        "interval": [shift - reach, shift + reach],
        "p": min(1.0, max(0.0004, 0.9 - abs(shift) / reach / 1.2)),
    }
    return {
        "method": method,
        "language": language,
        "seed": seed,
        "score": accuracy,
        "scores": {"accuracy": accuracy},
        "n": 120 if language != "vi" else 118,
        "interval": [accuracy - 8.2, accuracy + 8.0],
        "truncated": 2 if language == "de" else 0,
        "unparsable": 0,
        "weight": 0.4 if method == "adamergex" else None,
        "predictions": f"predictions/{method}-{language}-{seed}.jsonl",
        "adapter": f"adapters/{method}-{language}-{seed}" if method in ("adamergex", "average") else None,
        "against": None if method == "english_tuning" else against,
    }


def _tuning(seed: int, chosen: float) -> dict[str, Any]:
    heights = [70.0, 70.8, 72.1, 72.5, 73.3, 72.4, 71.0, 69.2, 66.0, 62.5, 60.0]
    moved = [height + random.Random(f"{seed}{index}").uniform(-1, 1) for index, height in enumerate(heights)]
    curve = [
        {"weight": index / 10, "score": height, "interval": [height - 7.5, height + 7.0]}
        for index, height in enumerate(moved)
    ]
    return {"method": "adamergex", "proxy": "fr", "seed": seed, "chosen": chosen, "curve": curve}


def _weights(language: str, seed: int, chosen: float, text: str) -> dict[str, Any]:
    ways = [
        {"way": f"fr{text}", "weight": chosen, "score": 60.0, "own": True},
        {"way": "λ = 0 (Eng-FT)", "weight": 0.0, "score": 58.0},
    ]
    oracle = {"way": "oracle (upper bound, not a method)", "weight": 0.6, "score": 61.5}
    return {"method": "adamergex", "language": language, "seed": seed, "oracle": oracle, "ways": ways}


def _adapters(seed: int, several: bool) -> list[dict[str, Any]]:
    end = f" · seed {seed}" if several else ""
    made = [("task · en", "en", "classification", 61_234, 31.4, 0.412)]
    made += [(f"reference · {x}", x, "language-modeling", 153_600, 62.0, 4.61) for x in ("en", "fr", *LANGUAGES)]
    return [
        {"name": name + end, "language": language, "task": task, "parameters": 98_304, "bytes": 401_112,
         "tokens": tokens, "seconds": None if language == "vi" else seconds, "loss": loss,
         "reused": language == "fr", "path": f"store/{name.replace(' · ', '-')}-{seed}"}
        for name, language, task, tokens, seconds, loss in made
    ]  # fmt: skip


def _merge(language: str, seed: int, weight: float) -> dict[str, Any]:
    modules = []
    for layer in range(6):
        for kind in KINDS:
            draw = random.Random(f"{language}{seed}{layer}{kind}")
            task, change = draw.uniform(0.8, 1.4), draw.uniform(0.02, 0.35) if kind in KINDS[:2] else 0.0
            modules.append({"module": f"base_model.model.roberta.encoder.layer.{layer}.{kind}", "task_norm": task,
                            "divergence_norm": change / (weight or 1), "change_norm": change})  # fmt: skip
    return {"method": "adamergex", "language": language, "seed": seed, "weight": weight, "modules": modules}


@pytest.fixture(name="sample")
def _sample() -> Callable[..., dict[str, Any]]:
    return sample


@pytest.fixture(scope="session")
def runs(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """LoRA with two seeds and (IA)³ with one, from one store; the first has methods that the second lacks."""
    from adamergex.config.transfer import parse
    from adamergex.tables.transfer import transfer
    from test_pipeline import settings, silent

    names = [method["name"] for method in METHODS]
    folder = tmp_path_factory.mktemp("runs")
    chosen: list[dict[str, Any]] = [
        {"title": "Topics, LoRA", "seeds": [0, 1], "methods": [*names, "adamergex_delta"]},
        {"title": "Topics, (IA)³", "structure": {"kind": "ia3"}, "methods": names},
    ]
    for index, changes in enumerate(chosen):
        wanted = settings(tiny_encoder, small_data, folder / f"run-{index}", store=str(folder / "store"), **changes)
        transfer(parse(wanted), say=silent)
    return [folder / "run-0", folder / "run-1"]
