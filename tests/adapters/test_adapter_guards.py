"""An adapter acts on its model as PEFT's does, or is refused by name before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import PreTrainedModel

from adamergex.adapters import guards, loaded_adapter, peft_backed
from adamergex.errors import ModelError
from adamergex.files.lineage import Lineage
from adamergex.jobs.settings import Structure

PREFIX = Structure(kind="prefix", virtual_tokens=3)
SIZE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}
BART = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
}  # fmt: skip
LLAMA = SIZE | {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("OPTForCausalLM", SIZE | {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32}),
    "falcon": ("FalconForCausalLM", SIZE),
    "falcon-groups": ("FalconForCausalLM", SIZE | {"new_decoder_architecture": True, "num_kv_heads": 1}),
    "falcon-alibi": ("FalconForCausalLM", SIZE | {"alibi": True, "multi_query": False}),
    "bloom": ("BloomForCausalLM", {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "mpt": ("MptForCausalLM", {"vocab_size": 40, "d_model": 16, "n_layers": 2, "n_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt-neo": ("GPTNeoForCausalLM", {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
                "attention_types": [[["global", "local"], 1]], "window_size": 4, "max_position_embeddings": 64}),
    "gemma3": ("Gemma3ForCausalLM", LLAMA),
    "m2m100": ("M2M100ForConditionalGeneration", BART),
    "marian": ("MarianMTModel", BART | {"decoder_start_token_id": 1, "pad_token_id": 1}),
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaForCausalLM", {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
    "shared-keys": ("Gemma3nForCausalLM", LLAMA | {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "laurel_rank": 4,
                    "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 40}),
    "two-widths": ("Gemma4ForCausalLM", LLAMA),
    "linear-attention": ("Qwen3_5ForCausalLM", LLAMA | {"num_hidden_layers": 4}),
}  # fmt: skip


def built(cls: str, settings: dict[str, Any]) -> PreTrainedModel:
    made = getattr(transformers, cls)
    torch.manual_seed(0)
    return made(made.config_class(**settings)).eval()


def given(model: torch.nn.Module, config: Any) -> torch.Tensor:
    batch = {"input_ids": torch.tensor([[5, 9, 7, 30], [4, 8, 12, 3]])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"].flip(1)
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT)
def test_a_prefix_gives_pefts_logits(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    model = built(*case)
    bare = given(model, model.config)
    wrapped = peft_backed.attach(model, PREFIX, task_head=False, base_sha256="x")
    ours = given(wrapped, model.config)
    peft_backed.save(wrapped, tmp_path / "a", Lineage(base={"name": "b", "sha256": "0"}))
    theirs = PeftModel.from_pretrained(built(*case), tmp_path / "a")
    torch.testing.assert_close(ours, given(theirs, model.config), rtol=0, atol=1e-6)
    assert (ours - bare).abs().max() > 1e-3
    assert torch.equal(given(peft_backed.detach(wrapped), model.config), bare)
    back = peft_backed.load(built(*case), tmp_path / "a")
    assert torch.equal(given(back, model.config), ours)
    # It can be trained: every tensor has a gradient.
    again = peft_backed.attach(built(*case), PREFIX, task_head=False, base_sha256="x")
    ids = {"input_ids": torch.tensor([[5, 9, 7]])}
    if model.config.is_encoder_decoder:
        ids["decoder_input_ids"] = ids["input_ids"]
    again(**ids).logits.square().sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in again.parameters() if one.requires_grad)


@pytest.mark.parametrize("name", ["opt", "falcon-groups", "gemma3", "m2m100"])
def test_rounding_of_a_bfloat16_base_is_no_reason(name: str) -> None:
    model = built(*RIGHT[name]).to(torch.bfloat16)
    wrapped = peft_backed.attach(model, PREFIX, task_head=False, base_sha256="x")
    assert given(wrapped, model.config).isfinite().all()


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_prefix_that_cannot_be_right_is_refused(case: tuple[str, dict[str, Any]]) -> None:
    model = built(*case)
    before = given(model, model.config)
    with pytest.raises(ModelError, match="takes no prefix"):
        loaded_adapter.attach(model, PREFIX, task_head=False, base_sha256="x")
    assert torch.equal(given(model, model.config), before)


def test_a_prefix_that_peft_made_for_opt_is_not_ignored(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    get_peft_model(built(*RIGHT["opt"]), config).save_pretrained(str(tmp_path))
    ours, theirs = peft_backed.load(built(*RIGHT["opt"]), tmp_path), PeftModel.from_pretrained(
        built(*RIGHT["opt"]), str(tmp_path)
    )  # fmt: skip
    assert torch.equal(given(ours, theirs.config), given(theirs, theirs.config))


def test_lora_on_transposed_linear_modules_is_pefts(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, init_lora_weights=False)
    made = get_peft_model(built(*RIGHT["gpt2"]), config)
    made.save_pretrained(str(tmp_path))
    ours = peft_backed.load(built(*RIGHT["gpt2"]), tmp_path)
    assert torch.equal(given(ours, made.config), given(made, made.config))


class Idle(transformers.LlamaForCausalLM):
    """Has a module that no forward pass goes through, as cross-attention to images has."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.cross_proj = torch.nn.Linear(16, 8)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_an_adapter_that_changes_nothing_is_refused(kind: str) -> None:
    model = Idle(transformers.LlamaConfig(**LLAMA)).eval()
    names = [name for name, _ in model.named_modules()]
    structure = Structure(kind=kind, modules=("cross_proj",))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=f"this {kind} adapter does not change"):
        loaded_adapter.attach(model, structure, task_head=False, base_sha256="x")
    assert [name for name, _ in model.named_modules()] == names
    loaded_adapter.attach(model, Structure(kind=kind), task_head=False, base_sha256="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix", "bottleneck"])
def test_the_check_leaves_everything_as_it_was(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = Structure(kind=kind)  # type: ignore[arg-type]
    starts = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(guards, "_without_weights", lambda model: True)
        model = built("LlamaForCausalLM", LLAMA)
        model.model.layers[1].train()
        torch.manual_seed(7)
        placed = loaded_adapter.attach(model, structure, task_head=False, base_sha256="x")
        starts.append((placed.start_sha256(), torch.rand(1), [module.training for module in model.modules()]))
    assert starts[0] == starts[1]


def test_a_model_on_no_device_is_not_asked() -> None:
    with torch.device("meta"):
        model = built("LlamaForCausalLM", LLAMA)
    assert peft_backed.attach(model, PREFIX, task_head=False, base_sha256="x")
