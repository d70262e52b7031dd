"""The two shipped architectures, and how a sentence's vector and its token predictions are read from each."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM

# What may stand at a prompt's end, where the causal model's sentence vector is read.
CUES = ("", "</s>", "Topic:", "Answer:", "Category:", "Label:", "The topic is", "This is about")
SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def build(name: str, tokenizer_file: Path) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """A freshly initialised backbone and its tokenizer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file),
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=256,
    )
    size = {"vocab_size": len(tokenizer), "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
    if name == "nano":
        config = XLMRobertaConfig(
            **size,
            **SPECIAL,
            intermediate_size=768,
            max_position_embeddings=258,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            dtype="float32",
        )
        return XLMRobertaForMaskedLM(config), tokenizer
    config = LlamaConfig(
        **size,
        **SPECIAL,
        num_key_value_heads=2,
        intermediate_size=528,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        dtype="float32",
    )
    return LlamaForCausalLM(config), tokenizer


def predict_tokens(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [n, vocabulary] at the chosen positions only."""
    return model.lm_head(hidden)


def pooled(hidden: torch.Tensor, attention: torch.Tensor, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The vector where a classifier reads (first token; last token when causal), and the mean over the tokens."""
    mean = (hidden * attention[..., None]).sum(1) / attention.sum(1, keepdim=True)
    if causal:
        return hidden[torch.arange(len(hidden)), attention.sum(1) - 1], mean
    return hidden[:, 0], mean
