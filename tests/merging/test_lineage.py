"""lineage.json and model cards."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from adamergex.errors import AdapterFileError
from adamergex.files import lineage
from adamergex.files.hashing import file_sha256
from adamergex.files.lineage import Lineage
from adamergex.structures.card import model_card

FULL = Lineage(
    base={"name": "xlm-roberta-base", "sha256": "b"},
    structure={"kind": "lora", "rank": 8, "alpha": 16},
    start="s",
    task={"kind": "classification", "labels": ["a", "é"]},
    language="sw",
    data={"files": {"train.tsv": "f"}, "rows": 10},
    settings={"learning_rate": 2e-4},
    parents={"task": {"path": "runs/task", "sha256": "t", "language": "en"}},
    merge={"rule": "additive", "space": "factors", "modules": "attention-qv", "weight": 0.5, "rank": None},
    versions={"adamergex": "0.1.0"},
)


@pytest.mark.parametrize("original", [FULL, Lineage()])
def test_round_trip(original: Lineage, tmp_path: Path) -> None:
    original.write(tmp_path)
    assert lineage.read(tmp_path) == original
    assert original.to_json() == original.to_json()


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert lineage.read(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"format": "adamergex-lineage/9"}', "another format"),
        ('{"format": "adamergex-lineage/1", "seed": 1}', "unknown fields"),
        ('{"format": "adamergex-lineage/1", "base": null}', "wrong type"),
        ('{"format": "adamergex-lineage/1", "language": 3}', "wrong type"),
    ],
)
def test_broken_files(text: str, pattern: str, tmp_path: Path) -> None:
    (tmp_path / "lineage.json").write_text(text)
    with pytest.raises(AdapterFileError, match=pattern) as caught:
        lineage.read(tmp_path)
    assert "lineage.json" in str(caught.value)
    assert "next:" in str(caught.value)


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_versions_come_without_imports() -> None:
    found = lineage.package_versions(("numpy", "peft", "no-such-package"))
    assert set(found) == {"numpy", "peft"}
    assert "no-such-package" not in sys.modules


def front_matter(card: str) -> dict[str, object]:
    return dict(yaml.safe_load(card.split("---")[1]))


def test_model_card() -> None:
    card = model_card(FULL, ["a table"], task_type="SEQ_CLS")
    assert front_matter(card) == {
        "library_name": "peft",
        "base_model": "xlm-roberta-base",
        "tags": ["adamergex", "lora", "cross-lingual-transfer"],
        "language": ["sw"],
    }
    assert 'AutoModelForSequenceClassification.from_pretrained("xlm-roberta-base", num_labels=' in card
    assert "a table" in card
    assert "runs/task" in card
    assert json.dumps(FULL.task, ensure_ascii=False, sort_keys=True) in card


def test_a_local_base_stays_out_of_the_front_matter() -> None:
    card = model_card(Lineage(base={"name": "/models/mine"}, structure={"kind": "ia3"}, language="no"))
    assert "base_model" not in front_matter(card)
    assert front_matter(card)["language"] == ["no"]  # not the YAML boolean
    assert 'AutoModel.from_pretrained("/models/mine")' in card


@pytest.mark.parametrize(("base", "labels"), [("nano", 6), ("nano", 0), ("xlm-roberta-base", 6), ("gpt", 0)])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", "CAUSAL_LM", None])
def test_the_cards_snippet_is_python(base: str, labels: int, task_type: str | None) -> None:
    task = {"kind": "classification", "labels": [str(number) for number in range(labels)]} if labels else None
    card = model_card(Lineage(base={"name": base}, structure={"kind": "lora"}, task=task), task_type=task_type)
    snippet = card.split("```python\n")[1].split("```")[0]
    compile(snippet, "card", "exec")
    assert (f"num_labels={labels}" in snippet) == bool(labels and task_type == "SEQ_CLS")
    assert ("folder" in snippet.split("path/to")[0]) == (base == "nano")
