"""Adapters between a trimmed base and the full one: moved with the same predictions, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM

from adamergex.backbones.base_files import base_sha256
from adamergex.backbones.rebasing import rebase
from adamergex.backbones.trimming import trim
from adamergex.cli.main import main
from adamergex.errors import (
    AdamergexError,
    AdapterFileError,
    IncompatibleAdaptersError,
    ModelError,
)
from adamergex.files.lineage import read
from adamergex.merging import merge


@pytest.fixture
def bases(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The tiny encoder, and the same with the tokens of the English and the French rows."""
    files = [small_data / f"{language}.{part}.tsv" for language in ("en", "fr") for part in ("train", "test")]
    done = trim(str(tiny_encoder), files, tmp_path / "trimmed")
    assert done.tokens < done.tokens_before
    return tiny_encoder, tmp_path / "trimmed"


def trained(base: Path, small_data: Path, output: Path, **more: Any) -> Path:
    settings = {
        "kind": "task",
        "base": str(base),
        "language": "en",
        "structure": {"kind": "lora", "rank": 2},
        "task": {
            "kind": "classification",
            "labels": ["nature", "health", "sports", "travel"],
            "train": str(small_data / "en.train.tsv"),
            "optimisation": {"steps": 12, "learning_rate": 5e-3},
        },
        "output": str(output),
        **more,
    }
    path = output.parent / f"{output.name}.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert main(["train", str(path)]) == 0
    return output


def predictions(base: Path, adapter: Path, small_data: Path, output: Path) -> str:
    arguments = ["--base", str(base), "--adapter", str(adapter), "--test", str(small_data / "fr.test.tsv")]
    assert main(["evaluate", *arguments, "--language", "fr", "--output", str(output)]) == 0
    return (output / "predictions.jsonl").read_text(encoding="utf-8")


