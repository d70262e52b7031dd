"""Numbers of a training: float32 whatever the base's dtype, nothing that is not finite, and the base as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from adamergex.adapters import loaded_adapter
from adamergex.backbones import cache, loading
from adamergex.errors import AdapterFileError, ConfigError, TrainingError
from adamergex.jobs.settings import (
    Classification,
    LanguageModeling,
    Optimisation,
    Rows,
    Structure,
    TrainJob,
)
from adamergex.training import loop, train

STRUCTURES = {
    "lora": Structure(rank=2, dropout=0),
    "ia3": Structure(kind="ia3"),
    "prefix": Structure(kind="prefix", virtual_tokens=3),
    "bottleneck": Structure(kind="bottleneck", reduction=2, invertible=True),
    "full": Structure(kind="full"),
    "sparse": Structure(kind="sparse", entries=0.1),
}


def job(base: str, path: Path, structure: Structure, task: Any = None, **settings: Any) -> TrainJob:
    task = task or Classification(labels=("food", "sports", "travel"), max_length=32)
    return TrainJob(
        base=base,
        structure=structure,
        task=task,
        language="en",
        rows=Rows(path=str(path)),
        # Copied in: the settings' own bounds let no rate through that diverges at once.
        optimisation=Optimisation(steps=3, batch_size=4).model_copy(update=settings),
    )


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("name", ["xlm-r", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_that_trains_is_float32(
    checkpoints: dict[str, str], name: str, structure: Structure, dtype: torch.dtype
) -> None:
    loaded = loading.load(checkpoints[name], "sequence-classification", ("a", "b", "c"))
    loaded.model.to(dtype)
    before = {key: tensor.clone() for key, tensor in loaded.model.state_dict().items()}
    state = cache._state(loaded.model)
    new = loaded.new_modules
    placed = loaded_adapter.attach(loaded.model, structure, task_head=True, base_sha256="x", new_modules=new)
    training_now = [parameter for parameter in placed.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in training_now} == {torch.float32}
    # Without autocast too: what has another dtype than the base meets it in both directions.
    optimizer = torch.optim.AdamW(training_now, lr=1e-5)
    old = [parameter.detach().clone() for parameter in training_now]
    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 9, 10, 2]])
    loss = placed.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().square().sum()
    loss.backward()
    optimizer.step()
    head = [parameter for parameter in training_now if parameter.ndim == 2 and len(parameter) == 3]
    assert head and all(parameter.grad is not None for parameter in head)
    # A step of 1e-5 is below bfloat16's last bit of a weight of 0.1: it must not be lost.
    moved = [(new != then).float().mean() for new, then in zip(training_now, old, strict=True) if new.grad is not None]
    assert min(moved) > 0 and sum(moved) / len(moved) > 0.5
    placed.detach()
    assert {key: tensor.dtype for key, tensor in loaded.model.state_dict().items()} == {
        key: tensor.dtype for key, tensor in before.items()
    }
    assert all(torch.equal(tensor, before[key]) for key, tensor in loaded.model.state_dict().items())
    if structure.kind != "bottleneck":  # whose head trains in the model's own place
        assert cache._state(loaded.model) == state


def test_a_stack_trains_in_float32_and_gives_the_head_its_dtype_back(checkpoints: dict[str, str]) -> None:
    from adamergex import attach
    from adamergex.adapters.bottleneck.modules import BottleneckConfig

    loaded = loading.load(checkpoints["xlm-r"], "sequence-classification", ("a", "b"))
    model = attach(loaded.model.to(torch.bfloat16), BottleneckConfig.pfeiffer(2), names=["task"])
    model.adapter_stack.train_only("task", also=["classifier"])
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}
    ids = torch.tensor([[0, 5, 6, 2]])
    model(input_ids=ids).logits.sum().backward()
    model.detach()
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert model(input_ids=ids).logits.dtype == torch.bfloat16


def in_autocast(job: TrainJob, folder: Path, steps: int) -> TrainingArguments:
    """The product's arguments as they are on CUDA, here on CPU."""
    arguments = ORIGINAL(job, folder, steps)
    given = {name: getattr(arguments, name) for name in ("learning_rate", "max_grad_norm", "warmup_steps", "seed")}
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, use_cpu=True, bf16=True, per_device_train_batch_size=1,
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
        save_strategy="no", logging_steps=20, **given,
    )  # fmt: skip


