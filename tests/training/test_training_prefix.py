"""Prefixes: they start alike, enter every forward pass as PEFT's do, train, resume, are scored and carried over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_batch import loss_of
from peft import PeftModel
from safetensors.torch import load_file
from topic_sentences import sentences
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    DistilBertConfig,
    DistilBertForMaskedLM,
    MT5Config,
    MT5ForConditionalGeneration,
    TrainerCallback,
)

from adamergex import evaluation
from adamergex.adapters import peft_backed
from adamergex.backbones import loading
from adamergex.config.transfer import parse
from adamergex.errors import AdapterFileError, ModelError
from adamergex.files import lineage, tensor_files
from adamergex.files.lineage import Lineage
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
from adamergex.merging.prepare import MergeSpec
from adamergex.report.results_file import as_dict
from adamergex.search import tuning
from adamergex.tables.transfer import transfer
from adamergex.tasks.answering import scoring
from adamergex.tasks.classification import answer_tokens, prompt_tokens
from adamergex.training import train

TOKENS = 4
PREFIX = Structure(kind="prefix", virtual_tokens=TOKENS)
TASK = Classification(labels=("food", "sports", "travel"))
REFERENCE = LanguageModeling(segment=24, segments=60)
KINDS = {"xlm-r": "masked-lm", "bert": "masked-lm", "llama": "causal-lm", "t5": "sequence-to-sequence"}
BATCH = {
    "input_ids": torch.tensor([[0, 7, 9, 11, 8, 2], [0, 12, 30, 2, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
}
DECODER = {"decoder_input_ids": torch.tensor([[1, 5, 6], [1, 9, 4]])}


def attached(model: Any, seed: int = 0, structure: Structure = PREFIX, **settings: Any) -> PeftModel:
    return peft_backed.attach(model, structure, **({"task_head": False, "base_sha256": "0", "seed": seed} | settings))


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor] = BATCH) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**batch).logits


def small_mt5() -> MT5ForConditionalGeneration:
    """Heads × d_kv = 10, d_model = 16; three layers decode, two encode."""
    torch.manual_seed(0)
    size = {"d_model": 16, "d_kv": 5, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
    return MT5ForConditionalGeneration(MT5Config(vocab_size=40, **size, decoder_start_token_id=0)).eval()


def small_bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2}
    size |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    return BartForConditionalGeneration(BartConfig(vocab_size=40, **size)).eval()


@pytest.mark.parametrize("name", ["xlm-r", "bert", "llama", "t5", "mt5", "bart"])
def test_what_is_saved_computes_the_same_in_peft(checkpoints: dict[str, str], tmp_path: Path, name: str) -> None:
    """Through PEFT's own task classes, on every family; PEFT ignores what it cannot place, so it must also differ."""
    made = {"mt5": small_mt5, "bart": small_bart}
    model, alone = (made[name]() if name in made else loading.load(checkpoints[name], KINDS[name]).model for _ in "ab")
    batch = BATCH | (DECODER if name in ("t5", *made) else {})
    bare = logits(model, batch)
    wrapped = attached(model)
    ours = logits(wrapped, batch)
    peft_backed.save(wrapped, tmp_path / "a", Lineage(base={"name": "b", "sha256": "0"}))
    theirs = logits(PeftModel.from_pretrained(alone, tmp_path / "a"), batch)
    keep = BATCH["attention_mask"].bool() if ours.shape[1] == 6 else torch.ones(ours.shape[:2], dtype=torch.bool)
    torch.testing.assert_close(ours[keep], theirs[keep], rtol=0, atol=1e-6)
    assert (ours[keep] - bare[keep]).abs().max() > 1e-3
    assert peft_backed.detach(wrapped) is model
    assert torch.equal(logits(model, batch), bare)


def test_the_width_is_that_of_the_keys(checkpoints: dict[str, str]) -> None:
    """mT5: heads × d_kv; grouped queries: the key-value heads; BART: the decoder's layers and heads."""
    for model, shape in (
        (small_mt5(), {"token_dim": 10, "num_attention_heads": 2, "num_layers": 3, "num_transformer_submodules": 2}),
        (small_bart(), {"token_dim": 16, "num_attention_heads": 4, "num_layers": 2, "num_transformer_submodules": 2}),
        (
            loading.load(checkpoints["llama"], "causal-lm").model,
            {"token_dim": 16, "num_attention_heads": 1, "num_layers": 2, "num_transformer_submodules": 1},
        ),
    ):
        config = attached(model).peft_config["default"]
        assert {name: getattr(config, name) for name in shape} == shape


