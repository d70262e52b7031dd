"""LoRA and (IA)³ directories of PEFT in a stack, next to bottleneck adapters."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import adapter, inputs, tiny
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from adamergex import attach
from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.errors import AdapterFileError, ConfigError, IncompatibleAdaptersError

GOLDENS = Path(__file__).parents[1] / "goldens" / "g3_peft"
CASES = ("xlmr_lora_qv", "xlmr_ia3", "llama_lora_qv", "llama_lora_all", "llama_ia3")
LANGUAGE = BottleneckConfig.pfeiffer(2, invertible=True)
ATTENTION = {
    "bert": ["query", "value"],
    "xlm-roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "llama": ["q_proj", "v_proj"],
    "t5": ["q", "v"],
    "bart": ["q_proj", "v_proj"],
}
DOWN = {
    "bert": ["query", r"layer.0.output.dense"],
    "xlm-roberta": ["query", r"layer.0.output.dense"],
    "distilbert": ["q_lin", "ffn.lin2"],
    "llama": ["v_proj", "down_proj"],
    "t5": ["v", "wo"],
    "bart": ["v_proj", "fc2"],
}


def base(case: str) -> PreTrainedModel:
    kind = case.split("_")[0]
    automatic = AutoModelForCausalLM if kind == "llama" else AutoModelForSequenceClassification
    return automatic.from_pretrained(GOLDENS / "bases" / kind).eval()


def digest(model: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
        if not name.startswith("adapter_stack.")
    }


def peft_directory(model: PreTrainedModel, kind: str, structure: str, directory: Path, **settings: Any) -> Path:
    """A directory that PEFT itself wrote, with random tensors; the model stays as it is."""
    if structure == "lora":
        config: Any = LoraConfig(r=3, lora_alpha=6, target_modules=ATTENTION[kind], **settings)
    else:
        config = IA3Config(target_modules=DOWN[kind], feedforward_modules=DOWN[kind][1:], **settings)
    wrapped = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(len(directory.name))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(drawn + 1 if "ia3" in name else drawn)
    wrapped.save_pretrained(directory)
    return directory


def merged(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """A float64 copy with W + (α/r)·B·A, or with W and its bias rescaled, in the weights."""
    made, tensors = copy.deepcopy(model).double(), load_file(directory / "adapter_model.safetensors")
    config = json.loads((directory / "adapter_config.json").read_text())
    with torch.no_grad():
        for name, tensor in tensors.items():
            path = name.removeprefix("base_model.model.").rpartition(".lora_A")[0]
            if path:
                update = tensors[name.replace("lora_A", "lora_B")].double() @ tensor.double()
                made.get_submodule(path).weight += update * config["lora_alpha"] / config["r"]
            elif name.endswith(".ia3_l"):
                module = made.get_submodule(name.removeprefix("base_model.model.").removesuffix(".ia3_l"))
                module.weight.mul_(tensor.double())
                if tensor.shape[1] == 1 and module.bias is not None:
                    module.bias.mul_(tensor.double().flatten())
            elif "lora_B" not in name:
                made.get_parameter(name.removeprefix("base_model.model.")).copy_(tensor.double())
    return made


@pytest.mark.parametrize("case", CASES)
def test_logits_are_pefts_and_the_base_comes_back(case: str) -> None:
    expected = load_file(GOLDENS / case / "expected.safetensors")
    batch = {key.removeprefix("in."): tensor for key, tensor in expected.items() if key.startswith("in.")}
    model = base(case)
    before, bare = digest(model), model(**batch).logits
    directories = [GOLDENS / case / name for name in ("task", "ref_tgt", "ref_src")]
    attach(model, *directories)
    assert model.adapter_stack.active == ("task", "ref_tgt", "ref_src")
    with torch.no_grad():
        for name in model.adapter_stack.names:
            with model.using(name):
                logits = model(**batch).logits
            if name == "task" or "llama" in case:  # the golden's references answer through the task's head
                torch.testing.assert_close(logits, expected[f"logits.{name}"], rtol=0, atol=1e-4)
        with model.using():
            assert torch.equal(model(**batch).logits, bare)
    assert digest(model) == before
    assert torch.equal(model.detach()(**batch).logits, bare)
    assert digest(model) == before and not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("structure", ["lora", "ia3"])
@pytest.mark.parametrize("kind", ATTENTION)
def test_a_stack_with_bottlenecks_equals_merged_weights(kind: str, structure: str, tmp_path: Path) -> None:
    model, batch = tiny(kind), inputs(kind)
    directory = peft_directory(model, kind, structure, tmp_path / "ner-en")
    language = adapter(model, LANGUAGE, 1)
    plain = attach(merged(model, directory), copy.deepcopy(language).double(), names=["sw"])
    before = digest(model)
    attach(model, language, directory, names=["sw", "ner-en"])
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits.double(), plain(**batch).logits, rtol=1e-4, atol=1e-4)
        alone = attach(tiny(kind), language, names=["sw"])(**batch).logits
        assert (model(**batch).logits - alone).abs().max() > 0.05
        model.set_stack("ner-en", "sw")  # the invertible part is the first bottleneck adapter's
        torch.testing.assert_close(model(**batch).logits.double(), plain(**batch).logits, rtol=1e-4, atol=1e-4)
        model.set_stack("sw")
        assert torch.equal(model(**batch).logits, alone)
    assert digest(model) == before


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_mixed_batches_with_peft_members(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    for structure in ("lora", "ia3"):
        peft_directory(model, kind, structure, tmp_path / structure)
    attach(model, adapter(model, LANGUAGE, 1), tmp_path / "lora", tmp_path / "ia3", names=["sw", "lora", "ia3"])
    rows = [("sw", "lora"), (), ("ia3",), ("lora", "ia3"), ("sw",), ("sw", "lora")]
    batch = inputs(kind, rows=len(rows))
    with torch.no_grad():
        with model.using(rows=rows):
            mixed = model(**batch).logits
        for row, stack in enumerate(rows):
            with model.using(*stack):
                alone = model(**{name: tensor[row : row + 1] for name, tensor in batch.items()}).logits
            torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def tagger(labels: int = 3, automatic: Any = AutoModelForTokenClassification) -> PreTrainedModel:
    config = tiny("bert").config
    config.num_labels = labels
    torch.manual_seed(labels)
    return automatic.from_config(config).eval()


@pytest.mark.parametrize("automatic", [AutoModelForTokenClassification, AutoModelForSequenceClassification])
def test_a_trained_head_answers_while_its_adapter_is_active(automatic: Any, tmp_path: Path) -> None:
    model, batch = tagger(automatic=automatic), inputs("bert", rows=3)
    heads = {"modules_to_save": ["classifier"]}
    ner = peft_directory(model, "bert", "lora", tmp_path / "ner", **heads)
    pos = peft_directory(model, "bert", "ia3", tmp_path / "postag", **heads)
    bare, weight = model(**batch).logits, model.classifier.weight.clone()
    attach(model, ner, pos)
    for name, directory in (("ner", ner), ("postag", pos)):
        peers = PeftModel.from_pretrained(tagger(automatic=automatic), directory).eval()
        with torch.no_grad(), model.using(name):
            torch.testing.assert_close(model(**batch).logits, peers(**batch).logits, rtol=1e-5, atol=1e-5)
    with torch.no_grad(), model.using(rows=[("ner",), ("postag",), ()]):
        mixed = model(**batch).logits
    for row, stack in enumerate([("ner",), ("postag",), ()]):
        with torch.no_grad(), model.using(*stack):
            torch.testing.assert_close(mixed[row], model(**batch).logits[row], rtol=1e-5, atol=1e-5)
    assert torch.equal(model.classifier.weight, weight)
    assert torch.equal(model.detach()(**batch).logits, bare)


def test_only_the_peft_member_learns_and_what_it_saves_peft_loads(tmp_path: Path) -> None:
    model, batch = tagger(), inputs("bert")
    start = tagger()
    ner = peft_directory(model, "bert", "lora", tmp_path / "ner", modules_to_save=["classifier"])
    attach(model, adapter(model, BottleneckConfig.pfeiffer(2), 1), ner, names=["sw", "ner"])
    model.adapter_stack.train_only("ner")
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.SGD([item for item in model.parameters() if item.requires_grad], lr=0.5)
    model.train()
    model(**batch).logits.square().mean().backward()
    optimizer.step()
    model.eval()
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("adapter_stack.adapters.ner.")}
    model.adapter_stack.save("ner", tmp_path / "saved")
    peers = PeftModel.from_pretrained(start, tmp_path / "saved").eval()
    with torch.no_grad(), model.using("ner"):
        torch.testing.assert_close(model(**batch).logits, peers(**batch).logits, rtol=1e-5, atol=1e-5)


def test_compiled_and_copied(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model, batch = tiny("llama", num_hidden_layers=1), inputs("llama")
    directory = peft_directory(model, "llama", "lora", tmp_path / "lora")
    attach(model, adapter(model, LANGUAGE, 1), directory, names=["sw", "lora"])
    compiled, copied = torch.compile(model, backend="eager"), copy.deepcopy(model)
    for stack in (("sw", "lora"), ("sw",)):
        model.set_stack(*stack)
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
    model.set_stack("sw", "lora")
    expected = model(**batch).logits
    with torch.no_grad():
        for parameter in model.adapter_stack.parameters():
            parameter.zero_()
    assert torch.equal(copied(**batch).logits, expected)


def test_peft_members_on_a_bfloat16_base(tmp_path: Path) -> None:
    model, batch = tiny("llama"), inputs("llama")
    directory = peft_directory(model, "llama", "lora", tmp_path / "lora")
    exact = attach(copy.deepcopy(model), directory)(**batch).logits
    half = attach(model.to(torch.bfloat16), directory)(**batch).logits
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.06 * float(exact.abs().max()))


def test_directories_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    model = tiny("bert")
    lora = peft_directory(model, "bert", "lora", tmp_path / "lora")
    with pytest.raises(AdapterFileError, match=r"query\n  found: no such module\n  expected: an nn.Linear of LlamaFor"):
        attach(tiny("llama"), lora)
    with pytest.raises(IncompatibleAdaptersError, match=r"found: lora_A.weight \(3, 16\).*\n  expected: .*\(3, 32\)"):
        attach(tiny("bert", hidden_size=32), lora)
    with pytest.raises(ConfigError, match="needs a unique name"):
        attach(model, lora, lora)
    tensors = load_file(lora / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, lora / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match="not finite"):
        attach(model, lora)
    five = peft_directory(tagger(5), "bert", "lora", tmp_path / "five", modules_to_save=["classifier"])
    with pytest.raises(IncompatibleAdaptersError, match=r"classifier\n  found: bias \(5,\)"):
        attach(tagger(3), five)
    assert not hasattr(model, "adapter_stack")


def test_another_structure_is_no_member(tmp_path: Path) -> None:
    model = tiny("llama")
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(copy.deepcopy(model), prefix).save_pretrained(tmp_path / "prefix")
    with pytest.raises(IncompatibleAdaptersError, match=r"cannot be a member of a stack(.|\n)*PREFIX_TUNING"):
        attach(model, tmp_path / "prefix")
    dora = peft_directory(model, "llama", "lora", tmp_path / "dora", use_dora=True)
    with pytest.raises(IncompatibleAdaptersError, match="DoRA cannot be merged or stacked"):
        attach(model, dora)
    assert not hasattr(model, "adapter_stack")
