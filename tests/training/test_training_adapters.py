"""Adapters on models: where they go, that they start alike under every head, and that their files are read strictly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    PreTrainedModel,
)

from adamergex.adapters import peft_backed, sites
from adamergex.backbones import loading
from adamergex.errors import AdapterFileError, ModelError
from adamergex.files.lineage import Lineage
from adamergex.jobs.settings import Structure

KINDS = {"xlm-r": "masked-lm", "bert": "masked-lm", "llama": "causal-lm", "t5": "sequence-to-sequence"}
LABELS = ("a", "b", "c")


def attached(checkpoint: str, kind: str, structure: Structure, seed: int = 0) -> PeftModel:
    loaded = loading.load(checkpoint, kind, LABELS if kind == "sequence-classification" else None)
    head = kind == "sequence-classification"
    return peft_backed.attach(
        loaded.model, structure, task_head=head, base_sha256=loaded.sha256, seed=seed, new_modules=loaded.new_modules
    )


def own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "lora" in name or "ia3" in name}


def small(name: str) -> PreTrainedModel:
    if name == "distilbert":
        return DistilBertForMaskedLM(DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24))
    if name == "electra":
        size = {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        return ElectraForMaskedLM(ElectraConfig(vocab_size=50, intermediate_size=24, **size))
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=50, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, **layers)
    )


@pytest.mark.parametrize(
    ("name", "lora", "down"),
    [
        ("xlm-r", 6, "output.dense"),
        ("bert", 6, "output.dense"),
        ("llama", 7, "mlp.down_proj"),
        ("electra", 6, "output.dense"),
        ("distilbert", 6, "ffn.lin2"),
    ],
)
def test_the_papers_modules_are_found(checkpoints: dict[str, str], name: str, lora: int, down: str) -> None:
    model = loading.load(checkpoints[name], KINDS[name]).model if name in KINDS else small(name)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for kind, count in (("lora", lora), ("ia3", 3)):
        targets = sites.targets(model, Structure(kind=kind))
        found = [name for name in linear if re.fullmatch(targets.modules, name)]
        assert len(found) == 2 * count  # two layers
        assert not any("head" in name or "cls" in name or "projector" in name for name in found)
    scaled_inputs = [name for name in found if re.fullmatch(targets.feedforward, name)]
    assert [name.endswith(f".{down}") and "attention" not in name for name in scaled_inputs] == [True, True]


@pytest.mark.parametrize(("name", "lora", "ia3"), [("t5", 2 * (4 + 3) + 2 * (8 + 3), 2 * 3 + 2 * 5), ("bart", 16, 8)])
def test_encoder_decoders_have_cross_attention_too(checkpoints: dict[str, str], name: str, lora: int, ia3: int) -> None:
    model = loading.load(checkpoints[name], KINDS[name]).model if name in KINDS else small(name)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for kind, count in (("lora", lora), ("ia3", ia3)):
        pattern = sites.targets(model, Structure(kind=kind)).modules
        assert sum(bool(re.fullmatch(pattern, name)) for name in linear) == count


def test_ia3_scales_the_input_of_the_down_projection_only(checkpoints: dict[str, str]) -> None:
    shapes = {
        ".".join(name.split(".")[-4:-1]): tuple(tensor.shape)
        for name, tensor in peft_backed.tensors(
            attached(checkpoints["xlm-r"], "masked-lm", Structure(kind="ia3"))
        ).items()
    }
    assert shapes["attention.self.key"] == (32, 1)
    assert shapes["1.output.dense"] == (1, 48)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize(("name", "other"), [("xlm-r", True), ("bert", True), ("llama", True)])
def test_every_head_starts_from_the_same_tensors(
    checkpoints: dict[str, str], name: str, other: bool, kind: str
) -> None:
    torch.manual_seed(3)
    plain = attached(checkpoints[name], KINDS[name], Structure(kind=kind, rank=4), seed=1)
    torch.manual_seed(4)
    labelled = attached(checkpoints[name], "sequence-classification", Structure(kind=kind, rank=4), seed=2)
    first, second = own(peft_backed.tensors(plain)), own(peft_backed.tensors(labelled))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert peft_backed.start_sha256(plain) == peft_backed.start_sha256(labelled)
    assert all(bool((tensor == 0).all()) for key, tensor in first.items() if "lora_B" in key)


def test_another_rank_layer_or_base_starts_elsewhere(checkpoints: dict[str, str]) -> None:
    four = own(peft_backed.tensors(attached(checkpoints["xlm-r"], "masked-lm", Structure(rank=4))))
    name = next(key for key in four if "layer.0.attention.self.query.lora_A" in key)
    eight = own(peft_backed.tensors(attached(checkpoints["xlm-r"], "masked-lm", Structure(rank=8))))
    loaded = loading.load(checkpoints["xlm-r"], "masked-lm")
    elsewhere = peft_backed.attach(loaded.model, Structure(rank=4), task_head=False, base_sha256="0")
    assert not torch.equal(four[name], eight[name][:4])
    assert not torch.equal(four[name], four[name.replace("query", "key")])
    assert not torch.equal(four[name], own(peft_backed.tensors(elsewhere))[name])
    assert float(four[name].abs().max()) <= 1 / 32**0.5 < 2 * float(four[name].abs().max())


def test_the_head_follows_the_seed_alone(checkpoints: dict[str, str]) -> None:
    def head(seed: int, state: int) -> torch.Tensor:
        torch.manual_seed(state)
        tensors = peft_backed.tensors(attached(checkpoints["bert"], "sequence-classification", Structure(), seed))
        assert any("bert.pooler" in name for name in tensors)  # new, so it must be trained and saved
        return tensors["base_model.model.classifier.weight"]

    assert torch.equal(head(1, 10), head(1, 20))
    assert not torch.equal(head(1, 10), head(2, 10))


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_detaching_gives_the_model_back(checkpoints: dict[str, str], kind: str) -> None:
    loaded = loading.load(checkpoints["bert"], "sequence-classification", LABELS)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    wrapped = peft_backed.attach(
        loaded.model, Structure(kind=kind), task_head=True, base_sha256="0", seed=5, new_modules=loaded.new_modules
    )
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert peft_backed.detach(wrapped) is loaded.model
    after = loaded.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.fixture
def saved(checkpoints: dict[str, str], tmp_path: Path) -> Path:
    wrapped = attached(checkpoints["xlm-r"], "sequence-classification", Structure(rank=4), seed=3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    folder = tmp_path / "adapter"
    peft_backed.save(wrapped, folder, Lineage(base={"name": checkpoints["xlm-r"], "sha256": "0"}))
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([[0, 7, 9, 11, 2]])).logits


def test_a_saved_adapter_is_read_back_here_and_by_peft(checkpoints: dict[str, str], saved: Path) -> None:
    loaded = loading.load(checkpoints["xlm-r"], "sequence-classification", LABELS)
    mine = logits(peft_backed.load(loaded.model, saved))
    alone = AutoModelForSequenceClassification.from_pretrained(
        checkpoints["xlm-r"], num_labels=len(LABELS), dtype=torch.float32
    )
    assert torch.equal(mine, logits(PeftModel.from_pretrained(alone, saved)))


def test_equal_adapters_have_equal_bytes(checkpoints: dict[str, str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        wrapped = attached(checkpoints["llama"], "causal-lm", Structure(kind="ia3"))
        peft_backed.save(wrapped, tmp_path / name, Lineage(base={"name": "b", "sha256": "0"}))
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem(), "missing: base_model"),
        (
            lambda tensors: tensors.update({"base_model.model.stranger": torch.zeros(1)}),
            "unexpected: base_model.model.stranger",
        ),
        (
            lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(1, 1)}),
            "does not have the model's shape or type",
        ),
    ],
)
def test_wrong_tensors_are_refused(checkpoints: dict[str, str], saved: Path, change, message: str) -> None:
    tensors = load_file(saved / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, saved / "adapter_model.safetensors")
    loaded = loading.load(checkpoints["xlm-r"], "sequence-classification", LABELS)
    with pytest.raises(AdapterFileError, match=message):
        peft_backed.load(loaded.model, saved)
    assert not any("lora" in name for name, _ in loaded.model.named_modules())  # the backbone can be used again


def test_an_adapter_for_another_head_is_refused(checkpoints: dict[str, str], saved: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(checkpoints["xlm-r"])
    with pytest.raises(AdapterFileError, match="unexpected: base_model.model.classifier"):
        peft_backed.load(model, saved)


def test_damaged_files_are_refused(checkpoints: dict[str, str], saved: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(checkpoints["xlm-r"])
    weights = saved / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(AdapterFileError, match="truncated"):
        peft_backed.load(model, saved)
    (saved / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterFileError, match="config is not valid JSON"):
        peft_backed.load(model, saved)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (("qeury",), r"matches no module[\s\S]*self.query"),
        (".*(", "not a regular expression"),
        (r".*attention\.self", "cannot hold an adapter"),
    ],
)
def test_modules_that_do_not_fit_are_refused(checkpoints: dict[str, str], modules: str, message: str) -> None:
    model = loading.load(checkpoints["xlm-r"], "masked-lm").model
    with pytest.raises(ModelError, match=message):
        sites.targets(model, Structure(modules=modules))


def test_modules_can_be_named(checkpoints: dict[str, str]) -> None:
    wrapped = attached(checkpoints["xlm-r"], "masked-lm", Structure(modules=("query", "layer.1.output.dense")))
    names = {name.split(".lora_")[0].split("layer.")[1] for name in peft_backed.tensors(wrapped)}
    assert names == {"0.attention.self.query", "1.attention.self.query", "1.output.dense"}


def test_an_unknown_architecture_lists_its_modules() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = torch.nn.Linear(2, 2)

    with pytest.raises(ModelError, match=r"not known[\s\S]*mixer[\s\S]*structure.modules"):
        sites.targets(Odd(), Structure())
