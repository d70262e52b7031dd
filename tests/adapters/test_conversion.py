"""`convert`: what a directory holds is found out; imports and exports are whole or not at all."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_adapter_files import OLD, Evil, adapter_directory, xlmr_tensors
from tiny_models import tiny

from adamergex import convert
from adamergex.adapters.formats.adapterhub import read_adapter
from adamergex.adapters.formats.conversion import detect
from adamergex.adapters.sparse import read_difference
from adamergex.cli.main import main
from adamergex.errors import AdapterFileError, ConfigError, ModelError
from adamergex.files.lineage import Lineage, read
from commands import command

GOLDENS = Path(__file__).parents[1] / "goldens"
HUB = GOLDENS / "g1_madx" / "xlmr_seqbn" / "adapters" / "lang"
BASE = GOLDENS / "g1_madx" / "bases" / "xlmr" / "base_lm"
TAGGER = GOLDENS / "g6_export" / "xlmr_tagger" / "task"
DIFFERENCE = GOLDENS / "g4_sft" / "xlmr_tokcls" / "task"
PEFT = GOLDENS / "g3_peft" / "xlmr_lora_qv" / "task"


def pickled(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def test_there_and_back_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert main(["convert", str(HUB), "--output", str(ours)]) == 0
    assert capsys.readouterr().out == (
        f"bottleneck adapter 'lang': adapterhub -> adamergex (20 tensors)\nwritten: {ours}\n"
    )
    Lineage(language="sw", base={"name": str(BASE)}).write(ours)
    assert main(["convert", str(ours), "--output", str(theirs), "--to", "adapterhub", "--base", str(BASE)]) == 0
    assert "adamergex -> adapterhub (20 tensors, lineage)" in capsys.readouterr().out
    settings = [json.loads((folder / "adapter_config.json").read_text()) for folder in (HUB, theirs)]
    assert settings[0] == settings[1]
    wanted, written = (pickled(folder / "pytorch_adapter.bin") for folder in (HUB, theirs))
    assert wanted.keys() == written.keys() and all(torch.equal(wanted[key], written[key]) for key in wanted)
    convert(theirs, tmp_path / "again")
    assert read(tmp_path / "again") == read(ours) == Lineage(language="sw", base={"name": str(BASE)})
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (ours / name).read_bytes()


@pytest.mark.parametrize("safetensors", [False, True])
def test_heads_go_along_both_ways(safetensors: bool, tmp_path: Path) -> None:
    report = convert(TAGGER, tmp_path / "ours")
    assert str(report) == "bottleneck adapter 'task': adapterhub -> adamergex (12 tensors, head, lineage)"
    again = tmp_path / "theirs"
    convert(tmp_path / "ours", again, "adapterhub", base=str(BASE), safetensors=safetensors)
    files = {item.name for item in again.iterdir()} - {"adapter_config.json", "head_config.json", "lineage.json"}
    assert files == (
        {"adapter.safetensors", "model_head.safetensors"}
        if safetensors
        else {"pytorch_adapter.bin", "pytorch_model_head.bin"}
    )
    wanted = pickled(TAGGER / "pytorch_model_head.bin")
    head = load_file(again / "model_head.safetensors") if safetensors else pickled(again / "pytorch_model_head.bin")
    assert wanted.keys() == head.keys() and all(torch.equal(wanted[key], head[key]) for key in wanted)
    assert json.loads((again / "head_config.json").read_text()) == json.loads((TAGGER / "head_config.json").read_text())


def test_old_dialects_and_archives(tmp_path: Path) -> None:
    tensors = xlmr_tensors("9f8e", "layer_text_lang_adapters", "invertible_lang_adapters")
    old = adapter_directory(tmp_path / "old", {"config": OLD, "name": "9f8e", "type": "text_lang"}, tensors)
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        for item in old.iterdir():
            archive.write(item, f"sw/{item.name}")
    convert(old, tmp_path / "one")
    assert detect(tmp_path / "old.zip") == detect(old) == ("bottleneck adapter", "adapterhub", "pytorch_adapter.bin")
    convert(tmp_path / "old.zip", tmp_path / "two")
    name = "adapter_model.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    folder = tmp_path / "base"
    tiny("xlm-roberta").save_pretrained(folder)
    convert(tmp_path / "old.zip", tmp_path / "new", "adapterhub", base=str(folder), safetensors=True)
    assert "roberta.encoder.layer.0.output.adapters.9f8e.adapter_up.bias" in load_file(
        tmp_path / "new" / "adapter.safetensors"
    )
    assert read_adapter(tmp_path / "new").config == read_adapter(old).config


@pytest.mark.parametrize("source", [DIFFERENCE, DIFFERENCE / "pytorch_diff.bin"])
def test_sparse_differences_both_ways(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), "--output", str(tmp_path / "ours")]) == 0
    assert "sparse difference 'task': composable-sft -> adamergex" in capsys.readouterr().out
    Lineage(language="sw").write(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", "composable-sft")
    assert read(tmp_path / "theirs") == Lineage(language="sw")
    wanted, found = read_difference(source), read_difference(tmp_path / "theirs")
    for name, entry in wanted.sparse.items():
        assert torch.equal(entry.indices, found.sparse[name].indices)
        assert torch.equal(entry.values, found.sparse[name].values)
    assert all(torch.equal(tensor, found.whole[name]) for name, tensor in wanted.whole.items())
    assert wanted.sparse.keys() == found.sparse.keys() and wanted.whole.keys() == found.whole.keys()


def test_what_has_the_wanted_form_already(tmp_path: Path) -> None:
    convert(HUB, tmp_path / "ours")
    convert(DIFFERENCE, tmp_path / "sparse")
    for source, to, found in (
        (tmp_path / "ours", "adamergex", r"adamergex \(adapter_model.safetensors\)"),
        (HUB, "adapterhub", r"adapterhub \(pytorch_adapter.bin\)"),
        (tmp_path / "sparse", "adamergex", r"adamergex \(sparse_difference.safetensors\)"),
        (DIFFERENCE, "composable-sft", r"composable-sft \(pytorch_diff.bin\)"),
    ):
        with pytest.raises(AdapterFileError, match=rf"is in the wanted format already; nothing(.|\n)*found: {found}"):
            convert(source, tmp_path / "out", to)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    convert(HUB, tmp_path / "out", "adapterhub", base=str(BASE), safetensors=True)  # another file: not the same form


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    both, bare = tmp_path / "both", tmp_path / "bare"
    for folder in (both, bare):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
    (both / "pytorch_diff.bin").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    cases: list[tuple[Path, dict[str, Any], type[Exception], str]] = [
        (PEFT, {}, AdapterFileError, r"this PEFT adapter needs no conversion(.|\n)*peft_type LORA"),
        (tmp_path / "none", {}, AdapterFileError, r"nothing to convert found(.|\n)*next: check the path"),
        (tmp_path / "empty", {}, AdapterFileError, "found: an empty directory"),
        (BASE, {}, AdapterFileError, r"found: config.json, model.safetensors"),
        (both, {}, AdapterFileError, "found: an adapter and a sparse difference"),
        (bare, {}, AdapterFileError, "found: adapter_config.json without tensors"),
        (HUB / "pytorch_adapter.bin", {}, AdapterFileError, rf"next: name its directory: .*{HUB.name}"),
        (tmp_path / "text.zip", {}, AdapterFileError, "archive cannot be read"),
        (
            HUB,
            {"to": "composable-sft"},
            AdapterFileError,
            r"cannot be written in the format composable-sft(.|\n)*expected: adamergex or adapterhub",
        ),
        (DIFFERENCE, {"to": "adapterhub"}, AdapterFileError, "cannot be written in the format adapterhub"),
        (HUB, {"to": "peft"}, ConfigError, "unknown format"),
        (HUB, {"base": "nano"}, ConfigError, r"AdapterHub's format only\n  where: base"),
        (HUB, {"to": "adapterhub", "safetensors": True}, ConfigError, r"base that this adapter names is not available"),
        (HUB, {"to": "adapterhub", "safetensors": True, "base": "./none"}, ModelError, "no such model folder"),
    ]
    for source, arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            convert(source, tmp_path / "out", **arguments)
        assert not (tmp_path / "out").exists(), source


def test_a_base_that_is_needed_and_one_that_does_not_fit(tmp_path: Path) -> None:
    source = adapter_directory(tmp_path / "hub", {"config": OLD, "name": "sw"}, xlmr_tensors("sw"))
    convert(source, tmp_path / "ours")
    with pytest.raises(ConfigError, match=r"does not name its base(.|\n)*--base"):
        convert(tmp_path / "ours", tmp_path / "out", "adapterhub")
    tiny("xlm-roberta", num_hidden_layers=2).save_pretrained(tmp_path / "short")
    with pytest.raises(AdapterFileError, match="a layer that the model lacks"):
        convert(tmp_path / "ours", tmp_path / "out", "adapterhub", base=str(tmp_path / "short"))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_nothing_is_run_and_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "ran"
    source = adapter_directory(tmp_path / "hub", {"config": OLD, "name": "sw"}, {})
    torch.save({"x": Evil(target)}, source / "pytorch_adapter.bin")
    assert main(["convert", str(source), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("adamergex: ") and "nothing in it was run" in error
    assert not target.exists() and not (tmp_path / "out").exists()
    convert(HUB, tmp_path / "out")
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert main(["convert", str(TAGGER), "--output", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before


def test_a_file_that_cannot_grow_is_one_message(tmp_path: Path) -> None:
    """A limit on the size of files fails in the middle of an import, as a full disk does."""
    result = command("convert", TAGGER, "--output", tmp_path / "out", largest=4096)
    assert result.returncode == 2 and not any(tmp_path.iterdir())
    assert result.stderr.startswith("adamergex: tensors cannot be written") and "too large" in result.stderr
