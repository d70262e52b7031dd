"""Where adapters go: the language part of a multimodal model, and what (IA)³ scales, by what a module is."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from adamergex.adapters import loaded_adapter, peft_backed
from adamergex.adapters.bottleneck import places
from adamergex.adapters.bottleneck.language_part import language_part
from adamergex.adapters.sites import targets
from adamergex.backbones.logits import labelled_loss
from adamergex.errors import ConfigError, ModelError
from adamergex.jobs.settings import Structure
from adamergex.merging.layers import Swap, by_module, numbered

TEXT = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# As wide as the text model, and with its names: nothing but the structure tells them apart.
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
AUDIO = {"d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8}


def multimodal(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    t = transformers
    made: dict[str, Any] = {
        "gemma3": lambda: t.Gemma3ForConditionalGeneration(t.Gemma3Config(text_config=TEXT, vision_config=VISION)),
        "llava": lambda: t.LlavaForConditionalGeneration(
            t.LlavaConfig(
                text_config={**TEXT, "model_type": "llama"}, vision_config={**VISION, "model_type": "clip_vision_model"}
            )
        ),
        "paligemma": lambda: t.PaliGemmaForConditionalGeneration(
            t.PaliGemmaConfig(
                text_config={**TEXT, "model_type": "gemma"}, projection_dim=16,
                vision_config={**VISION, "model_type": "siglip_vision_model"},
            )
        ),
        "qwen2-audio": lambda: t.Qwen2AudioForConditionalGeneration(
            t.Qwen2AudioConfig(
                text_config={**TEXT, "model_type": "qwen2"},
                audio_config={**AUDIO, "model_type": "qwen2_audio_encoder"},
            )
        ),
    }  # fmt: skip
    return made[name]().eval()


MULTIMODAL = ("gemma3", "llava", "paligemma", "qwen2-audio")
STRUCTURES = {
    "lora": Structure(rank=2, dropout=0),
    "lora-all": Structure(rank=2, dropout=0, modules="all-linear"),
    "lora-named": Structure(rank=2, dropout=0, modules=("q_proj", "fc2", "down_proj")),
    "ia3": Structure(kind="ia3"),
    "bottleneck": Structure(kind="bottleneck", reduction=2),
    "prefix": Structure(kind="prefix", virtual_tokens=2),
    "full": Structure(kind="full"),
    "sparse": Structure(kind="sparse", entries=0.5),
}


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_language_part_alone_is_trained(name: str, structure: Structure) -> None:
    model = multimodal(name)
    if (name, structure.kind) == ("paligemma", "prefix"):  # its text sees what comes after it
        with pytest.raises(ModelError, match="takes no prefix"):
            loaded_adapter.attach(model, structure, task_head=False, base_sha256="x")
        return
    placed = loaded_adapter.attach(model, structure, task_head=False, base_sha256="x")
    placed.model.train()
    ids = torch.randint(3, 30, (2, 8), generator=torch.Generator().manual_seed(1))
    labelled_loss(placed.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids, shift=True).backward()
    trained = {key: one for key, one in placed.model.named_parameters() if one.requires_grad}
    assert trained and not [key for key in trained if re.search("vision|audio|projector", key)]
    assert not [key for key, one in trained.items() if one.grad is None]
    placed.detach()


@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_layers_are_those_of_the_language_model(name: str) -> None:
    model = multimodal(name)
    assert [layer.path.split(".")[-4:-1] for layer in places.find_places(model).layers] == [
        ["model", "language_model", "layers"]
    ] * 2
    assert language_part(model)[0] == "model.language_model"
    with pytest.raises(ModelError, match="matches no module"):
        targets(model, Structure(modules=r".*_tower\..*"))


def test_a_text_model_is_its_own_language_part() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    assert language_part(model) == ("", ())
    both = transformers.BartConfig(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1)
    assert language_part(transformers.BartForConditionalGeneration(both)) == ("", ())


@pytest.mark.parametrize(
    "tower", ["vision_tower.vision_model.encoder", "visual.blocks", "audio_tower", "model.image_encoder", "vqmodel"]
)
def test_layers_of_a_tower_are_not_swapped(tower: str) -> None:
    language = [f"model.language_model.layers.{number}.self_attn.q_proj" for number in range(3)]
    seen = [f"model.{tower}.layers.{number}.self_attn.q_proj" for number in range(5)]
    assert numbered([*seen, *language]) == (dict(zip(language, range(3), strict=True)), 3)
    weights = by_module(Swap(1, 1), [*seen, *language])
    assert [weights[module] for module in language] == [1, 0, 1] and {weights[module] for module in seen} == {0}
    assert by_module((0.1, 0.2, 0.3), [*seen, *language])[language[2]] == 0.3
    with pytest.raises(ConfigError, match="number of weights differs from the number of layers"):
        by_module((0.1,) * 8, [*seen, *language])
    assert set(by_module(0.7, [*seen, *language]).values()) == {0.7}


ENCODER = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "phi": ("PhiForCausalLM", ENCODER | {"intermediate_size": 24}, "fc2", "mlp.fc2"),
    "phi-attention": ("PhiForCausalLM", ENCODER | {"intermediate_size": 24}, "dense", ""),
    "opt": (
        "OPTForCausalLM", ENCODER | {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32}, "fc2",
        "fc2",
    ),
    "bloom": ("BloomForCausalLM", {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2},
              "dense_4h_to_h", "mlp.dense_4h_to_h"),
    "falcon": ("FalconForCausalLM", ENCODER, "dense_4h_to_h", "mlp.dense_4h_to_h"),
    "neox": ("GPTNeoXForCausalLM", ENCODER | {"intermediate_size": 24}, "dense_4h_to_h", "mlp.dense_4h_to_h"),
    "gptj": ("GPTJForCausalLM", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
             "fc_out", "mlp.fc_out"),
    "mpt": ("MptForCausalLM", {"vocab_size": 40, "d_model": 16, "n_layers": 2, "n_heads": 2}, "down_proj",
            "ffn.down_proj"),
    "phi3": ("Phi3ForCausalLM", TEXT, "down_proj", "mlp.down_proj"),
    "bert": ("BertForMaskedLM", ENCODER | {"intermediate_size": 24}, "output.dense", "output.dense"),
    "albert": ("AlbertForMaskedLM", ENCODER | {"intermediate_size": 24, "embedding_size": 8}, "ffn_output",
               "ffn_output"),
    "distilbert": ("DistilBertForMaskedLM", {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2,
                                             "hidden_dim": 24}, "lin2", "ffn.lin2"),
    "modernbert": ("ModernBertForMaskedLM", ENCODER | {"intermediate_size": 24, "pad_token_id": 0}, "mlp.Wo",
                   "mlp.Wo"),
    "m2m100": ("M2M100ForConditionalGeneration", {
        "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}, "fc2", "fc2"),
    "up": ("PhiForCausalLM", ENCODER | {"intermediate_size": 24}, "fc1", ""),
}  # fmt: skip


def built(cls: str, settings: dict[str, Any]) -> PreTrainedModel:
    made = getattr(transformers, cls)
    torch.manual_seed(0)
    return made(made.config_class(**settings)).eval()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ia3_scales_what_a_down_projection_reads(case: tuple[str, dict[str, Any], str, str]) -> None:
    cls, settings, ending, down = case
    model = built(cls, settings)
    wrapped = peft_backed.attach(model, Structure(kind="ia3", modules=(ending,)), task_head=False, base_sha256="x")
    for name, vector in peft_backed.parameters(wrapped).items():
        module = model.get_submodule(name.removeprefix("base_model.model.").rpartition(".")[0])
        reads = bool(down) and bool(re.search(rf"{re.escape(down)}\.ia3_l$", name)) and "attention" not in name
        assert tuple(vector.shape) == ((1, module.in_features) if reads else (module.out_features, 1)), name


def test_ia3_on_a_square_feed_forward_is_refused() -> None:
    model = built("PhiForCausalLM", ENCODER | {"intermediate_size": 16})
    with pytest.raises(ModelError, match="whether this is the feed-forward's down-projection"):
        targets(model, Structure(kind="ia3", modules=("fc2",)))
    assert targets(model, Structure(kind="lora", modules=("fc2",)))
    known = built("BertForMaskedLM", ENCODER | {"intermediate_size": 16})  # a family whose names are known
    found = targets(known, Structure(kind="ia3", modules=("intermediate.dense", "output.dense")))
    assert re.fullmatch(found.feedforward, "bert.encoder.layer.0.output.dense")
    assert not re.fullmatch(found.feedforward, "bert.encoder.layer.0.intermediate.dense")
    assert not re.fullmatch(found.feedforward, "bert.encoder.layer.0.attention.output.dense")


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_transposed_linear_modules_are_refused(kind: str) -> None:
    model = built("GPT2LMHeadModel", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2})
    for modules in (("c_proj",), ("c_attn",), "all-linear", "paper"):
        with pytest.raises(ModelError):
            targets(model, Structure(kind=kind, modules=modules))  # type: ignore[arg-type]
    assert not any(isinstance(module, nn.Linear) for module in model.transformer.modules())


def test_a_full_fine_tuning_of_a_multimodal_model_counts_the_language_part() -> None:
    model = multimodal("llava")
    tuned = loaded_adapter.attach(model, Structure(kind="full"), task_head=False, base_sha256="x")
    expected = sum(one.numel() for name, one in model.named_parameters() if not re.search("vision|projector", name))
    assert tuned.moving == expected
    tuned.detach()
