"""Tiny checkpoints of decoders and encoder-decoders, each with the kind of tokenizer that its family has."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

TOPICS = {
    "food": ("The cook baked fresh bread with butter", "A soup of beans and onions boiled slowly"),
    "sports": ("The team won the match in the last minute", "A runner crossed the line before her rivals"),
    "travel": ("The train to the coast leaves at seven", "A ferry carried tourists to the quiet island"),
}
TAILS = ("", " today", " again", " and nobody was surprised", " as it did every year", " on a cold morning")
SENTENCES = [
    f"{text}{tail}{more}" for texts in TOPICS.values() for text in texts for tail in TAILS for more in TAILS[:2]
]
LABELS = [topic for topic, texts in TOPICS.items() for _ in texts for _ in TAILS for _ in TAILS[:2]]
SENTINELS = 12
FAMILIES = ("llama", "t5", "bart", "mbart")
# Weights large enough that every layer matters to the output.
_DEVIATION = 0.15
_SIZE = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_BART = {**_SIZE, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 96}


def save_family(name: str, folder: Path, *, longest: int = 96) -> str:
    """One checkpoint with its tokenizer, whose inputs have at most ``longest`` pieces, in ``folder``."""
    tokenizer = _tokenizer(name)
    tokenizer.model_max_length = longest
    torch.manual_seed(0)
    model = _model(name, len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _model(kind: str, pieces: int) -> PreTrainedModel:
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=pieces, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                num_key_value_heads=1, max_position_embeddings=96, initializer_range=_DEVIATION, bos_token_id=0,
                pad_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip
    if kind == "t5":  # the first T5: tied embeddings, no gate
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=pieces, d_model=32, d_kv=12, d_ff=48, num_layers=2, num_heads=2, pad_token_id=0,
                eos_token_id=1, decoder_start_token_id=0,
            )
        )  # fmt: skip
        # Tied embeddings repeat the last piece unless the layers have much to say.
        torch.nn.init.normal_(model.shared.weight, std=0.3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(4 if "DenseReluDense" in name or name.endswith((".o.weight", ".v.weight")) else 1)
        return model
    if kind == "bart":
        return BartForConditionalGeneration(
            BartConfig(
                vocab_size=pieces, **_BART, init_std=_DEVIATION, bos_token_id=0, pad_token_id=1, eos_token_id=2,
                decoder_start_token_id=2, forced_eos_token_id=None,
            )
        )  # fmt: skip
    return MBartForConditionalGeneration(
        MBartConfig(
            vocab_size=pieces, **_BART, init_std=_DEVIATION, bos_token_id=0, pad_token_id=1, eos_token_id=2,
            decoder_start_token_id=4, forced_eos_token_id=None,
        )
    )  # fmt: skip


def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    texts = [*SENTENCES, *LABELS, "Topic: Question: Answer:"]
    special = {"t5": ["<pad>", "</s>", "<unk>"], "mbart": ["<s>", "<pad>", "</s>", "<unk>", "en_XX"]}
    pieces = special.get(name, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    if name == "bart":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=pieces, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=pieces, unk_token="<unk>")
    tokenizer.train_from_iterator(texts, trainer)
    frames = {"llama": "<s> $A", "t5": "$A </s>", "bart": "<s> $A </s>", "mbart": "$A </s> en_XX"}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frames[name],
        special_tokens=[(piece, tokenizer.token_to_id(piece)) for piece in pieces if piece in frames[name]],
    )
    extra = [f"<extra_id_{number}>" for number in range(SENTINELS)] if name == "t5" else []
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if name != "t5":
        names["bos_token"] = "<s>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names,
        additional_special_tokens=extra or (["en_XX"] if name == "mbart" else None),
    )  # fmt: skip
