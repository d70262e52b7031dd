"""A method, a data format, an engine and a merging rule that others bring, a file each: nothing else is edited, and
real commands use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adamergex.data import file_formats
from adamergex.errors import ConfigError, DataError
from adamergex.graph import engines
from commands import command
from extensions import entry_point, example, installed, merging_rule

SENTENCES = {
    "en": ("Amina/B-PER lives/O in/O Kisumu/B-LOC", "Ada/B-PER left/O Paris/B-LOC"),
    "sw": ("Amina/B-PER anaishi/O Kisumu/B-LOC", "Ada/B-PER aliondoka/O Paris/B-LOC"),
}


def conll(texts: tuple[str, ...]) -> str:
    return "\n\n".join(text.replace(" ", "\n").replace("/", "\t") for text in texts) + "\n"


@pytest.fixture(scope="module")
def study(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's settings; its files, and its own method, lie beside them."""
    folder = tmp_path_factory.mktemp("study")
    for language, texts in SENTENCES.items():
        (folder / f"{language}.conll").write_text(conll(texts * 4), encoding="utf-8")
        (folder / f"{language}.txt").write_text(f"{texts[0]} .\n".replace("/", " ") * 40, encoding="utf-8")
    (folder / "gentle.py").write_text(example("gentle"), encoding="utf-8")
    quick = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3}
    settings: dict[str, Any] = {
        "title": "Extended",
        "base": str(tiny_encoder),
        "structure": {"kind": "lora", "rank": 2},
        "targets": ["sw"],
        "methods": ["english_tuning", "gentle.py:gentle"],
        "reference": {"text": "{language}.txt", "segment": 16, "segments": 4, "optimisation": quick},
        "tasks": {"names": {"task": {"kind": "tagging", "types": ["PER", "LOC"], "train": "{language}.conll",
                                     "test": "{language}.conll", "optimisation": quick}}},
        "output": str(folder / "run"),
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder / "study.yaml"


def package(folder: Path, name: str, group: str) -> Path:
    """The page's own module and entry point, installed."""
    return installed(folder / name, name, example(name), group, entry_point(group))


def test_a_method_a_format_and_an_engine_of_others(study: Path, tmp_path: Path) -> None:
    formats = package(tmp_path, "conll", "adamergex.data_formats")
    threads = package(tmp_path, "thread", "adamergex.engines")
    done = command("study", study, "--engine", "thread", paths=(formats, threads))
    assert done.returncode == 0, done.stderr
    results = json.loads((study.parent / "run" / "names" / "results.json").read_text(encoding="utf-8"))
    cells = {cell["method"]: cell for cell in results["cells"]}
    assert set(cells) == {"english_tuning", "gentle"} and {cell["n"] for cell in cells.values()} == {8}
    lineage = json.loads((study.parent / "run" / "names" / cells["gentle"]["adapter"] / "lineage.json").read_text())
    assert lineage["merge"]["weight"] == 0.25 and set(lineage["parents"]) == {
        "task", "target_reference", "source_reference"
    }  # fmt: skip
    again = command("study", study, paths=(formats,))  # another engine finds all that the first one made
    assert again.returncode == 0, again.stderr
    made = json.loads((study.parent / "run" / "study.json").read_text(encoding="utf-8"))["steps"]
    assert made["all"] == made["reused"] == 6 and not made["missing"]


def test_a_merging_rule_of_others(study: Path, tmp_path: Path) -> None:
    """In a method of a study, and in a merge of adapters that are there."""
    formats = package(tmp_path, "conll", "adamergex.data_formats")
    rules = installed(tmp_path / "rules", "my_rules", merging_rule(), "adamergex.rules", "turned = my_rules:TURNED")
    recipe = example("gentle").replace("weight=0.25", 'weight=0.25, rule="turned"')
    (tmp_path / "gently_turned.py").write_text(recipe.replace("def gentle", "def turned"), encoding="utf-8")
    method = f"methods=[english_tuning, {tmp_path}/gently_turned.py:turned]"
    done = command("study", study, "--set", method, "--set", f"output={tmp_path / 'run'}", paths=(formats, rules))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "names" / "results.json").read_text(encoding="utf-8"))
    merged = tmp_path / "run" / "names" / next(c["adapter"] for c in results["cells"] if c["method"] == "turned")
    lineage = json.loads((merged / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["merge"]["rule"] == "turned"
    parents = {f"--{role.replace('_', '-')}": parent["path"] for role, parent in lineage["parents"].items()}
    given = [*(word for pair in parents.items() for word in pair), "--weight", "0.25", "--rule", "turned"]
    again = command("merge", *given, "--output", tmp_path / "merged", paths=(rules,))
    assert again.returncode == 0, again.stderr
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (merged / name).read_bytes()
    # A setting of the rule's own: in the study and in the merge.
    change = ("--set", "merge.rules.turned.kept=0.5", "--set", method, "--set", f"output={tmp_path / 'half'}")
    done = command("study", study, *change, paths=(formats, rules))
    assert done.returncode == 0, done.stderr
    half = tmp_path / "half" / merged.relative_to(tmp_path / "run")
    assert json.loads((half / "lineage.json").read_text(encoding="utf-8"))["merge"]["settings"] == {"kept": 0.5}
    again = command("merge", *given, "--set", "kept=0.5", "--output", tmp_path / "again", paths=(rules,))
    assert again.returncode == 0 and "kept 0.5" in again.stdout, again.stderr
    found = {(folder / "adapter_model.safetensors").read_bytes() for folder in (tmp_path / "again", half)}
    assert len(found) == 1 and found != {(merged / "adapter_model.safetensors").read_bytes()}
    for verb in (("merge", *given), ("study", study, "--set", method, "--set", f"output={tmp_path / 'not'}")):
        place = "" if verb[0] == "merge" else "merge.rules.turned."
        for text, problem in (("keep=0.5", "rule turned has no such setting"), ("kept=yes", "has another type")):
            end = ("--output", tmp_path / "not") if verb[0] == "merge" else ()
            wrong = command(*verb, "--set", place + text, *end, paths=(formats, rules))
            assert wrong.returncode == 2 and problem in wrong.stderr and "kept" in wrong.stderr
            assert not (tmp_path / "not").exists()
    lacking = command("merge", *given, "--output", tmp_path / "not")
    assert lacking.returncode == 2 and "there is no such rule" in lacking.stderr
    assert not (tmp_path / "not").exists()


def test_without_their_packages_one_message_says_what_there_is(study: Path, tmp_path: Path) -> None:
    output = ("--set", f"output={tmp_path / 'run'}")
    formats = package(tmp_path, "conll", "adamergex.data_formats")
    for more in ((), ("--dry-run",)):
        lacking = command("study", study, *output, "--engine", "thread", *more, paths=(formats,))
        assert lacking.returncode == 2 and "there is no such engine" in lacking.stderr
    assert "expected: local, ray" in lacking.stderr and not (tmp_path / "run").exists()
    lacking = command("study", study, *output)
    assert lacking.returncode == 2 and "the ending does not name a known format" in lacking.stderr
    assert ".jsonl, .json, .csv, .tsv, .txt, .parquet" in lacking.stderr


def test_a_damaged_file_of_their_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_formats.FORMATS, "_registered", {})
    scope: dict[str, Any] = {}
    exec(example("conll"), scope)
    file_formats.register(scope["CONLL"])
    (tmp_path / "en.conll").write_text("Amina\tB-PER\nKisumu\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a word has no tag[\s\S]*en\.conll, row 1, line 2[\s\S]*Kisumu"):
        list(file_formats.rows_of(tmp_path / "en.conll", 0))
    (tmp_path / "en.conll").write_bytes(b"Amina\tB-\xff\n")
    with pytest.raises(DataError, match="the file cannot be read"):
        list(file_formats.rows_of(tmp_path / "en.conll", 0))


def test_names_are_taken_once() -> None:
    with pytest.raises(ConfigError, match="this name is taken"):
        engines.register(engines.EngineKind("ray", lambda work: None))
    with pytest.raises(ConfigError, match="this name is taken"):
        file_formats.register(file_formats.FileFormat("jsonl", lambda path, lines: iter(())))
