"""Every structure on every family: task and reference trained, merged, evaluated; what encoder-decoders learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from adamergex import evaluation
from adamergex.adapters import peft_backed
from adamergex.backbones import loading
from adamergex.backbones.logits import IGNORE, labelled_loss
from adamergex.errors import ConfigError, DataError
from adamergex.jobs.settings import (
    Classification,
    EvaluateJob,
    LanguageModeling,
    Optimisation,
    Rows,
    Structure,
    TrainJob,
)
from adamergex.merging import merge
from adamergex.search import tuning
from adamergex.tasks import classification, denoising, language_modeling
from adamergex.tasks.answering import scoring
from adamergex.training import train
from family_models import SENTENCES, SENTINELS

TASK = Classification(labels=("food", "sports", "travel"))
ENCODER_DECODERS = ("t5", "bart", "mbart")


@pytest.fixture(scope="module")
def bases(checkpoints: dict[str, str], families: dict[str, str]) -> dict[str, str]:
    """ "mt5" has an output projection of its own, which random weights of the size of "t5" need to learn much."""
    return {"xlm-r": checkpoints["xlm-r"], "mt5": checkpoints["t5"], **families}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "fr.txt"
    path.write_text("\n".join(text[::-1] for text in SENTENCES), encoding="utf-8")
    return path


def job(base: str, kind: str, task: Any, language: str, rows: Path, **optimisation: Any) -> TrainJob:
    settings = {"steps": 12, "learning_rate": 5e-3 if kind == "lora" else 5e-2, "batch_size": 8, "max_grad_norm": 1.0}
    return TrainJob(
        base=base,
        structure=Structure(kind=kind, rank=4, dropout=0.0),
        task=task,
        language=language,
        rows=Rows(path=str(rows)),
        optimisation=Optimisation(**(settings | optimisation)),
    )


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("name", ["xlm-r", "llama", "t5", "bart", "mbart"])
def test_train_merge_evaluate(
    bases: dict[str, str], labelled: Path, plain: Path, foreign: Path, tmp_path: Path, name: str, kind: str
) -> None:
    reference = LanguageModeling(segment=24, segments=20)
    wanted = {
        "task": job(bases[name], kind, TASK, "en", labelled, steps=40),
        "target_reference": job(bases[name], kind, reference, "fr", foreign),
        "source_reference": job(bases[name], kind, reference, "en", plain),
    }
    for role, train_job in wanted.items():
        train.train(train_job, tmp_path / role)
        told = json.loads((tmp_path / role / "lineage.json").read_text())
        outcome = told["settings"]["training"]
        assert outcome["loss"] < outcome["first_loss"] or role != "task"
        if role != "task":
            assert outcome["examples"] == told["task"]["segments"] == 20
    merge(**{role: tmp_path / role for role in wanted}, weight=0.5, output=tmp_path / "merged")
    before, after = (load_file(tmp_path / role / "adapter_model.safetensors") for role in ("task", "merged"))
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert before.keys() == after.keys() and changed
    if kind == "lora":  # query and value alone, of self- and of cross-attention
        assert all(
            any(f".{part}." in key for part in ("query", "value", "q_proj", "v_proj", "q", "v")) for key in changed
        )
        assert name not in ENCODER_DECODERS or any("EncDec" in key or "encoder_attn" in key for key in changed)
    scores = {}
    test = EvaluateJob(base=bases[name], task=TASK, language="en", rows=Rows(path=str(labelled)))
    for adapter in (None, "task", "merged"):
        found = evaluation.evaluate(
            test, None if adapter is None else tmp_path / adapter, tmp_path / f"scores-{adapter}"
        )
        scores[adapter] = found.score
        assert found.n == 72 and found.truncated == 0
    found = tuning.tune(**{role: tmp_path / role for role in wanted}, job=test, grid=(0.5,))
    assert [point.score for point in found.curve] == [scores["task"], scores["merged"]]


@pytest.mark.parametrize("name", ["mt5", "bart", "mbart"])
def test_training_by_prompt_shows_in_the_score(
    bases: dict[str, str], labelled: Path, tmp_path: Path, name: str
) -> None:
    train.train(job(bases[name], "lora", TASK, "en", labelled, steps=120), tmp_path / "task")
    scores = evaluation.evaluate_directory(
        base=None, adapter=tmp_path / "task", test=str(labelled), language="en", output=tmp_path / "out"
    )
    assert scores.score > 60  # a third by chance
    config = json.loads((tmp_path / "task" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_word_scores_are_those_of_single_rows(bases: dict[str, str], name: str) -> None:
    """Each label said by the decoder after its opening, without batch or cache; "food" begins "foods"."""
    found = loading.load(bases[name], "sequence-to-sequence")
    task = TASK.model_copy(update={"labels": ("food", "food s", "travel today")})
    tokenizer, texts = found.tokenizer, SENTENCES[:4]
    scores, cut = scoring.word_scores(found.model, texts, tokenizer, task, longest=96, batch_tokens=200)
    before, _ = loading.frame(tokenizer)
    assert cut == 0
    for row, text in enumerate(texts):
        for column, label in enumerate(task.labels):
            labels = tokenizer(label).input_ids
            with torch.inference_mode():
                given = {"input_ids": torch.tensor([tokenizer(f"{text}\nTopic:").input_ids])}
                logits = found.model(**given, labels=torch.tensor([labels])).logits[0].double().log_softmax(-1)
            counted = range(len(before), labels.index(tokenizer.eos_token_id) + 1)  # the end tells food from foods
            expected = sum(float(logits[place, labels[place]]) for place in counted)
            assert scores[row, column] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_loss_is_transformers_own(bases: dict[str, str], name: str) -> None:
    """Loss and gradients of a padded batch whose labels are a view, which transformers' T5 refuses."""
    found = loading.load(bases[name], "sequence-to-sequence")
    model = peft_backed.attach(found.model, Structure(dropout=0), task_head=False, base_sha256="0").eval()
    rows = [
        {"text": text, "label": label}
        for text, label in zip(SENTENCES[::20], ("food", "travel", "sports", "food"), strict=True)
    ]
    made = classification.prompt_examples(rows, found.tokenizer, TASK, longest=96, family="encoder-decoder")
    batch = made.batch(range(len(rows)), 0)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    view = batch["labels"].T.contiguous().T
    assert not view.is_contiguous() and torch.equal(view, batch["labels"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    theirs = model(**inputs, labels=batch["labels"]).loss
    ours = labelled_loss(model, inputs, view, shift=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for mine, other in zip(torch.autograd.grad(ours, trained), torch.autograd.grad(theirs, trained), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_bart_does_not_learn_what_opens_every_answer(bases: dict[str, str]) -> None:
    found = loading.load(bases["bart"], "sequence-to-sequence")
    made = classification.prompt_examples(
        [{"text": SENTENCES[0], "label": "food"}], found.tokenizer, TASK, longest=96, family="encoder-decoder"
    )
    assert made.answers[0][0] == found.tokenizer.bos_token_id and made.opening == 1
    batch = made.batch([0], 0)
    full = found.model(**batch).logits[0].log_softmax(-1)
    expected = -full[torch.arange(1, len(made.answers[0])), made.answers[0][1:]].mean()
    torch.testing.assert_close(made.loss(found.model, batch), expected)


@pytest.mark.parametrize(("name", "start"), [("t5", [0]), ("bart", [2, 0]), ("mbart", [4])])
def test_decoders_open_as_their_labels_are_shifted(bases: dict[str, str], name: str, start: list[int]) -> None:
    found = loading.load(bases[name], "sequence-to-sequence")
    assert loading.decoder_opening(found.model, found.tokenizer) == start


@given(length=st.integers(2, 80), rows=st.integers(1, 5), rate=st.floats(0.02, 0.9), seed=st.integers(0, 2**32 - 1))
def test_spans_put_back_give_the_text(length: int, rows: int, rate: float, seed: int) -> None:
    corruption = denoising.Corruption(np.arange(1000, 1100), rate)
    ids = np.random.default_rng(seed).integers(3, 900, (rows, length))
    read, said = corruption.draw(ids, np.random.default_rng(seed))
    replaced, spans = corruption.counts(length)
    assert read.shape == (rows, length - replaced + spans) and said.shape == (rows, replaced + spans)
    assert max(read.shape[1], said.shape[1]) <= length
    for row in range(rows):
        answers: dict[int, list[int]] = {}
        for piece in said[row].tolist():
            if piece >= 1000:
                answers[piece] = []
            else:
                answers[next(reversed(answers))].append(piece)
        restored: list[int] = []
        for piece in read[row].tolist():
            restored += answers[piece] if piece >= 1000 else [piece]
        assert restored == ids[row].tolist()
        assert list(answers) == list(range(1000, 1000 + spans)) and all(answers.values())


def test_spans_are_t5s_fresh_every_step_and_repeatable(bases: dict[str, str]) -> None:
    tokenizer = loading.tokenizer(bases["t5"])
    made = denoising.denoising_examples(
        SENTENCES, tokenizer, LanguageModeling(segment=61, segments=20), seed=7, longest=96
    )
    assert made.corruption is not None and made.corruption.counts(60) == (9, 3)
    assert made.corruption.sentinels.tolist() == [tokenizer.convert_tokens_to_ids(f"<extra_id_{n}>") for n in range(12)]
    rows = list(range(20))
    batch, again, later = made.batch(rows, 3), made.batch(rows, 3), made.batch(rows, 4)
    assert torch.equal(batch["input_ids"], again["input_ids"]) and torch.equal(batch["labels"], again["labels"])
    assert not torch.equal(batch["input_ids"], later["input_ids"])
    assert batch["input_ids"].shape == (20, 60 - 9 + 3 + 1) and batch["labels"].shape == (20, 9 + 3 + 1)
    assert set(made.lengths) == {55 + 13}
    assert (batch["input_ids"][:, -1] == 1).all() and (batch["labels"][:, -1] == 1).all()
    starts = np.concatenate([made.batch(rows, step)["input_ids"].numpy() for step in range(200)]) >= 91
    # A span may stand anywhere but at the beginning or right before the last one, which ends the segment.
    assert not starts[:, 0].any() and not starts[:, -3].any() and starts[:, -2].all()
    assert (starts[:, 1:-3].mean(0) > 0.03).all()


@pytest.mark.parametrize(("name", "objective"), [("bart", "auto"), ("t5", "continuation")])
def test_continuation_reads_one_half_and_says_the_other(bases: dict[str, str], name: str, objective: str) -> None:
    found = loading.load(bases[name], "sequence-to-sequence")
    task = LanguageModeling(segment=24, segments=5, objective=objective)
    made = denoising.denoising_examples(SENTENCES, found.tokenizer, task, seed=0, longest=96)
    before, after = loading.frame(found.tokenizer)
    batch = made.batch(range(5), 0)
    inner = 24 - len(before) - len(after)
    stream = [piece for text in SENTENCES for piece in [*found.tokenizer(text, add_special_tokens=False).input_ids,
                                                        found.tokenizer.eos_token_id]]  # fmt: skip
    for row in range(5):
        text = stream[row * inner : (row + 1) * inner]
        assert batch["input_ids"][row].tolist() == before + text[: (inner + 1) // 2] + after
        assert batch["labels"][row].tolist() == before + text[(inner + 1) // 2 :] + after
    with torch.inference_mode():
        full = found.model(**batch).logits.log_softmax(-1)
        places = torch.arange(len(before), batch["labels"].shape[1] - len(after))  # no end: the text goes on
        expected = -full[:, places].gather(2, batch["labels"][:, places, None]).mean()
        torch.testing.assert_close(made.loss(found.model, batch), expected)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_language_gets_the_same_number_of_segments(bases: dict[str, str], name: str) -> None:
    tokenizer = loading.tokenizer(bases[name])
    there = language_modeling.count_segments(SENTENCES, tokenizer, 24, masked=True)
    made = denoising.denoising_examples(SENTENCES, tokenizer, LanguageModeling(segment=24), seed=0, longest=96)
    assert len(made.ids) == there
    with pytest.raises(DataError, match=rf"too little text[\s\S]*{there} segments of 24"):
        denoising.denoising_examples(
            SENTENCES, tokenizer, LanguageModeling(segment=24, segments=9999), seed=0, longest=96
        )


def test_span_corruption_needs_sentinels(bases: dict[str, str]) -> None:
    task = LanguageModeling(segment=24, objective="span-corruption")
    with pytest.raises(ConfigError, match=r"too few sentinels[\s\S]*0 tokens"):
        denoising.denoising_examples(SENTENCES, loading.tokenizer(bases["bart"]), task, seed=0, longest=96)
    task = LanguageModeling(segment=90, mask_rate=0.5)
    with pytest.raises(ConfigError, match=rf"too few sentinels[\s\S]*{SENTINELS} tokens[\s\S]*expected: 15"):
        denoising.denoising_examples(SENTENCES, loading.tokenizer(bases["t5"]), task, seed=0, longest=96)
    with pytest.raises(ConfigError, match="do not fit the model"):
        denoising.denoising_examples(
            SENTENCES, loading.tokenizer(bases["t5"]), LanguageModeling(segment=97), seed=0, longest=96
        )


def test_prompts_of_encoders_are_cut_in_the_text(bases: dict[str, str]) -> None:
    found = loading.load(bases["t5"], "sequence-to-sequence")
    rows = [{"text": "bread and butter " * 20, "label": "food"}]
    task = TASK.model_copy(update={"max_length": 30})
    made = classification.prompt_examples(rows, found.tokenizer, task, longest=96, family="encoder-decoder")
    assert made.truncated == 1 and 28 <= len(made.prompts[0]) <= 30 and made.prompts[0][-1] == 1
    assert found.tokenizer.decode(made.prompts[0], skip_special_tokens=True).endswith("Topic:")
    labels = made.batch([0], 0)["labels"]
    assert labels[0].tolist() == found.tokenizer("food").input_ids and IGNORE not in labels[0]
