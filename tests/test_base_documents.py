"""The documents of a base's folder, as strangers may write them: one error each, nothing written, nothing run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamergex.backbones import loading
from adamergex.backbones.base_documents import LAYERS
from adamergex.backbones.base_files import base_sha256
from adamergex.backbones.trimming import trim
from adamergex.cli.main import main
from adamergex.errors import ModelError


@pytest.fixture
def copy(tiny_encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_encoder, tmp_path / "copy"))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(edit(document)), encoding="utf-8")


def put(*names: Any, value: Any) -> Callable[[Any], Any]:
    def edit(document: Any) -> Any:
        part = document
        for name in names[:-1]:
            part = part[name]
        part[names[-1]] = value
        return document

    return edit


CONFIGS = {
    "a number as text": {"vocab_size": "82"},
    "a list": {"vocab_size": [82]},
    "no vocabulary": {"vocab_size": None},
    "a truth value as id": {"pad_token_id": True},
    "padding beyond": {"pad_token_id": 9999},
    "a model type that is a list": {"model_type": []},
    "no heads": {"num_attention_heads": 0},
    "an unknown dtype": {"dtype": "float99"},
    "labels that are a number": {"id2label": 5},
    "a quantization that is a number": {"quantization_config": 5},
    "another architecture": {"model_type": "t5"},
}


@pytest.mark.parametrize("wrong", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_no_model_can_be_made_of_is_one_error(
    copy: Path, small_data: Path, wrong: dict[str, Any]
) -> None:
    change(copy / "config.json", lambda config: config | wrong)
    with pytest.raises(ModelError):
        loading.load(str(copy), "masked-lm")
    with pytest.raises(ModelError):
        trim(str(copy), [small_data / "en.train.tsv"], copy.parent / "out")
    assert [path.name for path in copy.parent.iterdir() if path.name[0] != "."] == ["copy"]


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"a": NaN}', '{"model_type": "bert", "model_type": "xlm-roberta"}']
)
def test_a_config_that_is_no_strict_json_is_one_error(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config is not|config is not valid JSON"):
        loading.load_config(str(copy))


def test_a_config_of_gigabytes_is_not_read(copy: Path) -> None:
    with (copy / "config.json").open("ab") as file:
        file.truncate(2 << 30)
    with pytest.raises(ModelError, match="too large"):
        loading.load_config(str(copy))


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["someone/kernel", "someone/kernel@v1:flash", {"": "someone/kernel"}, 5])
def test_a_config_cannot_name_a_repository_whose_code_would_run(copy: Path, name: str, value: object) -> None:
    for place in ({name: value}, {"text_config": {name: value}}):
        change(copy / "config.json", lambda config, place=place: config | place)
        with pytest.raises(ModelError, match="names code to run"):
            loading.load(str(copy), "masked-lm")


def test_a_config_may_name_an_implementation_of_transformers(copy: Path) -> None:
    change(copy / "config.json", put("attn_implementation", value="eager"))
    assert loading.load(str(copy), "masked-lm").model.config._attn_implementation == "eager"


def test_more_layers_than_any_model_has_are_refused_at_once(copy: Path) -> None:
    change(copy / "config.json", put("num_hidden_layers", value=LAYERS + 1))
    with pytest.raises(ModelError, match="more layers than any model has"):
        loading.load_config(str(copy))


TOKENIZERS: dict[str, Callable[[Any], Any]] = {
    "a model that is a list": put("model", value=[1]),
    "no vocabulary": put("model", value={"type": "Unigram"}),
    "an empty vocabulary": put("model", "vocab", value=[]),
    "tokens without scores": put("model", "vocab", value=[1, 2]),
    "an unknown piece beyond": put("model", "unk_id", value=10**6),
    "added tokens that are a number": put("added_tokens", value=5),
    "an added token without id": put("added_tokens", 0, value={"content": "<s>"}),
    "an unknown normaliser": put("normalizer", value={"type": "Nope"}),
    "a broken expression": put("normalizer", value={"type": "Replace", "pattern": {"Regex": "("}, "content": "b"}),
    "a post-processor that is a text": put("post_processor", value="x"),
}


@pytest.mark.parametrize("edit", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_damaged_tokenizer_is_one_error(copy: Path, small_data: Path, edit: Callable[[Any], Any]) -> None:
    change(copy / "tokenizer.json", edit)
    with pytest.raises(ModelError):
        loading.tokenizer(str(copy))
    command = ["backbones", "trim", "--base", str(copy), "--text", str(small_data / "en.train.tsv")]
    assert main([*command, "--output", str(copy.parent / "out")]) == 2


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"a": NaN}', b"\xff\xfe\x00", b"{}"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_file_that_is_none_is_one_error(copy: Path, name: str, content: bytes) -> None:
    if name == "tokenizer_config.json" and content == b"{}":
        return  # no settings are settings
    (copy / name).write_bytes(content)
    with pytest.raises(ModelError):
        loading.tokenizer(str(copy))


def test_a_tokenizer_that_puts_in_tokens_it_does_not_have_is_refused(copy: Path, small_data: Path) -> None:
    change(copy / "tokenizer.json", put("post_processor", "special_tokens", "<s>", "ids", value=[9999]))
    with pytest.raises(ModelError, match="tokens that it does not have"):
        trim(str(copy), [small_data / "en.train.tsv"], copy.parent / "out")


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": ["a"]}',
    ],
)
def test_an_index_names_files_of_its_folder(copy: Path, index: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="index of the weights"):
        base_sha256(str(copy))


@pytest.mark.parametrize("value", ["x", "64", -5, 0, True, [64]])
def test_the_length_of_a_text_is_a_number(copy: Path, value: object) -> None:
    change(copy / "tokenizer_config.json", put("model_max_length", value=value))
    with pytest.raises(ModelError):
        loading.tokenizer(str(copy))


@pytest.mark.parametrize("value", [64, 1e30, None])
def test_a_length_may_be_large_or_left_open(copy: Path, value: object) -> None:
    change(copy / "tokenizer_config.json", put("model_max_length", value=value))
    assert loading.tokenizer(str(copy)).model_max_length >= 64
