"""Sentence encoders through the whole table: references by contrast and by alignment, heads that read the mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adamergex.config.transfer import parse
from adamergex.errors import ConfigError, DataError
from adamergex.tables.transfer import transfer
from test_pipeline import settings, silent


def table(base: Path, data: Path, output: Path, reference: dict[str, Any]) -> dict[str, Any]:
    quick = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2}
    made = settings(base, data, output, methods=["english_tuning", "adamergex"], targets=["sw"])
    made["task"]["head"] = "mean"
    made["reference"] = {"text": f"{data}/{{language}}.txt", "optimisation": quick, **reference}
    return made


def adapters(output: Path, kind: str) -> dict[str, Path]:
    """Language -> the reference adapter of a kind in the run's store."""
    found = {}
    for path in (output / "store" / "train").iterdir():
        lineage = json.loads((path / "lineage.json").read_text())
        if lineage["task"]["kind"] == kind:
            found[lineage["language"]] = path
    return found


def test_contrast_serves_as_reference(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    transfer(parse(table(tiny_encoder, small_data, tmp_path / "run", {"kind": "sentence-contrast"})), say=silent)
    assert adapters(tmp_path / "run", "sentence-contrast").keys() == {"en", "fr", "sw"}


def test_alignment_moves_the_pivots_own_language_least(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    reference = {"kind": "sentence-alignment", "pivot": f"{small_data}/{{language}}.txt"}
    made = table(tiny_encoder, small_data, tmp_path / "run", reference)
    made["reference"]["optimisation"]["learning_rate"] = 1e-4
    transfer(parse(made), say=silent)
    found = adapters(tmp_path / "run", "sentence-alignment")
    assert found.keys() == {"en", "fr", "sw"}
    moved = {}
    for language, path in found.items():
        tensors = load_file(path / "adapter_model.safetensors")
        assert not any("classifier" in name or "pooler" in name for name in tensors)
        moved[language] = float(torch.stack([t.norm() for name, t in tensors.items() if "lora_B" in name]).norm())
    lineage = json.loads((found["sw"] / "lineage.json").read_text())
    assert lineage["task"]["pivot_language"] == "en"
    outcomes = {
        name: json.loads((path / "lineage.json").read_text())["settings"]["training"]["first_loss"]
        for name, path in found.items()
    }
    assert outcomes["en"] < outcomes["sw"]


def test_the_place_of_the_translations_is_no_part_of_a_step(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "en.txt").write_text((small_data / "en.txt").read_text())
    names = []
    for pivot in (small_data, tmp_path / "other"):
        reference = {"kind": "sentence-alignment", "pivot": f"{pivot}/{{language}}.txt"}
        output = tmp_path / f"run{len(names)}"
        transfer(parse(table(tiny_encoder, small_data, output, reference)), say=silent)
        names.append(sorted(path.name for path in adapters(output, "sentence-alignment").values()))
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "sentence-contrast", "noise": 1.0}, ConfigError, r"noise"),
        ({"kind": "sentence-contrast", "optimisation": {"batch_size": 1}}, ConfigError, r"contrasted with the others"),
        ({"kind": "sentence-contrast", "segment": 16}, ConfigError, r"segment: no such setting"),
        ({"kind": "sentence-alignment"}, DataError, r"pivot"),
        ({"kind": "sentence-alignment", "pivot": "one.txt"}, DataError, r"different numbers of rows"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    change: dict[str, Any], error: type[Exception], message: str, tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    if change.get("pivot"):
        change = {**change, "pivot": str(tmp_path / "one.txt")}
        (tmp_path / "one.txt").write_text("one line\n")
    with pytest.raises(error, match=message):
        transfer(parse(table(tiny_encoder, small_data, tmp_path / "run", change)), say=silent)
    assert not list((tmp_path / "run").rglob("adapter_model.safetensors"))


def test_translations_are_matched_by_id(tmp_path: Path) -> None:
    from adamergex.jobs.settings import Rows, SentenceAlignment
    from adamergex.tasks.rows import read

    (tmp_path / "sw.jsonl").write_text('{"id": "b", "text": "mbili"}\n{"id": "a", "text": "moja"}\n')
    (tmp_path / "en.jsonl").write_text(
        '{"id": "a", "text": "one"}\n{"id": "c", "text": "three"}\n{"id": "b", "text": "two"}\n'
    )
    rows = Rows(path=str(tmp_path / "{language}.jsonl"))
    task = SentenceAlignment(pivot=rows, pivot_language="en")
    assert [(row["text"], row["pivot"]) for row in read(task, rows, "sw")] == [("mbili", "two"), ("moja", "one")]
    (tmp_path / "en.jsonl").write_text('{"id": "a", "text": "one"}\n')
    with pytest.raises(DataError, match=r"no translation[\s\S]*row 1[\s\S]*'b'"):
        read(task, rows, "sw")


@pytest.mark.parametrize(
    ("own", "others", "message"),
    [
        ([{"id": "a"}], [{"id": "a", "text": "one"}, {"id": "a", "text": "two"}], "two translations[\\s\\S]*row 2"),
        ([{"id": ["a"]}], [{"id": ["a"]}], "id is not text"),
        ([{"id": {"b": 1}}], [{"id": "a"}], "id is not text"),
        ([{"id": True}], [{"id": 1}], "id is not text"),
        ([{"id": " "}], [{"id": " "}], "id is empty"),
        ([{"id": "a"}, {"id": "b"}], [{"id": "b"}, {}], "only some rows have an id[\\s\\S]*row 2"),
        ([{}, {"id": "b"}], [{"id": "b"}, {"id": "a"}], "only some rows have an id[\\s\\S]*row 1"),
    ],
)
def test_ids_that_match_no_translation_for_sure_are_refused(
    own: list[dict[str, Any]], others: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    from adamergex.jobs.settings import Rows, SentenceAlignment
    from adamergex.tasks.rows import read

    for language, rows in (("sw", own), ("en", others)):
        lines = [json.dumps({"text": f"text {language}", **row}) for row in rows]
        (tmp_path / f"{language}.jsonl").write_text("\n".join(lines) + "\n")
    rows_of = Rows(path=str(tmp_path / "{language}.jsonl"))
    with pytest.raises(DataError, match=message):
        read(SentenceAlignment(pivot=rows_of, pivot_language="en"), rows_of, "sw")


def test_an_id_is_the_same_as_a_number_and_as_text(tmp_path: Path) -> None:
    from adamergex.jobs.settings import Rows, SentenceAlignment
    from adamergex.tasks.rows import read

    (tmp_path / "sw.jsonl").write_text('{"id": "2", "text": "mbili"}\n{"id": "1", "text": "moja"}\n')
    (tmp_path / "en.jsonl").write_text('{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n')
    rows = Rows(path=str(tmp_path / "{language}.jsonl"))
    task = SentenceAlignment(pivot=rows, pivot_language="en")
    assert [row["pivot"] for row in read(task, rows, "sw")] == ["two", "one"]
