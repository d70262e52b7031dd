"""A merging rule is one function: registered, it merges, and a search of λ makes the same tensors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import tensors_of, trio

from adamergex import merging
from adamergex.errors import ConfigError
from adamergex.files import lineage
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
    with pytest.raises(
        ConfigError, match=r"returns a tensor that cannot be written[\s\S]*rule cut[\s\S]*shape \(\d+,\)"
    ):
        merging.merge(task=task, **pair, weight=1, rule="cut")
    with pytest.raises(ConfigError, match="there is no such rule"):
        merging.merge(task=task, **pair, weight=1, rule="turnde")
    assert not (tmp_path / "out").exists()


def halved(task: Any, target: Any, source: Any, weight: float, *, share: float = 0.5, sign: bool = True) -> Any:
    return task + (1 if sign else -1) * weight * share * (target - source)


def test_keyword_only_parameters_are_settings(rule: str, tmp_path: Path) -> None:
    merging.register(merging.rule(halved))
    paths = trio(tmp_path)
    shared: dict[str, Any] = {**paths, "rule": "halved", "modules": "all"}
    report = merging.merge(**shared, weight=1, output=tmp_path / "default")
    assert report.settings == {"share": 0.5, "sign": True}
    settings: dict[str, Any] = {"share": 1, "sign": False}
    merging.merge(**shared, weight=1, output=tmp_path / "set", settings=settings)
    merging.merge(**{**shared, "rule": "additive"}, weight=-1, output=tmp_path / "wanted")
    own, target, source = map(tensors_of, paths.values())
    searched = merging.merged_tensors(own, target, source, 1, rule="halved", modules="all", settings=settings)
    found, wanted = tensors_of(tmp_path / "set"), tensors_of(tmp_path / "wanted")
    for name, values in found.items():
        assert torch.equal(values, searched[name]) and torch.equal(values, wanted[name]), name
    recorded = json.loads((tmp_path / "set" / "merge_report.json").read_text())["settings"]
    assert recorded == settings and lineage.read(tmp_path / "set").merge["settings"] == settings  # type: ignore[index, union-attr]
    for wrong, problem in (
        ({"shares": 1.0}, r"no such setting[\s\S]*shares[\s\S]*share, sign"),
        ({"share": "1"}, r"another type[\s\S]*share[\s\S]*float"),
        ({"share": True}, r"another type[\s\S]*share[\s\S]*float"),
    ):
        with pytest.raises(ConfigError, match=problem):
            merging.merge(**shared, weight=1, output=tmp_path / "no", settings=wrong)
    with pytest.raises(ConfigError, match="rule additive has no such setting"):
        merging.merge(**{**shared, "rule": "additive"}, weight=1, output=tmp_path / "no", settings={"share": 1.0})
    for function in (bare, infinite, array):
        with pytest.raises(ConfigError, match=r"needs a plain name and a default[\s\S]*share"):
            merging.rule(function)
    for value in (float("nan"), 1e16, 10**5000, np.float64(0.5)):
        with pytest.raises(ConfigError, match=r"has another type, or is too large[\s\S]*settings\.share"):
            merging.merge(**shared, weight=1, output=tmp_path / "no", settings={"share": value})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="given by name"):
        merging.merge(**shared, weight=1, output=tmp_path / "no", settings=["share"])  # type: ignore[arg-type]
    chosen = merging.rule(halved)
    whole, same = (registry.with_settings(chosen, {"share": value}).settings for value in (1, 1.0))
    assert whole == same and type(whole["share"]) is float  # one step, however it is written
    assert pickle.loads(pickle.dumps(merging.RULES["additive"])).name == "additive"
    with pytest.raises(ConfigError, match="this name is taken"):
        merging.register(chosen._replace(name="adaptive"))
    assert not (tmp_path / "no").exists()


def infinite(task: Any, target: Any, source: Any, weight: float, *, share: float = float("inf")) -> Any:
    return task


def array(task: Any, target: Any, source: Any, weight: float, *, share: Any = np.float64(0.5)) -> Any:  # noqa: B008
    return task


def bare(task: Any, target: Any, source: Any, weight: float, *, share: float) -> Any:
    return task


def cut(task: Any, target: Any, source: Any, weight: float) -> Any:
    return task[0]
