"""Stacks in two processes, and on a model that is placed by a device map."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from test_peft_members import peft_directory
from tiny_models import adapter, inputs, tiny
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.adapters.bottleneck.stack import attach
from commands import preloaded

LANGUAGE = BottleneckConfig.pfeiffer(2, invertible=True)
ROWS = [("sw", "lora"), ("sw",), (), ("lora",)]


def stacked(kind: str, lora: Path) -> PreTrainedModel:
    model = tiny(kind)
    attach(model, adapter(model, LANGUAGE, 1), lora, names=["sw", "lora"])
    model.adapter_stack.train_only("sw", "lora")
    return model.train()


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def work(rank: int, folder: str, kind: str, mixed: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    model = stacked(kind, Path(folder) / "lora")
    own = slice(2 * rank, 2 * rank + 2)
    if mixed:
        model.adapter_stack.set_rows(ROWS[own])
    # Rows without an adapter leave its parameters unused in one process.
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=mixed)
    wrapped(**{name: tensor[own] for name, tensor in inputs(kind, rows=4).items()}).logits.square().mean().backward()
    torch.save(gradients(model), f"{folder}/{rank}.pt")
    dist.barrier()  # one that leaves first can leave the other waiting
    dist.destroy_process_group()


@pytest.mark.parametrize(("kind", "mixed"), [("bert", False), ("llama", True)])
def test_two_processes_have_the_gradients_of_one(kind: str, mixed: bool, tmp_path: Path) -> None:
    lora = peft_directory(tiny(kind), kind, "lora", tmp_path / "lora")
    model = stacked(kind, lora)
    if mixed:
        model.adapter_stack.set_rows(ROWS)
    model(**inputs(kind, rows=4)).logits.square().mean().backward()
    preloaded()
    multiprocessing.start_processes(work, (str(tmp_path), kind, mixed), nprocs=2, start_method="forkserver")
    alone = gradients(model)
    assert alone and all(name.startswith("adapter_stack.adapters.") for name in alone)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradient_checkpointing_with_a_peft_member(kind: str, reentrant: bool, tmp_path: Path) -> None:
    model = stacked(kind, peft_directory(tiny(kind), kind, "lora", tmp_path / "lora"))
    settings = {} if kind == "bert" else {"use_cache": False}
    model(**inputs(kind), **settings).logits.square().mean().backward()
    plain = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(**inputs(kind), **settings).logits.square().mean().backward()
    assert plain.keys() == gradients(model).keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-7)


def test_a_model_placed_by_a_device_map(tmp_path: Path) -> None:
    tiny("xlm-roberta").save_pretrained(tmp_path / "base")
    lora = peft_directory(tiny("xlm-roberta"), "xlm-roberta", "lora", tmp_path / "lora")
    plain, placed = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / "base", **settings).eval()
        for settings in ({}, {"device_map": "cpu"})
    )
    for model in (plain, placed):
        attach(model, adapter(model, LANGUAGE, 1), lora, names=["sw", "lora"])
    batch = inputs("xlm-roberta")
    assert torch.equal(placed(**batch).logits, plain(**batch).logits)
    with placed.using():
        assert not torch.equal(placed(**batch).logits, plain(**batch).logits)
