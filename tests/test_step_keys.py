"""The keys of a small study's steps: what a store holds stays valid as long as they are these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from adamergex.config.study import Assumed
from adamergex.config.transfer import METHODS, parse
from adamergex.graph.steps import Step, canonical, in_order
from adamergex.methods.given import GivenAdapter
from adamergex.tables.plan import Plan
from adamergex.tables.sketch import assumed_facts

GOLDEN = Path(__file__).parent / "goldens" / "step_keys.json"
FEW = ["adamergex"]
RIVALS = ["average", "layer_swapping", "ties", "dare", "ties_factors", "dare_factors", "adamergex_cross"]
ENTROPY = {"weight": "entropy", "grid": [0.5, 1.0], "unlabelled_rows": 32}
OTHER = {"train": "{language}.other.jsonl", "kind": "pair-classification", "labels": ["x", "y"]}

# Table -> what it changes of ``settings``.
TABLES: dict[str, dict[str, Any]] = {
    "all methods": {"methods": list(METHODS)},
    "delta": {"methods": ["adamergex", "ties"], "merge": {"space": "delta", "rank": 4, "modules": "query"}},
    "fixed": {"methods": FEW, "merge": {"weight": 0.5}, "proxy": None},
    "several proxies": {"methods": FEW, "proxy": ["fr", "de"], "merge": {"one_standard_error": True}},
    "leave one out": {
        "methods": FEW,
        "proxy": ["fr"],
        "merge": {"leave_one_out": True, "oracle": True, "compare": ["proxy", "entropy"]},
    },  # fmt: skip
    "entropy": {"methods": ["adamergex", "adamergex_cross"], "merge": ENTROPY},
    "a weight per layer": {"methods": FEW, "merge": {**ENTROPY, "granularity": "layer", "unlabelled": "validation"}},
    "ia3": {"methods": [*FEW, "adamergex_cross", "ties", "dare"], "structure": {"kind": "ia3"}},
    "prefix": {"methods": [*FEW, "adamergex_cross"], "structure": {"kind": "prefix"}},
    "prefix, literal": {"methods": FEW, "structure": {"kind": "prefix"}, "merge": {"form": "literal", "span": "whole"}},
    "bottleneck": {"methods": [*FEW, "layer_swapping"], "structure": {"kind": "bottleneck"}},
    "rivals": {
        "methods": RIVALS,
        "merge": {"swap": {"bottom": 1, "top": 2, "transition": 1}, "combine": {"density": 0.3, "weights": [1.0, 0.5]}},
    },  # fmt: skip
    "sentence contrast": {"methods": FEW, "reference": {"kind": "sentence-contrast", "text": "{language}.txt"}},
    "alignment": {
        "methods": FEW,
        "reference": {"kind": "sentence-alignment", "text": "{language}.txt", "pivot": "{language}.pivot.txt"},
    },  # fmt: skip
    "labelled reference": {"methods": FEW, "reference": {"kind": "task", "task": OTHER}},
    "given references": {"methods": FEW, "reference": {"kind": "adapters", "adapters": "vectors/{language}"}},
}


def settings(**changes: Any) -> dict[str, Any]:
    task = {"train": "en.jsonl", "validation": "{language}.v.jsonl", "test": "{language}.jsonl", "labels": ["a", "b"]}
    shared = {"base": "nano", "proxy": "fr", "targets": ["sw", "tr"], "task": task}
    return {**shared, "reference": {"text": "{language}.txt"}, **changes}


def steps(changes: dict[str, Any]) -> list[Step]:
    config = parse(settings(**changes))
    return in_order(Plan(config, assumed_facts(config, Assumed())).wanted)


def keys(wanted: Iterable[Step]) -> list[str]:
    """Kind, label, key and a hash of what the action is given, in order."""
    jobs = {step.key: hashlib.sha256(canonical(plain(step)).encode()).hexdigest() for step in wanted}
    return sorted(f"{step.kind} | {step.label} | {step.key[:16]} | {jobs[step.key][:16]}" for step in wanted)


def plain(step: Step) -> object:
    job = step.job
    if isinstance(job, GivenAdapter):
        return {"path": str(job.path), "shapes": job.shapes}
    assert isinstance(job, BaseModel)
    return job.model_dump(mode="json")


@pytest.mark.parametrize("table", TABLES)
def test_the_keys_of_all_methods_steps_are_what_they_were(table: str) -> None:
    assert keys(steps(TABLES[table])) == json.loads(GOLDEN.read_text(encoding="utf-8"))[table]
