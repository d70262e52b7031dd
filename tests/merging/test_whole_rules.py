"""A merging rule is one function: registered, it merges, and a search of λ makes the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import tensors_of, trio

from adamergex import merging
from adamergex.errors import ConfigError
from adamergex.merging.rules import registry


def turned(task: Any, target: Any, source: Any, weight: float) -> Any:
    """The task's tensor with the divergence's part along it taken away: what no chunk alone could know."""
    divergence = target - source
    along = np.vdot(task, divergence) / np.vdot(task, task)
    return task + weight * (divergence - along * task)


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(registry._MORE, "_registered", {})
    return merging.register(merging.rule(turned)).name


def test_a_function_is_a_rule(rule: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    report = merging.merge(**paths, weight=0.5, rule=rule, modules="all", output=tmp_path / "out")
    own, target, source = map(tensors_of, paths.values())
    found = tensors_of(tmp_path / "out")
    assert report.rule == "turned" and report.changed
    searched = merging.merged_tensors(own, target, source, 0.5, rule=rule, modules="all")
    for name, values in found.items():
        if ".lora_" in name:
            wanted = turned(*(tensors[name].double().numpy() for tensors in (own, target, source)), 0.5)
            np.testing.assert_allclose(values.double().numpy(), wanted, rtol=2e-5, atol=1e-6)
        assert torch.equal(values, searched[name]), name


def test_weight_0_gives_the_task_back(rule: str, tmp_path: Path) -> None:
    paths, name = trio(tmp_path, "ia3"), "adapter_model.safetensors"
    merging.merge(**paths, weight=0, rule=rule, output=tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == (paths["task"] / name).read_bytes()


def test_what_a_function_cannot_do_is_said(rule: str, tmp_path: Path) -> None:
    pair: dict[str, Any] = {**trio(tmp_path), "output": tmp_path / "out"}
    task = pair.pop("task")
    with pytest.raises(ConfigError, match="this rule has no divergence"):
        merging.divergence(**pair, rule=rule)
    with pytest.raises(ConfigError, match="rule of whole tensors is for the tensors of modules, in space factors"):
        merging.merge(task=task, **pair, weight=1, rule=rule, space="delta")
    merging.register(merging.rule(cut))
    with pytest.raises(ConfigError, match=r"returns what cannot be written[\s\S]*rule cut[\s\S]*shape \(\d+,\)"):
        merging.merge(task=task, **pair, weight=1, rule="cut")
    with pytest.raises(ConfigError, match="there is no such rule"):
        merging.merge(task=task, **pair, weight=1, rule="turnde")
    assert not (tmp_path / "out").exists()


def cut(task: Any, target: Any, source: Any, weight: float) -> Any:
    return task[0]
