"""A masked-LM head for an encoder without one: it starts well, learns, and every command can use what comes out."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    TrainerCallback,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from adamergex.backbones.head_file import HeadFile, compose
from adamergex.backbones.heads import calibrate, with_new_head
from adamergex.backbones.loading import head_input, load
from adamergex.backbones.pooling import POOLING_FILE
from adamergex.backbones.trimming import trim
from adamergex.cli.main import main
from adamergex.errors import ModelError

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SENTENCES = {
    "en": "the river is deep and the doctor walks to a small house near the old bridge every cold morning",
    "sw": "mto una kina na daktari anatembea hadi nyumba ndogo karibu na daraja la zamani kila asubuhi baridi",
    "fr": "la rivière est profonde et le médecin marche vers une petite maison près du vieux pont",
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number, (language, sentence) in enumerate(SENTENCES.items()):
        words = sentence.split()
        count = 60 + 60 * number  # not as much of every language
        lines = [" ".join(words[(at + step) % len(words)] for step in range(7)) for at in range(count)]
        (folder / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """A BERT without head and pooler, saved as e5-small is, whose hidden states share a direction."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [line for path in sorted(texts.iterdir()) for line in path.read_text(encoding="utf-8").splitlines()]
    more = [f"unused{number} words{number}" for number in range(40)]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    backend.train_from_iterator(lines + more, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder = tmp_path_factory.mktemp("headless")
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", model_max_length=64, **names
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=backend.get_vocab_size(), max_position_embeddings=64, initializer_range=0.2, pad_token_id=1, **SHAPE
    )
    model = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.bias.normal_(std=2)
    model.save_pretrained(folder)
    return folder


def settings(headless: Path, texts: Path, folder: Path, **more: Any) -> Path:
    said = {
        "kind": "masked-lm-head",
        "base": str(headless),
        "languages": ["en", "sw", "fr"],
        "text": str(texts / "{language}.txt"),
        "segment": 16,
        "optimisation": {"steps": 30, "batch_size": 8, "learning_rate": 3e-3},
        "output": str(folder / "out"),
        **more,
    }
    path = folder / "head.yaml"
    path.write_text(json.dumps(said), encoding="utf-8")
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_base_without_head_says_how_to_get_one(headless: Path) -> None:
    with pytest.raises(ModelError, match="kind: masked-lm-head"):
        load(str(headless), "masked-lm")


