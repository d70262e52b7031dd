"""Backbones: names, families, dtypes, hashes, padding, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from adamergex.backbones import loading
from adamergex.errors import ModelError


def copied(checkpoint: str, folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint, folder / "copy"))


def test_a_hub_id_stays_as_it_is_and_a_folder_is_found(checkpoints: dict[str, str]) -> None:
    assert loading.resolve("FacebookAI/xlm-roberta-base") == "FacebookAI/xlm-roberta-base"
    assert loading.resolve(checkpoints["bert"]) == checkpoints["bert"]


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "a/b/c"])
def test_a_path_without_folder_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="there is no such model folder"):
        loading.resolve(name)


@pytest.mark.parametrize(
    ("name", "family"), [("xlm-r", "encoder"), ("bert", "encoder"), ("llama", "decoder"), ("t5", "encoder-decoder")]
)
def test_the_family_follows_the_architecture(checkpoints: dict[str, str], name: str, family: str) -> None:
    assert loading.family(loading.load_config(checkpoints[name])) == family


def test_weights_are_float32_on_cpu_whatever_the_checkpoint_holds(checkpoints: dict[str, str], tmp_path: Path) -> None:
    folder = copied(checkpoints["llama"], tmp_path)
    tensors = {name: tensor.to(torch.float16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    loaded = loading.load(str(folder), "causal-lm")
    expected = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {expected}


def test_loading_leaves_the_generator_alone(checkpoints: dict[str, str]) -> None:
    before = torch.get_rng_state()
    first = loading.load(checkpoints["bert"], "sequence-classification", ("a", "b"))
    second = loading.load(checkpoints["bert"], "sequence-classification", ("a", "b"))
    assert torch.equal(before, torch.get_rng_state())
    assert first.new_modules == ("bert.pooler", "classifier")  # masked-LM checkpoints have no pooler either
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    assert first.model.config.id2label == {0: "a", 1: "b"}


def test_a_checkpoint_without_its_head_is_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    folder = copied(checkpoints["xlm-r"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head")}
    save_file(body, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights that a masked-lm model needs"):
        loading.load(str(folder), "masked-lm")


def test_a_damaged_checkpoint_is_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    folder = copied(checkpoints["xlm-r"], tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        loading.load(str(folder), "masked-lm")


def test_cut_weights_are_named(checkpoints: dict[str, str], tmp_path: Path) -> None:
    folder = copied(checkpoints["xlm-r"], tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for kept in (len(whole) - 100, 4, 0):
        weights.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=r"weights are damaged[\s\S]*model\.safetensors"):
            loading.load(str(folder), "masked-lm")
    weights.unlink()
    with pytest.raises(ModelError):
        loading.load(str(folder), "masked-lm")
    torch.save(load_file(Path(checkpoints["xlm-r"]) / "model.safetensors"), folder / "pytorch_model.bin")
    pickled = (folder / "pytorch_model.bin").read_bytes()
    for kept in (len(pickled) - 100, 4, 0):
        (folder / "pytorch_model.bin").write_bytes(pickled[:kept])
        with pytest.raises(ModelError):
            loading.load(str(folder), "masked-lm")


def test_the_hash_is_of_weights_and_config(checkpoints: dict[str, str], tmp_path: Path) -> None:
    folder = copied(checkpoints["xlm-r"], tmp_path)
    same = loading.base_sha256(str(folder))
    assert same == loading.base_sha256(checkpoints["xlm-r"]) != loading.base_sha256(checkpoints["bert"])
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert loading.base_sha256(str(folder)) != same


@pytest.mark.parametrize(("name", "works"), [("llama", True), ("xlm-r", False)])
def test_no_padding_piece_is_invented(checkpoints: dict[str, str], tmp_path: Path, name: str, works: bool) -> None:
    folder = copied(checkpoints[name], tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    if works:
        assert loading.tokenizer(str(folder)).pad_token == "</s>"
    else:
        with pytest.raises(ModelError, match="the tokenizer has no padding token"):
            loading.tokenizer(str(folder))


@pytest.mark.parametrize("name", ["xlm-r", "bert", "llama", "t5"])
def test_the_longest_input_counts_positions_right(checkpoints: dict[str, str], name: str) -> None:
    kinds = {"xlm-r": "masked-lm", "bert": "masked-lm", "llama": "causal-lm", "t5": "sequence-to-sequence"}
    loaded = loading.load(checkpoints[name], kinds[name])
    assert loading.longest_input(loaded.model, loaded.tokenizer) == 96  # XLM-R: 98 positions, two of them the padding's
    assert loading.frame(loaded.tokenizer) == ([0], [2])


def changed_tokenizer(folder: Path, change: str) -> None:
    tokenizer = loading.tokenizer(str(folder))
    if change == "words":
        tokenizer.add_tokens(["habari", "dunia"])
    else:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<x>", "<y>"]})
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("change", ["words", "special"])
@pytest.mark.parametrize("name", ["xlm-r", "bert", "llama", "t5"])
def test_a_tokenizer_beyond_the_embeddings_is_refused(
    checkpoints: dict[str, str], tmp_path: Path, name: str, change: str
) -> None:
    kinds = {"llama": "causal-lm", "t5": "sequence-to-sequence"}
    folder = copied(checkpoints[name], tmp_path)
    size = len(loading.tokenizer(str(folder)))
    changed_tokenizer(folder, change)
    with pytest.raises(
        ModelError, match=rf"more entries than the model has embeddings[\s\S]*{size + 2} entries, {size} e"
    ):
        loading.load(str(folder), kinds.get(name, "masked-lm"))


def test_a_token_for_images_may_lie_beyond_the_embeddings(checkpoints: dict[str, str], tmp_path: Path) -> None:
    folder = copied(checkpoints["llama"], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder, extra_special_tokens={"image_token": "<image_soft_token>"})
    tokenizer.save_pretrained(folder)
    assert tokenizer.get_vocab()["<image_soft_token>"] == len(tokenizer) - 1
    assert len(loading.load(str(folder), "causal-lm").tokenizer) == len(tokenizer)


@pytest.mark.parametrize("name", ["xlm-r", "bert", "t5", "llama"])
def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoints: dict[str, str], tmp_path: Path, name: str) -> None:
    folder = copied(checkpoints[name], tmp_path)
    for path in folder.iterdir():
        if "token" in path.name:
            path.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer[\s\S]*entries|the tokenizer cannot be loaded"):
        loading.tokenizer(str(folder))
