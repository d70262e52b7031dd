"""Our merges against PEFT's own logits and float64 tensors made by another implementation (see goldens' origin below).

Golden values: peft 0.21.2, transformers 5.23.0, torch 2.13.0, float32 models with two layers; merges in float64 numpy.
Every adapter there began from a start of its own, so factor merges need ``allow_different_start``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import GOLDENS, delta, read
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from adamergex.merging import merge

LAMBDAS = (0.0, 0.3, 1.0)
LORA = ("llama_lora_all", "llama_lora_qv", "xlmr_lora_qv")


def merged(case: str, output: Path, **choices: Any) -> Path:
    folder = GOLDENS / case
    references = {"target_reference": folder / "ref_tgt", "source_reference": folder / "ref_src"}
    if choices.get("rule") == "average":
        del references["source_reference"]
    merge(task=folder / "task", **references, output=output, allow_different_start=True, **choices)
    return output


def expected(case: str) -> dict[str, torch.Tensor]:
    return dict(load_file(GOLDENS / case / "expected.safetensors"))


def logits(case: str, adapter: Path) -> np.ndarray:
    golden = expected(case)
    if case.startswith("llama"):
        base = AutoModelForCausalLM.from_pretrained(GOLDENS / "bases" / "llama", attn_implementation="eager")
    else:
        base = AutoModelForSequenceClassification.from_pretrained(
            GOLDENS / "bases" / "xlmr", attn_implementation="eager"
        )
    model = PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        found = model(input_ids=golden["in.input_ids"], attention_mask=golden["in.attention_mask"]).logits
    return found.numpy()


def compare_logits(case: str, adapter: Path, key: str, tolerance: float = 1e-4) -> None:
    golden = expected(case)
    want, got = golden[f"logits.{key}"].numpy(), logits(case, adapter)
    if want.ndim == 3:  # padded positions of a causal model are not defined
        mask = golden["in.attention_mask"].numpy().astype(bool)
        want, got = want[mask], got[mask]
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


def compare_tensors(case: str, adapter: Path, key: str) -> None:
    golden = {name.removeprefix(f"{key}."): value for name, value in expected(case).items() if name.startswith(key)}
    found = read(adapter)
    assert set(found) == set(golden)
    for name, value in golden.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("weight", LAMBDAS)
@pytest.mark.parametrize("case", LORA)
def test_factors_of_every_module(case: str, weight: float, tmp_path: Path) -> None:
    output = merged(case, tmp_path / "out", weight=weight, modules="all")
    compare_tensors(case, output, f"amx_factor.lam{weight}")
    compare_logits(case, output, f"amx_factor.lam{weight}")


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_by_default_only_query_and_value_of_lora_are_merged(weight: float, tmp_path: Path) -> None:
    output = merged("llama_lora_all", tmp_path / "out", weight=weight)
    compare_logits("llama_lora_all", output, f"amx_factor_attn_qv_only.lam{weight}")


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("case", LORA)
@pytest.mark.parametrize(("rank", "key", "tolerance"), [(None, "amx_delta", 1e-4), (4, "amx_delta_svd_r4", 5e-4)])
def test_deltas(case: str, weight: float, rank: int | None, key: str, tolerance: float, tmp_path: Path) -> None:
    output = merged(case, tmp_path / "out", weight=weight, modules="all", space="delta", rank=rank)
    scaling = 1.0 if rank else 2.0
    stem = f"{key}.lam{weight}.base_model.model."
    for name, value in expected(case).items():
        if name.startswith(stem):
            module = name.removeprefix(stem).removesuffix(".dW")
            np.testing.assert_allclose(delta(output, module, scaling), value.numpy(), rtol=0, atol=2e-5, err_msg=name)
    compare_logits(case, output, f"{key}.lam{weight}", tolerance)


@pytest.mark.parametrize("weight", LAMBDAS)
@pytest.mark.parametrize("case", ["llama_ia3", "xlmr_ia3"])
def test_ia3(case: str, weight: float, tmp_path: Path) -> None:
    output = merged(case, tmp_path / "out", weight=weight)
    compare_tensors(case, output, f"amx.lam{weight}")
    compare_logits(case, output, f"amx.lam{weight}")


@pytest.mark.parametrize("case", LORA)
def test_average(case: str, tmp_path: Path) -> None:
    output = merged(case, tmp_path / "half", weight=0.5, rule="average")
    compare_logits(case, output, "param_average.half_task_reftgt")
    output = merged(case, tmp_path / "third", weight=0.3, rule="average")
    compare_logits(case, output, "param_average.w0.7_0.3_task_reftgt")


def test_average_of_ia3_is_the_weighted_sum(tmp_path: Path) -> None:
    output = merged("xlmr_ia3", tmp_path / "out", weight=0.5, rule="average")
    compare_logits("xlmr_ia3", output, "peft_weighted.half_task_reftgt")


def test_swapped_references_are_another_merge(tmp_path: Path) -> None:
    folder = GOLDENS / "llama_lora_qv"
    merge(
        task=folder / "task",
        target_reference=folder / "ref_src",
        source_reference=folder / "ref_tgt",
        weight=1.0,
        output=tmp_path / "out",
        allow_different_start=True,
    )
    with pytest.raises(AssertionError):
        compare_logits("llama_lora_qv", tmp_path / "out", "amx_factor.lam1.0")


def test_heads_are_those_of_the_task_byte_for_byte(tmp_path: Path) -> None:
    output = merged("xlmr_lora_qv", tmp_path / "out", weight=1.0)
    ours = load_file(output / "adapter_model.safetensors")
    task = load_file(GOLDENS / "xlmr_lora_qv" / "task" / "adapter_model.safetensors")
    heads = [name for name in task if "classifier" in name]
    assert len(heads) == 4
    assert all(torch.equal(ours[name], task[name]) for name in heads)
