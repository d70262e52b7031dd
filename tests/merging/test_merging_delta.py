"""Delta space against PEFT's own ΔW: ranks, alphas, patterns and rsLoRA of all kinds, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import delta as delta_oracle
from adapter_files import edit_config, edit_tensors, lora_tensors, trio
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from adamergex.errors import AdapterFileError
from adamergex.merging import delta, merge
from adamergex.structures.targets import Ranks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(12, 10)
        self.v_proj = nn.Linear(12, 8)
        self.out_proj = nn.Linear(8, 12)


class Net(nn.Module):
    """Two layers with modules of the usual names; only its ΔW matter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])


def trained(path: Path, seed: int, **config: Any) -> Path:
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "out_proj"], **config}
    model = get_peft_model(Net(), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(path)
    return path


def peft_deltas(path: Path) -> dict[str, np.ndarray]:
    model = PeftModel.from_pretrained(Net(), path)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().double().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


CONFIGS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True, "r": 3, "lora_alpha": 5},
    {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.q_proj": 3, "out_proj": 5}},
    {"use_rslora": True, "rank_pattern": {r"layers\.0\.q_proj": 7}, "alpha_pattern": {"^layers.0.v_proj": 1}},
    {"rank_pattern": {"proj": 6, "layers.1.v_proj": 1}},
]


@pytest.mark.parametrize("modules", ["all", "attention-qv", "layers.0.v_proj"])
@pytest.mark.parametrize("task", range(len(CONFIGS)))
def test_peft_reads_the_sum_of_what_peft_read(task: int, modules: str, tmp_path: Path) -> None:
    configs = [CONFIGS[task], CONFIGS[(task + 1) % len(CONFIGS)], CONFIGS[(task + 2) % len(CONFIGS)]]
    roles = ("task", "target_reference", "source_reference")
    paths = {role: trained(tmp_path / role, seed, **configs[seed]) for seed, role in enumerate(roles)}
    merge(**paths, weight=0.6, output=tmp_path / "out", space="delta", modules=modules)
    t, g, s = (peft_deltas(path) for path in paths.values())
    found = peft_deltas(tmp_path / "out")
    assert set(found) == set(t)
    for name, value in found.items():
        chosen = modules == "all" or name == modules or (modules == "attention-qv" and "out_proj" not in name)
        want = t[name] + (0.6 * (g[name] - s[name]) if chosen else 0)
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-4, err_msg=name)


def test_patterns_are_read_as_peft_reads_them(tmp_path: Path) -> None:
    for number, settings in enumerate(CONFIGS):
        path = trained(tmp_path / str(number), number, **settings)
        config = json.loads((path / "adapter_config.json").read_text())
        model = PeftModel.from_pretrained(Net(), path)
        for name, module in model.named_modules():
            if hasattr(module, "get_delta_weight"):
                found = Ranks(config)(name.removeprefix("base_model.model."))
                assert found == (module.r["default"], module.lora_alpha["default"]), name


def test_the_rank_is_the_sum_and_the_factors_of_the_task_stay(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_tensors(paths["target_reference"], lora_tensors(7, rank=2))
    edit_config(paths["target_reference"], r=2)
    merge(**paths, weight=0.5, output=tmp_path / "out", space="delta")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 4 + 2 + 4
    assert config["lora_alpha"] == 20
    assert config["rank_pattern"] == {"up_proj": 4}
    assert config["alpha_pattern"] == {"up_proj": 8}


@pytest.mark.parametrize("rank", [1, 3, 8, 12, 50])
def test_truncation_is_the_best_of_its_rank(rank: int) -> None:
    rng = np.random.default_rng(0)
    factors = delta.Factors(rng.standard_normal((12, 30)), rng.standard_normal((20, 12)), 1.5)
    whole = factors.scaling * factors.B @ factors.A
    cut, error = delta.truncate(factors, rank)
    u, s, vt = np.linalg.svd(whole)
    best = (u[:, :20] * s)[:, :rank] @ vt[: min(rank, 20)]
    np.testing.assert_allclose(cut.B @ cut.A, best, rtol=0, atol=1e-10)
    assert error == pytest.approx(np.linalg.norm(whole - best) / np.linalg.norm(whole), abs=1e-12)
    again, _ = delta.truncate(factors._replace(A=-factors.A, B=-factors.B), rank)
    np.testing.assert_allclose(again.B, cut.B, rtol=0, atol=1e-9)  # the signs do not depend on those of the input


def test_truncation_is_reported_for_each_module(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    report = merge(**paths, weight=0.5, output=tmp_path / "out", space="delta", rank=3, modules="all")
    for item in report.modules:
        t, g, s = (delta_oracle(path, item.module, 2.0) for path in paths.values())
        whole = t + 0.5 * (g - s)
        kept = delta_oracle(tmp_path / "out", item.module, 1.0)
        want = np.linalg.norm(whole - kept) / np.linalg.norm(whole)
        assert item.truncation == pytest.approx(want, rel=1e-4)
        assert item.task == pytest.approx(np.linalg.norm(t), rel=1e-5)
        assert item.divergence == pytest.approx(np.linalg.norm(g - s), rel=1e-5)
        assert item.change == pytest.approx(np.linalg.norm(0.5 * (g - s)), rel=1e-5)
    assert "cut off" in str(report)
    assert "truncated to rank 3" in str(report)


def test_norms_are_exact_where_differences_nearly_cancel() -> None:
    rng = np.random.default_rng(1)
    one = delta.Factors(rng.standard_normal((4, 50)).astype(np.float32), rng.standard_normal((40, 4)).astype("f4"), 2.0)
    two = one._replace(B=(one.B * np.float32(1.001)).astype(np.float32))
    want = np.linalg.norm(2.0 * (one.B.astype(float) - two.B) @ one.A.astype(float))
    assert delta.norm(delta.difference(one, two)) == pytest.approx(want, rel=1e-3)


def test_a_rank_pattern_that_is_no_expression(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_config(paths["task"], rank_pattern={"(": 3})
    with pytest.raises(AdapterFileError, match="rank_pattern cannot be read as a regular expression"):
        merge(**paths, weight=0.5, output=tmp_path / "out", space="delta")
