"""Tiny real checkpoints, made once a session: the same architectures as users', random weights."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries read it: they ask the network five times, with pauses

import pytest
import torch
from hypothesis import HealthCheck, settings

# No claim of a test depends on how fast the machine is, or on what else it does.
settings.register_profile("any-load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-load")

LANGUAGES = {
    "en": ("the river is deep", "a kind doctor helps", "the match was won", "our train is late"),
    "fr": ("la rivière est profonde", "un bon médecin aide", "le match est gagné", "notre train est en retard"),
    "sw": ("mto ni wenye kina", "daktari mwema husaidia", "mechi ilishindwa", "treni yetu imechelewa"),
    "tr": ("nehir çok derin", "iyi bir doktor yardım eder", "maç kazanıldı", "trenimiz gecikti"),
}
TOPICS = ("nature", "health", "sports", "travel")


_frozen_modules = 0


def pytest_runtest_setup() -> None:
    """What libraries have made since is kept out of garbage collection: every training collects once, and a look at
    their half a million objects takes longer than the steps of a tiny model."""
    global _frozen_modules
    if len(sys.modules) > _frozen_modules + 50:
        _frozen_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models lose time on several threads, and workers share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def nothing_waits_for_the_disk() -> Iterator[None]:
    """Files are synced in the processes that tests start; here they need not outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XLM-R of two layers with a tokenizer trained on the sentences above."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator((text for texts in LANGUAGES.values() for text in texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder = tmp_path_factory.mktemp("tiny-encoder")
    named = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", model_max_length=64, **named
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=66,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled sets and raw text in four languages, a few lines each."""
    folder = tmp_path_factory.mktemp("data")
    for language, texts in LANGUAGES.items():
        rows = [f"{topic}\t{text} {number}" for number in range(6) for topic, text in zip(TOPICS, texts, strict=True)]
        for part in ("train", "validation", "test"):
            (folder / f"{language}.{part}.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n", encoding="utf-8")
        lines = [f"{text} {number}" for number in range(12) for text in texts]
        (folder / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> folder of a tiny decoder ("llama") or encoder-decoder ("t5" with sentinels, "bart", "mbart")."""
    from family_models import FAMILIES, save_family

    root = tmp_path_factory.mktemp("families")
    return {name: save_family(name, root / name) for name in FAMILIES}


@pytest.fixture(scope="session")
def roomy_t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny T5 for inputs as long as the papers' prompts are in the pieces of its small vocabulary."""
    from family_models import save_family

    return save_family("t5", tmp_path_factory.mktemp("t5"), longest=1600)


@pytest.fixture(scope="session")
def tiny_decoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with the tiny encoder's tokenizer, long enough for XLT's prompt."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-decoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder, model_max_length=1600)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, max_position_embeddings=1600, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2,
        pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