def test_the_head_is_trained_and_the_body_is_not(headless: Path, texts: Path, tmp_path: Path) -> None:
    assert main(["train", str(settings(headless, texts, tmp_path))]) == 0
    output = tmp_path / "out"
    loaded = load(str(output), "masked-lm")  # refuses a checkpoint that lacks anything
    assert loaded.new_modules == () and type(loaded.model).__name__ == "BertForMaskedLM"
    body = load_file(headless / "model.safetensors")
    state = loaded.model.state_dict()
    assert all(torch.equal(state[f"bert.{name}"], tensor) for name, tensor in body.items())
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    record = json.loads((output / "masked_lm_head.json").read_text(encoding="utf-8"))
    before, after = record["measured"]["before"], record["measured"]["after"]
    assert set(after) == {"en", "sw", "fr"} and all(after[language] < before[language] for language in after)
    assert record["measured"]["drift"] is None and record["training"]["steps"] == 30
    # Of every language as many segments as the largest has, those set aside left out.
    most = max(source["segments"] - min(16, source["segments"] // 10) for source in record["data"].values())
    assert record["training"]["examples"] == 3 * most
    assert "| en |" in (output / "README.md").read_text(encoding="utf-8")
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert "transformers_version" in config  # as the base has it
    assert config | {"architectures": None} == json.loads((headless / "config.json").read_text(encoding="utf-8")) | {
        "architectures": None,
        "tie_word_embeddings": True,
    }
    assert AutoTokenizer.from_pretrained(output)("the river").tokens() == loaded.tokenizer("the river").tokens()


def test_the_base_is_still_read_by_its_mean(headless: Path, texts: Path, tmp_path: Path) -> None:
    base = shutil.copytree(headless, tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / POOLING_FILE).write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    quick = {"steps": 2, "batch_size": 4}
    assert main(["train", str(settings(base, texts, tmp_path, optimisation=quick))]) == 0
    head = ["--head", str(tmp_path / "out"), "--output", str(tmp_path / "again")]
    assert main(["backbones", "head", "--base", str(base), *head]) == 0
    for folder in (base, tmp_path / "out", tmp_path / "again"):
        assert head_input(str(folder), "auto") == "mean"


class _Crash(TrainerCallback):
    """In step 9, a step after a checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 9:
            raise KeyboardInterrupt


def test_two_runs_and_a_resumed_one_give_the_same_bytes(headless: Path, texts: Path, tmp_path: Path) -> None:
    from adamergex.config.train import load_training
    from adamergex.tables.plan import head_settings
    from adamergex.training import masked_lm_head
    from adamergex.training.loop import fit

    more = {"optimisation": {"steps": 12, "batch_size": 4, "checkpoint_every": 4}, "recovery": {"rank": 2}}
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        path = settings(headless, texts, tmp_path / name, **more)
        if name == "three":
            wanted = head_settings(load_training(path))  # type: ignore[arg-type]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    masked_lm_head, "fit", lambda *args, **rest: fit(*args, **{**rest, "callbacks": [_Crash()]})
                )
                with pytest.raises(KeyboardInterrupt):
                    masked_lm_head.train_head(
                        wanted, tmp_path / "three" / "out", workdir=tmp_path / "three" / ".out.unfinished"
                    )
            assert list((tmp_path / "three").glob(".out.unfinished/*/checkpoint-8"))
            assert not (tmp_path / "three" / "out").exists()
        assert main(["train", str(path)]) == 0
        assert not (tmp_path / name / ".out.unfinished").exists()
    one, two, three = (files(tmp_path / name / "out") for name in ("one", "two", "three"))
    assert one == two
    assert one["model.safetensors"] == three["model.safetensors"]


def test_recovery_changes_the_body_and_hold_keeps_its_vectors(headless: Path, texts: Path, tmp_path: Path) -> None:
    drift = {}
    for name, hold in (("free", 0.0), ("held", 10.0)):
        (tmp_path / name).mkdir()
        more = {
            "recovery": {"rank": 4, "hold": hold},
            "optimisation": {"steps": 40, "batch_size": 8, "learning_rate": 5e-3},
        }
        assert main(["train", str(settings(headless, texts, tmp_path / name, **more))]) == 0
        output = tmp_path / name / "out"
        record = json.loads((output / "masked_lm_head.json").read_text(encoding="utf-8"))
        drift[name] = record["measured"]["drift"]
        body, state = load_file(headless / "model.safetensors"), load(str(output), "masked-lm").model.state_dict()
        changed = {key for key, tensor in body.items() if not torch.equal(state[f"bert.{key}"], tensor)}
        assert len(changed) == 12 and all(
            key.endswith(("query.weight", "key.weight", "value.weight", "dense.weight")) for key in changed
        )
        losses = record["measured"]
        assert sum(losses["after"].values()) < sum(losses["before"].values())
    assert drift["held"] < drift["free"] / 2


def test_the_small_file_makes_the_same_base_again(headless: Path, texts: Path, tmp_path: Path) -> None:
    path = settings(headless, texts, tmp_path, recovery={"rank": 2}, optimisation={"steps": 5, "batch_size": 4})
    assert main(["train", str(path)]) == 0
    arguments = ["--base", str(headless), "--head", str(tmp_path / "out"), "--output", str(tmp_path / "again")]
    assert main(["backbones", "head", *arguments]) == 0
    one, again = files(tmp_path / "out"), files(tmp_path / "again")
    assert all(again[name] == one[name] for name in ("model.safetensors", "config.json", "masked_lm_head.safetensors"))


def test_a_head_of_a_trimmed_base_is_for_the_full_one_too(headless: Path, texts: Path, tmp_path: Path) -> None:
    done = trim(str(headless), sorted(texts.iterdir()), tmp_path / "trimmed")
    assert done.tokens < done.tokens_before
    path = settings(tmp_path / "trimmed", texts, tmp_path, optimisation={"steps": 20, "batch_size": 8})
    assert main(["train", str(path)]) == 0
    head = tmp_path / "out" / "masked_lm_head.safetensors"
    for base, name in ((headless, "full"), (tmp_path / "trimmed", "small")):
        arguments = ["--base", str(base), "--head", str(head), "--output", str(tmp_path / name)]
        assert main(["backbones", "head", *arguments]) == 0
    full, small = (AutoModelForMaskedLM.from_pretrained(tmp_path / name).eval() for name in ("full", "small"))
    words, fewer = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("full", "small"))
    rows = words.convert_tokens_to_ids(fewer.convert_ids_to_tokens(range(len(fewer))))
    text = "the river is <mask> and deep"
    with torch.no_grad():
        one = full(**words(text, return_tensors="pt")).logits
        two = small(**fewer(text, return_tensors="pt")).logits
    assert torch.allclose(one[..., rows], two, atol=1e-5)
    rest = sorted(set(range(full.config.vocab_size)) - set(rows))
    bias = full.cls.predictions.bias.detach()
    assert bool((bias[rest] == bias[rows].min()).all())


def test_a_head_of_a_trimmed_base_is_for_others_trimmed_from_the_same(
    headless: Path, texts: Path, tmp_path: Path
) -> None:
    """The logits are those of the head's own base; a token that this one lacks gets its lowest bias."""
    (tmp_path / "more.txt").write_text("words7 words31\n", encoding="utf-8")
    trim(str(headless), [texts / "en.txt", texts / "sw.txt"], tmp_path / "one")
    trim(str(headless), [texts / "en.txt", tmp_path / "more.txt"], tmp_path / "two")
    path = settings(tmp_path / "one", texts, tmp_path, languages=["en", "sw"], optimisation={"steps": 20})
    assert main(["train", str(path)]) == 0
    arguments = ["--base", str(tmp_path / "two"), "--head", str(tmp_path / "out"), "--output", str(tmp_path / "other")]
    assert main(["backbones", "head", *arguments]) == 0
    one, two = (AutoModelForMaskedLM.from_pretrained(tmp_path / name).eval() for name in ("out", "other"))
    words = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "other")]
    shared = sorted(words[0].get_vocab().keys() & words[1].get_vocab().keys())
    assert len(shared) < min(len(item) for item in words)
    rows = [item.convert_tokens_to_ids(shared) for item in words]
    text = "the river is <mask> and deep"
    with torch.no_grad():
        logits = [
            model(**item(text, return_tensors="pt")).logits for model, item in zip((one, two), words, strict=True)
        ]
    assert torch.allclose(logits[0][..., rows[0]], logits[1][..., rows[1]], atol=1e-5)
    rest = sorted(set(range(two.config.vocab_size)) - set(rows[1]))
    bias = [model.cls.predictions.bias.detach() for model in (one, two)]
    assert bool((bias[1][rest] == bias[0].min()).all())