@pytest.mark.parametrize("name", ["xlm-r", "llama"])
def test_every_head_starts_from_the_same_prefix(checkpoints: dict[str, str], name: str) -> None:
    starts = []
    for kind, head, seed in ((KINDS[name], False, 1), ("sequence-classification", True, 2)):
        torch.manual_seed(seed)
        loaded = loading.load(checkpoints[name], kind, TASK.labels if head else None)
        sha256 = loaded.sha256
        wrapped = attached(loaded.model, seed, task_head=head, base_sha256=sha256, new_modules=loaded.new_modules)
        starts.append((peft_backed.tensors(wrapped)["prompt_embeddings"].clone(), peft_backed.start_sha256(wrapped)))
    assert torch.equal(starts[0][0], starts[1][0]) and starts[0][1] == starts[1][1]
    assert abs(float(starts[0][0].std()) - 1) < 0.2
    loaded = loading.load(checkpoints[name], KINDS[name])
    other = attached(loaded.model, structure=Structure(kind="prefix", virtual_tokens=5), base_sha256=sha256)
    assert not torch.equal(peft_backed.tensors(other)["prompt_embeddings"][:TOKENS], starts[0][0])


def test_gradient_checkpointing_is_refused(checkpoints: dict[str, str]) -> None:
    model = loading.load(checkpoints["llama"], "causal-lm").model
    model.gradient_checkpointing_enable()
    with pytest.raises(ModelError, match="gradient checkpointing does not work with a prefix"):
        attached(model)
    model.gradient_checkpointing_disable()
    wrapped = attached(model).train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ModelError, match="gradient checkpointing does not work with a prefix"):
        wrapped(**BATCH)


@pytest.mark.parametrize("name", ["xlm-r", "llama"])
def test_a_prefix_learns_in_float32_on_a_bfloat16_base(checkpoints: dict[str, str], name: str) -> None:
    wrapped = attached(loading.load(checkpoints[name], KINDS[name]).model.to(torch.bfloat16)).train()
    wrapped(**BATCH).logits.float().square().sum().backward()
    [prefix] = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    assert prefix.dtype == torch.float32 and prefix.grad is not None
    assert bool(prefix.grad.isfinite().all()) and float(prefix.grad.abs().sum()) > 0


def test_an_architecture_without_a_place_for_it_is_refused() -> None:
    model = DistilBertForMaskedLM(DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24))
    with pytest.raises(ModelError, match="takes no prefix"):
        attached(model)


def test_a_prefix_of_another_shape_is_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    model = loading.load(checkpoints["llama"], "causal-lm").model
    wrapped = attached(model)
    peft_backed.save(wrapped, tmp_path / "a", Lineage(base={"name": "b", "sha256": "0"}))
    peft_backed.detach(wrapped)
    other = loading.load(checkpoints["xlm-r"], "masked-lm").model
    with pytest.raises(AdapterFileError):
        peft_backed.load(other, tmp_path / "a")
    assert logits(other).shape[1] == 6  # and the model is as it was: no prefix in its mask


def job(base: str, rows: Path, task: Any = TASK, language: str = "en", **changes: Any) -> TrainJob:
    fast = {"learning_rate": 5e-2, "batch_size": 8, "max_grad_norm": 1.0, "steps": 25}
    return TrainJob(
        base=base, structure=PREFIX, task=task, language=language, rows=Rows(path=str(rows)),
        optimisation=Optimisation(**(fast | changes)), seed=1,
    )  # fmt: skip


