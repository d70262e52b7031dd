"""Tiny models of every architecture, with random weights, and adapters with random tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from adamergex.adapters.bottleneck.modules import BottleneckAdapter, BottleneckConfig
from adamergex.adapters.bottleneck.places import find_places

VOCABULARY = 40
_ENCODER = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
_DECODER = _ENCODER | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_T5 = {"d_model": 16, "d_kv": 5, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
_T5 |= {"decoder_start_token_id": 0, "tie_word_embeddings": True}
_BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2}
_BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "xlm-roberta": _ENCODER,
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
    "electra": _ENCODER | {"embedding_size": 12},
    "llama": _DECODER | {"tie_word_embeddings": True},
    "mistral": _DECODER | {"tie_word_embeddings": False},
    "qwen2": _DECODER | {"tie_word_embeddings": True},
    "qwen3": _DECODER | {"tie_word_embeddings": True},
    "gemma": _DECODER,
    "gemma2": _DECODER,
    "gemma3_text": _DECODER,
    "t5": _T5,
    "mt5": _T5 | {"feed_forward_proj": "gated-gelu"},
    "bart": _BART,
    "mbart": _BART,
}
SEQUENCE_TO_SEQUENCE = ("t5", "mt5", "bart", "mbart")
MASKED = ("bert", "xlm-roberta", "distilbert", "electra")


def tiny(kind: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A model without dropout whose weights are large enough for every part to matter."""
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **(CONFIGS[kind] | settings))
    classes = dict.fromkeys(SEQUENCE_TO_SEQUENCE, AutoModelForSeq2SeqLM) | dict.fromkeys(MASKED, AutoModelForMaskedLM)
    torch.manual_seed(seed)
    model = classes.get(kind, AutoModelForCausalLM).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
            elif "relative" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model.eval()


def inputs(kind: str, rows: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    batch = {"input_ids": torch.randint(3, VOCABULARY, (rows, length), generator=generator)}
    mask = torch.ones(rows, length, dtype=torch.int64)
    if kind in MASKED + SEQUENCE_TO_SEQUENCE:
        mask[-1, -2:] = 0
    batch["attention_mask"] = mask
    if kind in SEQUENCE_TO_SEQUENCE:
        batch["decoder_input_ids"] = torch.randint(3, VOCABULARY, (rows, 5), generator=generator)
    return batch


def adapter(model: PreTrainedModel, config: BottleneckConfig, seed: int) -> BottleneckAdapter:
    made = BottleneckAdapter(config, find_places(model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return made