def test_half_a_file_is_nearly_the_same_head(headless: Path, texts: Path, tmp_path: Path) -> None:
    path = settings(headless, texts, tmp_path, recovery={"rank": 2}, optimisation={"steps": 5, "batch_size": 4})
    assert main(["train", str(path)]) == 0
    whole, half = tmp_path / "out" / "masked_lm_head.safetensors", tmp_path / "half.safetensors"
    HeadFile.read(whole).write(half, half=True)
    assert half.stat().st_size < 0.8 * whole.stat().st_size
    compose(str(headless), half, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert one.keys() == two.keys() and all(item.dtype == torch.float32 for item in two.values())
    assert all(torch.allclose(one[name], two[name], atol=1e-3, rtol=1e-3) for name in one)
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_a_head_for_another_base_is_refused(headless: Path, texts: Path, tmp_path: Path) -> None:
    path = settings(headless, texts, tmp_path, optimisation={"steps": 2, "batch_size": 4})
    assert main(["train", str(path)]) == 0
    other = tmp_path / "other"
    BertModel(BertConfig(vocab_size=50, **SHAPE), add_pooling_layer=False).save_pretrained(other)
    head = tmp_path / "out" / "masked_lm_head.safetensors"
    for base, file, text in (
        (other, head, "another base"),
        (headless, headless / "model.safetensors", "not the file of a masked-LM head"),
        (headless, headless / "config.json", "not the file of a masked-LM head"),
        (headless, tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(ModelError, match=text):
            compose(str(base), file, tmp_path / "wrong")
        assert not (tmp_path / "wrong").exists()
    tensors = load_file(head)
    name = next(iter(tensors))
    tensors[name][0] = math.inf
    save_file(tensors, tmp_path / "bad.safetensors", metadata={"kind": "adamergex-masked-lm-head/1", "scale": "1.0"})
    with pytest.raises(ModelError, match="not finite"):
        compose(str(headless), tmp_path / "bad.safetensors", tmp_path / "wrong")


@pytest.mark.parametrize(
    ("more", "metadata", "text"),
    [
        ({"LAYER.a": torch.ones(2, 32), "LAYER.b": torch.ones(32, 3)}, {}, "does not fit"),
        ({"LAYER.a": torch.ones(()), "LAYER.b": torch.ones(())}, {}, "does not fit"),
        ({"LAYER.a": torch.ones(32), "LAYER.b": torch.ones(32)}, {}, "does not fit"),
        ({"LAYER.a": torch.ones(2, 32)}, {}, "not the file"),
        ({"LAYER.a": torch.ones(2, 32, dtype=torch.int64), "LAYER.b": torch.ones(32, 2)}, {}, "not float32"),
        ({"LAYER.a": torch.ones(2, 32), "LAYER.b": torch.ones(32, 2)}, {"scale": "1e300"}, "not finite"),
        ({"rows": torch.tensor([0, 0, 1], dtype=torch.int32)}, {}, "ascending"),
        ({"rows": torch.tensor([0.5, 1.5])}, {}, "ascending"),
        ({"rows": torch.zeros(2, 2, dtype=torch.int32)}, {}, "ascending"),
        ({"rows": torch.tensor([-1, 3], dtype=torch.int32)}, {}, "ascending"),
    ],
)
def test_a_head_that_would_spoil_the_base_is_refused(
    headless: Path, texts: Path, tmp_path: Path, more: dict[str, Any], metadata: dict[str, str], text: str
) -> None:
    path = settings(headless, texts, tmp_path, optimisation={"steps": 1, "batch_size": 4})
    assert main(["train", str(path)]) == 0
    head = tmp_path / "out" / "masked_lm_head.safetensors"
    with safe_open(head, "pt") as file:
        said = {**file.metadata(), **metadata}
    layer = "low_rank.bert.encoder.layer.0.attention.self.query"
    tensors = load_file(head) | {name.replace("LAYER", layer): tensor for name, tensor in more.items()}
    save_file(tensors, tmp_path / "bad.safetensors", metadata=said)
    with pytest.raises(ModelError, match=text):
        compose(str(headless), tmp_path / "bad.safetensors", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_record_beside_a_head_is_copied_only_where_it_is_one(headless: Path, texts: Path, tmp_path: Path) -> None:
    path = settings(headless, texts, tmp_path, optimisation={"steps": 1, "batch_size": 4})
    assert main(["train", str(path)]) == 0
    (tmp_path / "private").write_text("a secret", encoding="utf-8")
    (tmp_path / "out" / "masked_lm_head.json").unlink()
    (tmp_path / "out" / "masked_lm_head.json").symlink_to(tmp_path / "private")
    with pytest.raises(ModelError, match="record of the head"):
        compose(str(headless), tmp_path / "out", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_start_is_no_worse_than_guessing_by_frequency(headless: Path, texts: Path) -> None:
    """Of hidden states that say nothing of the masked token, and share a large direction."""
    from adamergex.backbones.logits import IGNORE

    model, new = with_new_head(str(headless))
    rows = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.rand(rows, generator=generator) ** 6
    ids = torch.multinomial(frequencies, 16 * 200, replacement=True, generator=generator).view(200, 16)
    chosen = torch.rand(ids.shape, generator=generator) < 0.3
    batch = {"input_ids": ids.masked_fill(chosen, 4), "labels": ids.masked_fill(~chosen, IGNORE)}
    counts = torch.bincount(ids.view(-1), minlength=rows)
    logarithms = torch.log((counts + 0.1) / (counts + 0.1).sum())
    guessing = float(-logarithms[ids[chosen]].mean())
    with torch.no_grad():
        plain = float(torch.nn.functional.cross_entropy(model(batch["input_ids"]).logits[chosen], ids[chosen]))
    found = calibrate(model, new, [batch], counts)
    assert found < guessing + 0.05 < plain


@pytest.mark.parametrize("name", ["xlm-roberta", "distilbert"])
def test_other_architectures(name: str, headless: Path, texts: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    AutoTokenizer.from_pretrained(headless).save_pretrained(base)
    rows = json.loads((headless / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    torch.manual_seed(0)
    if name == "distilbert":
        DistilBertModel(
            DistilBertConfig(vocab_size=rows, dim=32, n_layers=2, n_heads=2, hidden_dim=48, pad_token_id=1)
        ).save_pretrained(base)
    else:
        XLMRobertaModel(
            XLMRobertaConfig(vocab_size=rows, max_position_embeddings=70, pad_token_id=1, **SHAPE),
            add_pooling_layer=False,
        ).save_pretrained(base)
    more = {"recovery": {"rank": 2}, "optimisation": {"steps": 15, "batch_size": 8}}
    assert main(["train", str(settings(base, texts, tmp_path, **more))]) == 0
    record = json.loads((tmp_path / "out" / "masked_lm_head.json").read_text(encoding="utf-8"))["measured"]
    assert sum(record["after"].values()) < sum(record["before"].values())
    assert load(str(tmp_path / "out"), "masked-lm").new_modules == ()


def test_what_has_a_head_or_is_no_encoder_is_refused(
    texts: Path, families: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for base, text in (("nano", "has a masked-LM head already"), (families["llama"], "for encoders")):
        assert main(["train", str(settings(Path(base), texts, tmp_path, base=base))]) == 2
        assert text in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_settings_are_checked(headless: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, text in (
        ({"languages": ["en", "en"]}, "'en' is listed twice"),
        ({"languages": []}, "languages"),
        ({"recovery": {"rank": 0}}, "recovery.rank"),
        ({"recovery": {"hold": -1}}, "recovery.hold"),
        ({"language": "en"}, "language: no such setting"),
        ({"kind": "masked-lm-heads"}, "did you mean 'masked-lm-head'"),
    ):
        assert main(["train", str(settings(headless, texts, tmp_path, **more))]) == 2
        assert text in capsys.readouterr().err