ORIGINAL = loop._arguments


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_the_base_is_given_back_after_a_training_in_autocast(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, structure: Structure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(loop, "_arguments", in_autocast)
    tasks = [(LanguageModeling(segment=16, segments=8), plain)]
    tasks += [(Classification(labels=("food", "sports", "travel"), max_length=32), labelled)]
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    for number, (task, path) in enumerate(tasks):
        asked = job(checkpoints["xlm-r"], path, structure, task)
        loaded = train.load_for(asked)
        names, config = set(vars(loaded.model)), loaded.model.config.to_dict()
        with torch.no_grad():
            before = loaded.model(input_ids=ids).logits
        train.train(asked, tmp_path / str(number), backbone=loaded)
        with torch.no_grad():
            assert torch.equal(loaded.model(input_ids=ids).logits, before)
        assert set(vars(loaded.model)) == names and loaded.model.config.to_dict() == config


def test_a_model_with_another_forward_counts_as_changed(checkpoints: dict[str, str]) -> None:
    model = loading.load(checkpoints["xlm-r"], "masked-lm").model
    state = cache._state(model)
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    assert cache._state(model) != state
    handle.remove()
    assert cache._state(model) == state
    model.forward = lambda **_: None
    assert cache._state(model) != state


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("rate", [1e18, 3e38])
def test_a_training_that_diverges_stops_and_says_where(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, structure: Structure, rate: float
) -> None:
    asked = job(checkpoints["bert"], labelled, structure, warmup=0, schedule="constant_with_warmup")
    faster = asked.optimisation.model_copy(update={"learning_rate": rate})  # settings allow 10 at most
    asked = asked.model_copy(update={"optimisation": faster})
    try:
        train.train(asked, tmp_path / "out")
    except TrainingError as error:
        assert "the training diverged" in str(error) and "step" in str(error) and "of 3" in str(error)
        assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())
    else:  # large, but numbers
        files = [load_file(path) for path in (tmp_path / "out").glob("*.safetensors")]
        assert files and all(torch.isfinite(tensor).all() for file in files for tensor in file.values())
        assert rate < 1e30


def test_a_loss_that_is_no_number_stops_at_its_step(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(checkpoints["bert"], labelled, STRUCTURES["lora"], steps=6)
    loaded = train.load_for(asked)
    calls = []

    def broken(module: torch.nn.Module, args: Any, output: Any) -> Any:
        calls.extend([1] * module.training)  # not the checks before the training
        output.logits = output.logits * (float("nan") if len(calls) == 4 else 1)
        return output

    handle = loaded.model.register_forward_hook(broken)
    with pytest.raises(TrainingError, match=r"step 4 of 6[\s\S]*the loss is nan"):
        train.train(asked, tmp_path / "out", backbone=loaded)
    handle.remove()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_adapter_or_head_that_is_not_finite_is_refused(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, kind: str, value: float
) -> None:
    train.train(job(checkpoints["xlm-r"], labelled, STRUCTURES[kind], steps=1), tmp_path / "out")
    path = tmp_path / "out" / "adapter_model.safetensors"
    whole = load_file(path)
    for name in (min(whole), max(whole)):  # of the adapter, of the head
        broken = {key: tensor.clone() for key, tensor in whole.items()}
        broken[name].view(-1)[-1] = value
        save_file(broken, path, metadata={"format": "pt"})
        loaded = loading.load(checkpoints["xlm-r"], "sequence-classification", ("food", "sports", "travel"))
        with pytest.raises(AdapterFileError, match="not finite"):
            loaded_adapter.load(loaded.model, [tmp_path / "out"], new_modules=loaded.new_modules)


def test_a_prefix_that_fills_the_model_is_refused(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the prefix leaves no room for text"):
        train.train(job(checkpoints["xlm-r"], labelled, Structure(kind="prefix", virtual_tokens=94)), tmp_path / "out")
    assert not list(tmp_path.iterdir())
