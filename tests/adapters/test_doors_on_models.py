"""Adapters from outside on a model: pickles, archives, expressions and numbers that would harm it are refused."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from adamergex import attach
from adamergex.adapters import peft_backed
from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.adapters.formats import adapterhub
from adamergex.adapters.formats.conversion import convert
from adamergex.errors import AdamergexError, AdapterFileError

HANGING = "(.*.*.*.*.*.*.*.*.*.*.*.*)*(a|a|aa)+!"
TENSORS, PICKLE, CONFIG = "adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()


def saved(path: Path, **config: Any) -> tuple[Path, torch.Tensor]:
    """A LoRA adapter as PEFT saves it, and the logits of the model with it."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    wrapped = get_peft_model(llama(), LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    wrapped.save_pretrained(path)
    return path, logits(wrapped)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(8)[None]).logits
    return found


def edited(path: Path, **changes: Any) -> None:
    (path / CONFIG).write_text(json.dumps(json.loads((path / CONFIG).read_text()) | changes))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rank_pattern": {r"layers\.0\..*q_proj": 2, "v_proj": 6}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
        {"target_modules": r".*layers\.1\..*(q|up)_proj"},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"exclude_modules": r".*layers\.0\.self_attn\.q.*", "use_rslora": True},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_full_names_give_the_logits_of_peft(config: dict[str, Any], tmp_path: Path) -> None:
    path, wanted = saved(tmp_path / "a", **config)
    loaded = peft_backed.load(llama(), path)
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=0)
    torch.testing.assert_close(logits(attach(llama(), path)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_expressions_that_would_hang_peft_end(field: str, tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "a")
    edited(path, **{field: {HANGING: 4} if field.endswith("pattern") else HANGING})
    begun = time.process_time()
    for use in (lambda: peft_backed.load(llama(), path), lambda: attach(llama(), path)):
        try:
            use()
        except AdamergexError:
            continue
    assert time.process_time() - begun < 8


@pytest.mark.parametrize(
    "changes",
    [{"r": 8}, {"r": 10**8}, {"megatron_config": {"x": 1}, "megatron_core": "os"}, {"use_rslora": "false"}, {"r": 4.5}],
    ids=str,
)
def test_configs_that_are_not_the_tensors_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "a")
    edited(path, **changes)
    for use in (lambda: peft_backed.load(llama(), path), lambda: attach(llama(), path)):
        with pytest.raises(AdapterFileError):
            use()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_numbers_that_no_model_can_use_are_refused(value: float, tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "a")
    tensors = load_file(path / TENSORS)
    tensors[min(tensors)][0, 0] = value
    save_file(tensors, path / TENSORS)
    for use in (lambda: peft_backed.load(llama(), path), lambda: attach(llama(), path)):
        with pytest.raises(AdapterFileError, match="not finite|too large"):
            use()


@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "module."])
def test_pefts_pickle_becomes_safetensors(wrapper: str, tmp_path: Path) -> None:
    path, wanted = saved(tmp_path / "a")
    tensors = load_file(path / TENSORS)
    torch.save({wrapper + name: tensor for name, tensor in tensors.items()}, path / PICKLE)
    (path / TENSORS).unlink()
    done = convert(path, tmp_path / "out")
    assert (done.contents, done.tensors) == ("PEFT adapter", len(tensors))
    written = load_file(tmp_path / "out" / TENSORS)
    assert sorted(written) == sorted(tensors)
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    torch.testing.assert_close(logits(peft_backed.load(llama(), tmp_path / "out")), wanted, rtol=0, atol=0)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def bad_pickles() -> dict[str, object]:
    name = "base_model.model.q.lora_A.weight"
    return {
        "code": {name: _Payload()},
        "no tensors": {name: [1, 2]},
        "no dictionary": [torch.ones(2)],
        "repeated without end": {name: torch.ones(1).expand(1 << 20, 1 << 20)},
        "sparse": {name: torch.eye(3).to_sparse()},
        "not finite": {name: torch.tensor([float("nan")])},
        "empty": {name: torch.empty(0)},
        "two names of one": {name: torch.ones(2, 2), f"module.{name}": torch.ones(2, 2)},
        "a control character": {f"{name}\x1b": torch.ones(2, 2)},
    }


@pytest.mark.parametrize("how", sorted(bad_pickles()))
def test_pickles_of_anything_else_are_refused(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = saved(tmp_path / "a")
    (path / TENSORS).unlink()
    torch.save(bad_pickles()[how], path / PICKLE)
    with pytest.raises(AdapterFileError):
        convert(path, tmp_path / "out")
    assert "code ran" not in capsys.readouterr().out
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_archives_that_unpack_to_much_more_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, "{}")
        archive.writestr("pytorch_adapter.bin", b"\0" * (64 << 20))
    with pytest.raises(AdapterFileError, match="unpacks to more"):
        convert(path, tmp_path / "out")
    inner = io.BytesIO()
    torch.save({"a": torch.zeros(4 << 20)}, inner)
    packed = tmp_path / "b.bin"
    with zipfile.ZipFile(inner) as stored, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in stored.namelist():
            archive.writestr(member, stored.read(member))
    with pytest.raises(AdapterFileError, match="expands when unpacked"):
        adapterhub.read_pickle(packed)


def test_two_names_of_one_bottleneck_tensor_are_refused(tmp_path: Path) -> None:
    model = attach(llama(), BottleneckConfig(reduction=4.0), names=["x"])
    model.adapter_stack.save("x", tmp_path / "x")
    tensors = load_file(tmp_path / "x" / TENSORS)
    key = "layers.0.output.down.weight"
    save_file({**tensors, "m.layers.0.output_adapters.adapters.x.adapter_down.0.weight": tensors[key].clone()},
              tmp_path / "x" / TENSORS)  # fmt: skip
    with pytest.raises(AdapterFileError, match="two tensors"):
        adapterhub.read_adapter(tmp_path / "x")


@pytest.mark.parametrize(
    ("field", "value"),
    [("mh_adapter", "false"), ("output_adapter", 1), ("reduction_factor", "16"), ("reduction_factor", 0),
     ("reduction_factor", {"default": None}), ("scaling", True), ("leave_out", ["0"]), ("leave_out", 3),
     ("non_linearity", ["relu"]), ("dropout", "x")],
    ids=str,
)  # fmt: skip
def test_settings_of_bottlenecks_by_type(field: str, value: object, tmp_path: Path) -> None:
    attach(llama(), BottleneckConfig(reduction=4.0), names=["x"]).adapter_stack.save("x", tmp_path / "x")
    config = json.loads((tmp_path / "x" / CONFIG).read_text())
    config["config"][field] = value
    (tmp_path / "x" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(AdapterFileError, match=field):
        attach(llama(), tmp_path / "x")