@pytest.mark.parametrize("labelled_task", [True, False])
@pytest.mark.parametrize("name", ["xlm-r", "bert", "llama"])
def test_training_moves_the_prefix_and_the_head_alone(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, name: str, labelled_task: bool
) -> None:
    rows = labelled if labelled_task else plain
    wanted = job(checkpoints[name], rows, TASK if labelled_task else REFERENCE, learning_rate=1e-2)
    backbone = train.load_for(wanted)
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    at_first = loss_of(backbone, wanted, None)
    train.train(wanted, tmp_path / "out", backbone=backbone)
    assert loss_of(backbone, wanted, tmp_path / "out") < at_first
    after = backbone.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    trained = tensor_files.read_directory(tmp_path / "out")
    heads = [key for key in trained if key != "prompt_embeddings"]
    assert bool(heads) == (labelled_task and name != "llama")
    start = peft_backed.tensors(attached(backbone.model, base_sha256=backbone.sha256))["prompt_embeddings"]
    width = trained["prompt_embeddings"].shape[1] // 4
    for block in range(4):  # keys and values of both layers
        columns = slice(block * width, (block + 1) * width)
        assert not torch.equal(trained["prompt_embeddings"][:, columns], start[:, columns])
    found = lineage.read(tmp_path / "out")
    assert found is not None and found.structure == {"kind": "prefix", "virtual_tokens": TOKENS} and found.start


class StopAfter(TrainerCallback):
    """A crash in the middle of a run."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 13:
            raise KeyboardInterrupt


def test_a_resumed_run_is_bitwise_an_uninterrupted_one(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path
) -> None:
    wanted = job(checkpoints["xlm-r"], labelled, checkpoint_every=5)
    train.train(wanted, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.train(wanted, tmp_path / "resumed", workdir=tmp_path / "work", callbacks=[StopAfter()])
    seen: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.global_step)

    train.train(wanted, tmp_path / "resumed", workdir=tmp_path / "work", callbacks=[Watch()])
    assert seen[0] == 11
    for name in ("adapter_model.safetensors", "adapter_config.json", "lineage.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_texts_leave_room_for_the_virtual_tokens(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """Positions are counted from after the prefix, so a text as long as the model takes would overrun its table."""
    rows = tmp_path / "long.jsonl"
    text = " ".join(sentences())
    rows.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for label in TASK.labels))
    wanted = job(checkpoints["xlm-r"], rows, steps=1)
    backbone = train.load_for(wanted)
    examples = train.examples_of(wanted, backbone, [{"text": text, "label": "food"}])
    assert examples.lengths[0] == loading.longest_input(backbone.model, backbone.tokenizer) - TOKENS
    train.train(wanted, tmp_path / "out")
    scored = EvaluateJob(base=checkpoints["xlm-r"], task=TASK, language="en", rows=Rows(path=str(rows)))
    assert evaluation.evaluate(scored, tmp_path / "out").truncated == 3


def test_prompts_are_scored_as_whole_texts_are(checkpoints: dict[str, str]) -> None:
    """Left padding, a cache that goes on, and given positions: against one plain pass for each text and label."""
    loaded = loading.load(checkpoints["llama"], "causal-lm")
    wrapped = attached(loaded.model)
    task = TASK.model_copy(update={"words": {"food": "the cook baked bread", "sports": "match", "travel": "train to"}})
    texts = [sentences()[0], sentences()[30] + " and much more of it", "A ferry"]
    found, _ = scoring.word_scores(wrapped, texts, loaded.tokenizer, task, longest=80, batch_tokens=4096)
    answers = answer_tokens(loaded.tokenizer, task)
    assert max(map(len, answers)) > 1
    for text, row in zip(texts, found, strict=True):
        [prompt], _ = prompt_tokens([text], loaded.tokenizer, task, 80 - max(map(len, answers)), close=False)
        for answer, score in zip(answers, row, strict=True):
            whole = logits(wrapped, {"input_ids": torch.tensor([prompt + answer])})[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            assert score == pytest.approx(
                sum(float(whole[at, piece]) for at, piece in zip(places, answer, strict=True)), abs=1e-4
            )


@pytest.mark.parametrize("name", ["xlm-r", "llama"])
@pytest.mark.parametrize("rule", ["adaptive", "additive", "average"])
def test_adapters_in_memory_predict_what_written_merges_predict(
    checkpoints: dict[str, str], trio: Any, labelled: Path, tmp_path: Path, name: str, rule: str
) -> None:
    adapters = dict(trio(name))
    if rule == "average":
        del adapters["source_reference"]
    scored = EvaluateJob(base=checkpoints[name], task=TASK, language="en", rows=Rows(path=str(labelled)))
    seen: dict[float, Any] = {}
    tuning.tune(
        **adapters,
        spec=MergeSpec(rule),
        job=scored,
        grid=(0.5, 1.5),
        watch=lambda weight, found: seen.update({weight: found}),
    )
    assert sorted(seen) == [0.0, 0.5, 1.5] and seen[0.0] != seen[1.5]
    for weight, predictions in seen.items():
        merge(**adapters, rule=rule, weight=weight, output=tmp_path / str(weight))
        evaluation.evaluate(scored, tmp_path / str(weight), tmp_path / f"evaluated-{weight}")
        lines = (tmp_path / f"evaluated-{weight}" / "predictions.jsonl").read_text().splitlines()
        assert predictions == [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def trio(checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name of a family -> the three adapters of a merge, trained once."""
    root, made = tmp_path_factory.mktemp("prefixes"), {}
    foreign = root / "fr.txt"
    foreign.write_text("\n".join(text[::-1] for text in sentences()), encoding="utf-8")
    sources = {"task": (TASK, "en", labelled), "target_reference": (REFERENCE, "fr", foreign)}
    sources["source_reference"] = (REFERENCE, "en", plain)

    def get(name: str) -> dict[str, Path]:
        if name not in made:
            for role, (task, language, rows) in sources.items():
                train.train(job(checkpoints[name], rows, task, language), root / f"{name}-{role}")
            made[name] = {role: root / f"{name}-{role}" for role in sources}
        return made[name]

    return get