def test_a_moved_adapter_predicts_the_same(bases: tuple[Path, Path], small_data: Path, tmp_path: Path) -> None:
    full, trimmed = bases
    adapter = trained(trimmed, small_data, tmp_path / "adapter")
    before = predictions(trimmed, adapter, small_data, tmp_path / "one")
    arguments = ["--adapter", str(adapter), "--from", str(trimmed), "--to", str(full)]
    assert main(["backbones", "rebase", *arguments, "--output", str(tmp_path / "moved")]) == 0
    assert predictions(full, tmp_path / "moved", small_data, tmp_path / "two") == before
    lineage = read(tmp_path / "moved")
    assert lineage is not None and lineage.base == {"name": str(full), "sha256": base_sha256(str(full))}
    assert lineage.parents["rebased_from"]["path"] == str(adapter)
    tensors = "adapter_model.safetensors"
    assert (tmp_path / "moved" / tensors).read_bytes() == (adapter / tensors).read_bytes()
    config = json.loads((tmp_path / "moved" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(full)
    # And back: the texts are covered.
    rebase(tmp_path / "moved", str(full), str(trimmed), tmp_path / "back")
    assert predictions(trimmed, tmp_path / "back", small_data, tmp_path / "three") == before


def test_without_moving_they_do_not_mix(bases: tuple[Path, Path], small_data: Path, tmp_path: Path) -> None:
    full, trimmed = bases
    one, two = (trained(base, small_data, tmp_path / name) for base, name in ((full, "one"), (trimmed, "two")))
    with pytest.raises(IncompatibleAdaptersError):
        merge(task=one, target_reference=two, source_reference=two, weight=0.5, output=tmp_path / "merged")
    with pytest.raises(ModelError, match="another base"):
        rebase(one, str(trimmed), str(full), tmp_path / "moved")


def test_what_depends_on_tokens_is_refused(bases: tuple[Path, Path], small_data: Path, tmp_path: Path) -> None:
    full, trimmed = bases
    adapter = trained(trimmed, small_data, tmp_path / "embeddings")
    tensors = load_file(adapter / "adapter_model.safetensors")  # PEFT trains such factors; adamergex does not
    rows = len(AutoTokenizer.from_pretrained(trimmed))
    name = "base_model.model.roberta.embeddings.word_embeddings.lora_embedding_A"
    save_file(tensors | {name: torch.zeros(2, rows)}, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match="for each token"):
        rebase(adapter, str(trimmed), str(full), tmp_path / "moved")
    whole = trained(trimmed, small_data, tmp_path / "whole", structure={"kind": "full"})
    with pytest.raises(AdapterFileError, match="only an adapter"):
        rebase(whole, str(trimmed), str(full), tmp_path / "moved")
    assert not (tmp_path / "moved").exists()


def test_bases_that_differ_are_refused(bases: tuple[Path, Path], small_data: Path, tmp_path: Path) -> None:
    full, trimmed = bases
    changed = tmp_path / "changed"
    trim(str(full), [small_data / "en.train.tsv"], changed)
    tensors = load_file(changed / "model.safetensors")
    tensors["roberta.embeddings.word_embeddings.weight"][7, 3] += 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    other = tmp_path / "other"
    XLMRobertaForMaskedLM(
        XLMRobertaConfig(
            vocab_size=len(AutoTokenizer.from_pretrained(full)),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    ).save_pretrained(other)
    for source, target in ((changed, full), (trimmed, other), (trimmed, trimmed)):
        adapter = trained(source, small_data, tmp_path / f"adapter-{source.name}-{target.name}")
        with pytest.raises(AdamergexError, match="neither base is trimmed"):
            rebase(adapter, str(source), str(target), tmp_path / "moved")


def test_what_lies_beside_an_adapter_is_not_copied(bases: tuple[Path, Path], small_data: Path, tmp_path: Path) -> None:
    full, trimmed = bases
    adapter = trained(trimmed, small_data, tmp_path / "adapter")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("a secret", encoding="utf-8")
    (adapter / "folder").symlink_to(tmp_path / "private")
    (adapter / "notes.txt").symlink_to(tmp_path / "private" / "key")
    (adapter / "run.py").write_text("print()", encoding="utf-8")
    rebase(adapter, str(trimmed), str(full), tmp_path / "moved")
    names = {path.name for path in (tmp_path / "moved").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "lineage.json"}
    (adapter / "more.json").symlink_to(tmp_path / "private" / "key")
    with pytest.raises(AdapterFileError, match="not valid JSON"):
        rebase(adapter, str(trimmed), str(full), tmp_path / "again")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "trimmed.json").write_text("{}"),
        lambda folder: (folder / "trimmed.json").write_text('{"base": "x"}'),
        lambda folder: (folder / "kept_rows.safetensors").write_bytes(b"junk"),
        lambda folder: save_file({"x": torch.zeros(1)}, folder / "kept_rows.safetensors"),
        lambda folder: save_file({"rows": torch.tensor([1.5])}, folder / "kept_rows.safetensors"),
        lambda folder: save_file({"rows": torch.zeros(9, dtype=torch.int32)}, folder / "kept_rows.safetensors"),
    ],
)
def test_a_damaged_record_of_trimming_is_one_error(
    bases: tuple[Path, Path], small_data: Path, tmp_path: Path, damage: Any
) -> None:
    full, trimmed = bases
    adapter = trained(trimmed, small_data, tmp_path / "adapter")
    damage(trimmed)
    with pytest.raises(ModelError, match="record of trimming is damaged"):
        rebase(adapter, str(trimmed), str(full), tmp_path / "moved")


def test_an_adapter_without_a_sound_config_is_refused(
    bases: tuple[Path, Path], small_data: Path, tmp_path: Path
) -> None:
    full, trimmed = bases
    adapter = trained(trimmed, small_data, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"task_type": [1]}), encoding="utf-8")
    with pytest.raises(AdapterFileError, match="task_type"):
        rebase(adapter, str(trimmed), str(full), tmp_path / "moved")
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(AdapterFileError, match="no config"):
        rebase(adapter, str(trimmed), str(full), tmp_path / "moved")
