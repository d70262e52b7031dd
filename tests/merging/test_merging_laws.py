"""Laws that hold for every structure, rule, dtype and space; and float64 oracles of the formulas."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from adapter_files import DTYPES, delta, edit_tensors, ia3_tensors, lora_tensors, near, read, tensors_of, trio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adamergex.merging import RULES, merge, merged_tensors
from adamergex.merging.rules.multiplicative import EPSILON

KINDS = {"lora": lora_tensors, "ia3": ia3_tensors}
WEIGHTS = st.floats(-2, 2, width=32)
VALUES = hnp.arrays(np.float32, (3, 7), elements=st.floats(-100, 100, width=32))
# Largest rounding of one stored value, relative.
STEP = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-23, "F64": 2.0**-52}


@given(task=VALUES, reference=VALUES, weight=WEIGHTS)
@pytest.mark.parametrize("name", ["additive", "multiplicative"])
def test_equal_references_give_the_task_back(name: str, task: np.ndarray, reference: np.ndarray, weight: float) -> None:
    rule = RULES[name]
    merged = rule.shift(task, rule.divergence(reference, reference.copy()), weight)
    np.testing.assert_array_equal(merged, task)


@given(task=VALUES, target=VALUES, source=VALUES)
@pytest.mark.parametrize("name", sorted(RULES))
def test_weight_zero_gives_the_task_back(name: str, task: np.ndarray, target: np.ndarray, source: np.ndarray) -> None:
    rule = RULES[name]
    np.testing.assert_array_equal(rule.shift(task, rule.divergence(target, source), 0.0), task)


@given(target=VALUES, source=VALUES)
@pytest.mark.parametrize("name", ["additive", "multiplicative"])
def test_task_equal_to_source_at_weight_one_gives_the_target(name: str, target: np.ndarray, source: np.ndarray) -> None:
    rule = RULES[name]
    merged = rule.shift(source, rule.divergence(target, source), 1.0)
    guarded = rule.guarded(source) if rule.guarded else np.zeros(source.shape, bool)
    scale = np.maximum(np.abs(target), np.abs(source)).max()
    np.testing.assert_allclose(merged[~guarded], target[~guarded], rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_array_equal(merged[guarded], source[guarded])


@given(task=VALUES, target=VALUES, source=VALUES, weight=WEIGHTS)
def test_rules_never_change_their_arguments_and_stay_finite(
    task: np.ndarray, target: np.ndarray, source: np.ndarray, weight: float
) -> None:
    for rule in RULES.values():
        copies = task.copy(), target.copy(), source.copy()
        divergence = rule.divergence(target, source)
        kept = divergence.copy()
        merged = rule.shift(task, divergence, weight)
        assert np.isfinite(merged).all()
        np.testing.assert_array_equal(divergence, kept)
        for now, then in zip((task, target, source), copies, strict=True):
            np.testing.assert_array_equal(now, then)


@given(task=VALUES, target=VALUES, source=VALUES, weight=WEIGHTS)
def test_torch_and_numpy_agree(task: np.ndarray, target: np.ndarray, source: np.ndarray, weight: float) -> None:
    for rule in RULES.values():
        ours = rule.shift(task, rule.divergence(target, source), weight)
        one, two, three = (torch.from_numpy(array) for array in (task, target, source))
        theirs = rule.shift(one, rule.divergence(two, three), weight)
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-6, atol=1e-6)


def test_the_guard_is_one_where_the_source_is_nearly_zero() -> None:
    rule = RULES["multiplicative"]
    source = np.array([0.0, -0.0, EPSILON / 2, -EPSILON / 2, EPSILON, 2.0], np.float32)
    target = np.full(6, 3.0, np.float32)
    np.testing.assert_array_equal(rule.divergence(target, source)[:4], 1.0)
    np.testing.assert_allclose(rule.divergence(target, source)[4:], [3e4, 1.5], rtol=1e-6)


def oracle(kind: str, rule: str, t: np.ndarray, g: np.ndarray, s: np.ndarray, weight: float) -> np.ndarray:
    """The formulas of METHOD, in float64, written down once more."""
    if rule == "average":
        return (1 - weight) * t + weight * g
    if (rule == "adaptive" and kind == "lora") or rule == "additive":
        return t + weight * (g - s)
    return np.where(np.abs(s) < EPSILON, t, t * (weight * (g / np.where(s == 0, 1, s) - 1) + 1))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("rule", ["adaptive", "additive", "multiplicative", "average"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_rule_on_every_structure_and_dtype(kind: str, rule: str, dtype: str, tmp_path: Path) -> None:
    paths = trio(tmp_path, kind, dtype)
    merge(**paths, weight=0.7, output=tmp_path / "out", rule=rule, modules="all")
    t, g, s = (read(path) for path in paths.values())
    found = read(tmp_path / "out")
    assert set(found) == set(t)
    assert {value.dtype for value in tensors_of(tmp_path / "out").values()} == {DTYPES[dtype]}
    for name, value in found.items():
        want = oracle(kind, rule, t[name], g[name], s[name], 0.7)
        # One rounding to the stored dtype, and the float32 arithmetic before it (ratios of LoRA entries are large).
        slack = 4e-6 * (np.abs(want) + np.abs(t[name]) + np.abs(g[name]) + np.abs(s[name])) if dtype != "F64" else 1e-12
        np.testing.assert_array_less(np.abs(value - want), STEP[dtype] * np.abs(want) + slack + 1e-7, err_msg=name)


@pytest.mark.parametrize("space", ["factors", "delta"])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("rule", ["adaptive", "average"])
def test_weight_zero_writes_the_bytes_of_the_task(rule: str, dtype: str, space: str, tmp_path: Path) -> None:
    for kind in ("lora", "ia3") if space == "factors" else ("lora",):
        paths = trio(tmp_path / kind, kind, dtype)
        merge(**paths, weight=0.0, output=tmp_path / kind / "out", space=space, rule=rule, modules="all")
        for name, value in tensors_of(paths["task"]).items():
            ours = tensors_of(tmp_path / kind / "out")[name]
            assert ours.dtype == value.dtype
            assert torch.equal(ours.view(torch.uint8), value.view(torch.uint8)), name


@pytest.mark.parametrize("space", ["factors", "delta"])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_module_whose_references_agree_keeps_its_bits(dtype: str, space: str, tmp_path: Path) -> None:
    """Also negative zeros: -0 + λ·0 would be +0."""
    paths = trio(tmp_path, "lora", dtype)
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    task, source = tensors_of(paths["task"]), tensors_of(paths["source_reference"])
    for factor in ("lora_A", "lora_B"):
        name = f"{stem}.{factor}.weight"
        task[name][0] = -0.0
        source[name] = tensors_of(paths["target_reference"])[name]
    edit_tensors(paths["task"], task)
    edit_tensors(paths["source_reference"], source)
    report = merge(**paths, weight=0.5, output=tmp_path / "out", space=space)
    ours = tensors_of(tmp_path / "out")
    for factor in ("lora_A", "lora_B"):
        name = f"{stem}.{factor}.weight"
        assert torch.equal(ours[name].view(torch.uint8), task[name].view(torch.uint8))
    kept = next(item for item in report.modules if item.module.endswith("0.self_attn.q_proj"))
    assert (kept.merged, kept.changed, kept.change) == (True, False, 0.0)
    assert report.changed == 3


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), weight=WEIGHTS, dtype=st.sampled_from(sorted(DTYPES)))
def test_laws_through_files(seed: int, weight: float, dtype: str) -> None:
    """Task = source at weight 1 gives the target; in both spaces the merge is what the oracle says."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = trio(folder, "lora", dtype)
        start = near(lora_tensors(0), seed)
        edit_tensors(paths["task"], {key: value.to(DTYPES[dtype]) for key, value in start.items()})
        as_source = {**paths, "task": paths["source_reference"]}
        merge(**as_source, weight=1.0, output=folder / "target", modules="all")
        for key, value in read(paths["target_reference"]).items():
            np.testing.assert_allclose(read(folder / "target")[key], value, rtol=2 * STEP[dtype], atol=2e-6)
        merge(**paths, weight=weight or 0.5, output=folder / "delta", space="delta", modules="all")
        module = "model.layers.1.mlp.up_proj"
        want = delta(paths["task"], module, 2.0) + (weight or 0.5) * (
            delta(paths["target_reference"], module, 2.0) - delta(paths["source_reference"], module, 2.0)
        )
        slack = 40 * STEP[dtype] * np.abs(want).max() + 1e-5
        np.testing.assert_allclose(delta(folder / "delta", module, 2.0), want, rtol=0, atol=slack)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("rule", ["adaptive", "average"])
def test_tensors_in_memory_are_those_of_the_file(kind: str, rule: str, tmp_path: Path) -> None:
    paths = trio(tmp_path, kind)
    merge(**paths, weight=0.3, output=tmp_path / "out", rule=rule)
    task, target, source = (tensors_of(path) for path in paths.values())
    merged = merged_tensors(task, target, source, 0.3, kind=kind, rule=rule)
    for name, value in tensors_of(tmp_path / "out").items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-7)
    assert all(value is task[name] for name, value in merged_tensors(task, target, source, 0.0, kind=kind).items())


def test_names_of_a_live_model_are_understood() -> None:
    live = {name.replace(".weight", ".default.weight"): value for name, value in lora_tensors(0).items()}
    others = [near(live, seed) for seed in (1, 2)]
    merged = merged_tensors(live, *others, 0.5)
    changed = {name for name in live if not torch.equal(merged[name], live[name])}
    assert changed == {name for name in live if "q_proj" in name or "v_proj" in name}
