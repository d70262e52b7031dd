"""The precision and the attention of a training: what they change, and what they must not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_numbers import STRUCTURES, job
from transformers import TrainerCallback

from adamergex.backbones import cache, loading
from adamergex.errors import ConfigError
from adamergex.jobs.settings import LanguageModeling, Optimisation, SentenceAlignment, SentenceContrast, Structure
from adamergex.training import numerics, train

TEXT = LanguageModeling(segment=16, segments=24)


class Watch(TrainerCallback):
    """What the model computes with at every step."""

    def __init__(self) -> None:
        self.seen: set[tuple[Any, ...]] = set()
        self.dtypes: set[torch.dtype] = set()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.seen.add((args.mixed_precision, model.config._attn_implementation))
        self.dtypes |= {parameter.dtype for parameter in model.parameters()}


def outcome(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "lineage.json").read_text())["settings"]
    return found


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_bfloat16_on_a_cpu_trains_like_float32(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, structure: Structure
) -> None:
    for number, (task, path) in enumerate([(None, labelled), (TEXT, plain)]):
        found = {}
        for precision, attention in (("float32", "sdpa"), ("bfloat16", "eager")):
            asked = job(
                checkpoints["xlm-r"], path, structure, task, steps=6, precision=precision, attention=attention,
                learning_rate=1e-3,
            )  # fmt: skip
            loaded, watch = train.load_for(asked), Watch()
            state = cache._state(loaded.model)
            before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
            names, config = set(vars(loaded.model)), loaded.model.config.to_dict()
            chosen = loaded.model.config._attn_implementation
            out = tmp_path / f"{number}-{precision}"
            train.train(asked, out, backbone=loaded, callbacks=[watch])
            assert watch.seen == {("bf16" if precision == "bfloat16" else "no", attention)}
            assert watch.dtypes == {torch.float32}
            found[precision] = outcome(out)["training"]
            assert (outcome(out)["precision"], outcome(out)["attention"]) == (precision, attention)
            # The base is given back as it was.
            assert loaded.model.config._attn_implementation == chosen == "sdpa"
            assert set(vars(loaded.model)) == names and loaded.model.config.to_dict() == config
            assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())
            if structure.kind != "bottleneck":  # whose head trains in the model's own place
                assert cache._state(loaded.model) == state
        for name in ("first_loss", "loss"):
            assert found["bfloat16"][name] != found["float32"][name]
            assert found["bfloat16"][name] == pytest.approx(found["float32"][name], rel=0.03)


class FirstLayer(TrainerCallback):
    """The type of what the first linear layer of the encoder gives during training."""

    def __init__(self) -> None:
        self.seen: set[torch.dtype] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        first = next(module for module in kwargs["model"].modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_hook(lambda module, inputs, output: self.seen.add(output.dtype))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", [None, TEXT, SentenceContrast(), SentenceAlignment(pivot_language="en")], ids=str)
def test_every_task_computes_in_the_precision_that_was_asked_for(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, task: Any, precision: str
) -> None:
    if isinstance(task, SentenceAlignment):
        rows = tmp_path / "en.jsonl"
        rows.write_text("".join(json.dumps({"text": f"{n} {n}", "pivot": f"{n}"}) + "\n" for n in range(20)))
        plain = rows
    asked = job(
        checkpoints["bert"], labelled if task is None else plain, STRUCTURES["lora"], task, steps=2,
        precision=precision,
    )  # fmt: skip
    watch = FirstLayer()
    train.train(asked, tmp_path / "out", callbacks=[watch])
    assert watch.seen == {torch.bfloat16 if precision == "bfloat16" else torch.float32}


def test_auto_is_what_it_was(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    plain, named = (
        job(checkpoints["bert"], labelled, STRUCTURES["lora"], **more)
        for more in ({}, {"precision": "auto", "attention": "auto", "head_start": "random"})
    )
    assert plain.model_dump(mode="json") == named.model_dump(mode="json")
    written = Optimisation().model_dump()
    assert not {"precision", "attention", "head_start", "probe_c"} & written.keys()
    assert Optimisation.model_validate(Optimisation(precision="bfloat16").model_dump()).precision == "bfloat16"
    expected = "float32" if not torch.cuda.is_available() else "bfloat16"
    chosen = job(checkpoints["bert"], labelled, STRUCTURES["lora"], precision=expected)
    for name, asked in (("auto", plain), ("said", chosen)):
        train.train(asked, tmp_path / name)
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("auto", "said"))
    assert first == second


def test_two_runs_in_bfloat16_give_the_same_bytes(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    asked = job(checkpoints["bert"], labelled, STRUCTURES["lora"], precision="bfloat16", attention="eager")
    for name in ("one", "two"):
        train.train(asked, tmp_path / name)
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


def test_a_base_of_lower_precision_computes_in_float32_and_keeps_its_bits(checkpoints: dict[str, str]) -> None:
    loaded = loading.load(checkpoints["bert"], "masked-lm")
    loaded.model.to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    with torch.no_grad():
        low = loaded.model(input_ids=ids).logits
        with numerics.computing(loaded.model, Optimisation(precision="float32")):
            assert loaded.model(input_ids=ids).logits.dtype == torch.float32
        assert torch.equal(loaded.model(input_ids=ids).logits, low)
    after = loaded.model.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_an_attention_that_a_model_has_not_is_refused_and_nothing_stays_changed(
    families: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(families[name])
    before = model.config._attn_implementation
    for attention in ("eager", "sdpa"):
        numerics.require_attention(model, attention)
        assert model.config._attn_implementation == before
    # As architectures do that compute attention in a way of their own.
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(ConfigError, match=r"has no such attention[\s\S]*set attention to auto"):
        numerics.require_attention(model, "eager" if before == "sdpa" else "sdpa")
    assert model.config._attn_implementation == before
