"""Tiny random checkpoints of four families, with a tokenizer trained here; one folder each for the whole session."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from topic_sentences import TOPICS, sentences
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
# Weights large enough that the layers, and so what scales them, matter to the output.
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SIZE["initializer_range"] = 0.15
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(sentences() + ["Topic:"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, unk_token="<unk>", mask_token="<mask>", model_max_length=96
    )


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name of a family -> folder of a tiny random checkpoint with its tokenizer."""
    root, tokenizer = tmp_path_factory.mktemp("checkpoints"), make_tokenizer()
    vocabulary = {"vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    made = {
        "xlm-r": XLMRobertaForMaskedLM(XLMRobertaConfig(**vocabulary, **SIZE, **IDS, max_position_embeddings=98)),
        "bert": BertForMaskedLM(BertConfig(**vocabulary, **SIZE, pad_token_id=1, max_position_embeddings=96)),
        "llama": LlamaForCausalLM(
            LlamaConfig(**vocabulary, **SIZE, **IDS, num_key_value_heads=1, max_position_embeddings=96)
        ),
        "t5": T5ForConditionalGeneration(
            T5Config(
                **vocabulary, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, pad_token_id=1, eos_token_id=2,
                decoder_start_token_id=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            )
        ),
    }  # fmt: skip
    folders = {}
    for name, model in made.items():
        folders[name] = str(root / name)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl file of texts with topics."""
    path = tmp_path_factory.mktemp("data") / "en.jsonl"
    per_topic = len(sentences()) // len(TOPICS)
    rows = [{"text": text, "label": list(TOPICS)[i // per_topic]} for i, text in enumerate(sentences())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file, one text per line."""
    path = tmp_path_factory.mktemp("data") / "en.txt"
    path.write_text("\n".join(sentences()) + "\n", encoding="utf-8")
    return path