def test_a_merged_prefix_keeps_the_head_and_loads_in_peft(
    checkpoints: dict[str, str], trio: Any, tmp_path: Path
) -> None:
    merge(**trio("xlm-r"), weight=0.7, output=tmp_path / "out")
    merged, task = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "out", trio("xlm-r")["task"]))
    assert merged.keys() == task.keys()
    assert [name for name in task if not torch.equal(task[name], merged[name])] == ["prompt_embeddings"]
    loaded = loading.load(checkpoints["xlm-r"], "sequence-classification", TASK.labels)
    mine = logits(peft_backed.load(loaded.model, tmp_path / "out"))
    alone = AutoModelForSequenceClassification.from_pretrained(checkpoints["xlm-r"], num_labels=3, dtype=torch.float32)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(alone, tmp_path / "out")), mine, rtol=0, atol=1e-6)
    assert lineage.read(tmp_path / "out").start == lineage.read(trio("xlm-r")["task"]).start  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_the_whole_way(
    checkpoints: dict[str, str], tiny_encoder: Path, small_data: Path, tmp_path: Path, family: str
) -> None:
    quick = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2}
    settings = {
        "base": str(tiny_encoder) if family == "encoder" else checkpoints["llama"],
        "structure": {"kind": "prefix", "virtual_tokens": TOKENS},
        "proxy": "fr",
        "targets": ["sw"],
        "methods": ["english_tuning", "average", "adamergex", "adamergex_cross"],
        "task": {
            **{part: f"{small_data}/{{language}}.{part}.tsv" for part in ("train", "validation", "test")},
            "optimisation": quick,
        },
        "reference": {"text": f"{small_data}/{{language}}.txt", "segment": 16, "optimisation": quick},
        "merge": {"grid": [0.5, 1.0]},
        "output": str(tmp_path / "run"),
    }
    results = as_dict(transfer(parse(settings), say=lambda line: None))
    assert {cell["method"] for cell in results["cells"]} == set(settings["methods"])
    assert {curve["method"] for curve in results["tuning"]} == {"adamergex", "adamergex_cross"}
    for curve in results["tuning"]:
        assert [point["weight"] for point in curve["curve"]] == [0.0, 0.5, 1.0]
    found = lineage.read(tmp_path / "run" / "adapters" / "adamergex-sw-seed0")
    assert found is not None and found.merge is not None
    assert (found.merge["rule"], found.merge["span"], found.merge["form"]) == ("prefix", "per_layer", "left")
    assert found.structure == {"kind": "prefix", "virtual_tokens": TOKENS}
