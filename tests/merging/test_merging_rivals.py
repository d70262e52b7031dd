"""Weights by layer, layer swapping, TIES and DARE of factors: float64 oracles, and parity with PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import ia3_tensors, lora_config, lora_tensors, near, read, save, tensors_of, trio
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from peft import PeftModel

from adamergex.adapters.combining import combine
from adamergex.adapters.loaded_adapter import attach, load
from adamergex.errors import ConfigError
from adamergex.files import lineage
from adamergex.files.lineage import Lineage
from adamergex.jobs.settings import Structure
from adamergex.merging import merge, merged_tensors
from adamergex.merging.layers import Swap, by_module, numbered

LAYERS = 5
RTOL, ATOL = 1e-6, 1e-7  # one float32 rounding of a float64 oracle


def deep(path: Path, kind: str) -> dict[str, Path]:
    """Task, target and source reference of five layers that began from one start."""
    start = lora_tensors(0, layers=LAYERS) if kind == "lora" else ia3_tensors(0, layers=LAYERS)
    config = lora_config() if kind == "lora" else {"peft_type": "IA3", "base_model_name_or_path": "BASE"}
    config |= {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": []} if kind == "ia3" else {}
    roles = ("task", "target_reference", "source_reference")
    return {role: save(path / role, near(start, seed), config) for seed, role in enumerate(roles, 1)}


def layer_in(name: str) -> int:
    return int(name.split(".layers.")[1].split(".")[0])


def test_layers_are_numbered_whatever_the_family() -> None:
    names = [
        "decoder.block.1.layer.0.SelfAttention.q",
        "encoder.block.0.layer.0.SelfAttention.q",
        "encoder.block.2.layer.1.DenseReluDense.wi_0",
        "decoder.block.0.layer.2.DenseReluDense.wo",
    ]
    assert numbered(names) == (dict(zip(names, (4, 0, 2, 3), strict=True)), 5)
    assert numbered(["roberta.encoder.layer.3.attention.self.query"]) == (
        {"roberta.encoder.layer.3.attention.self.query": 3},
        4,
    )
    stacked = ["invertible.F", "layers.0.output", "decoder_layers.0.attention"]
    assert numbered(stacked) == ({"invertible.F": 0, "layers.0.output": 0, "decoder_layers.0.attention": 1}, 2)
    assert by_module([0.25, 0.5], stacked) == {"invertible.F": 0.25, stacked[1]: 0.25, stacked[2]: 0.5}


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3), st.integers(0, 9))
def test_swapped_layers_mirror(bottom: int, top: int, transition: int, middle: int) -> None:
    count = bottom + top + 2 * transition + middle
    if bottom + top == 0:
        with pytest.raises(ConfigError, match="cannot be swapped"):
            Swap(bottom, top, transition).weights(count)
        return
    weights = Swap(bottom, top, transition).weights(count)
    assert weights == Swap(top, bottom, transition).weights(count)[::-1]
    assert (weights.count(1.0), weights.count(0.5), weights.count(0.0)) == (bottom + top, 2 * transition, middle)
    with pytest.raises(ConfigError, match="cannot be swapped"):
        Swap(bottom, top, transition).weights(bottom + top + 2 * transition - 1)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_layer_swapping_takes_the_languages_ends_around_the_tasks_middle(tmp_path: Path, kind: str) -> None:
    paths = deep(tmp_path, kind)
    del paths["source_reference"]
    report = merge(**paths, rule="average", weight=Swap(1, 1, 1), modules="all", output=tmp_path / "out")
    task, language, found = read(paths["task"]), read(paths["target_reference"]), read(tmp_path / "out")
    for name, values in found.items():
        expected = {0: language[name], 2: task[name], 4: language[name]}.get(
            layer_in(name), (task[name] + language[name]) / 2
        )
        if layer_in(name) % 2:  # the transition
            assert_allclose(values, expected, rtol=RTOL, atol=ATOL)
        else:
            assert_array_equal(values, expected)
    assert report.layers == (1.0, 0.5, 0.0, 0.5, 1.0) and report.weight == pytest.approx(0.6)
    stored = lineage.read(tmp_path / "out")
    assert stored is not None and stored.merge is not None and not stored.is_divergence
    assert stored.merge["layers"] == [1.0, 0.5, 0.0, 0.5, 1.0]
    assert json.loads((tmp_path / "out" / "merge_report.json").read_text())["layers"] == stored.merge["layers"]


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_weights_by_layer_are_the_merges_of_their_layers(tmp_path: Path, kind: str) -> None:
    paths, weights = deep(tmp_path, kind), [0.0, 0.3, -0.5, 1.0, 0.7]
    merge(**paths, weight=weights, modules="all", output=tmp_path / "out")
    task, target, source = (read(path) for path in paths.values())
    found = read(tmp_path / "out")
    for name, values in found.items():
        weight = weights[layer_in(name)]
        if kind == "lora":
            expected = task[name] + weight * (target[name] - source[name])
        else:
            expected = task[name] * (weight * (target[name] / source[name] - 1) + 1)
        assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    first = [name for name in found if layer_in(name) == 0]
    assert first and all(np.array_equal(found[name], task[name]) for name in first)
    # In memory, and through files: the same bits; and all weights alike are one weight.
    own = tensors_of(paths["task"])
    modules = {name.removeprefix("base_model.model.").rsplit(".", 1 + (kind == "lora"))[0] for name in own}
    resident = merged_tensors(
        *(tensors_of(path) for path in paths.values()), dict(by_module(weights, modules)), kind=kind, modules="all"
    )
    assert_allclose(
        np.concatenate([resident[name].numpy().ravel() for name in sorted(found)]),
        np.concatenate([found[name].ravel() for name in sorted(found)]),
        rtol=1e-6,
        atol=1e-7,
    )
    merge(**paths, weight=[0.4] * LAYERS, modules="all", output=tmp_path / "same")
    merge(**paths, weight=0.4, modules="all", output=tmp_path / "one")
    assert (tmp_path / "same" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "one" / "adapter_model.safetensors"
    ).read_bytes()


def test_weights_by_layer_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for weight, message in (
        ([0.5], "number of weights differs from the number of layers"),
        ([0.5, float("nan")], "not a finite number"),
        ([], "not a finite number"),
        (Swap(2, 1), "cannot be swapped"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge(**paths, weight=weight, output=tmp_path / "out")
    with pytest.raises(ConfigError, match="for the factors of an adapter"):
        merge(**paths, weight=[0.5, 0.5], space="delta", output=tmp_path / "out")
    merge(**paths, weight=[0.0, 0.0], output=tmp_path / "none")  # weights of nothing are no failed merge
    assert not (tmp_path / "out").exists()


def trained(base: Any, folder: Path, seed: int) -> Path:
    """A LoRA on a tiny model from the common start, moved by noise."""
    model = attach(base, Structure(kind="lora", rank=3, alpha=6), task_head=False, base_sha256="b", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    folder.mkdir(parents=True)
    model.save(folder, Lineage(base={"name": "tiny", "sha256": "b"}, structure={"kind": "lora"}, start="s"))
    model.detach()
    return folder


@pytest.mark.parametrize(
    ("method", "peft_name", "density", "weights"),
    [
        ("ties_factors", "ties", 0.4, None),
        ("ties_factors", "ties", 0.7, (0.8, 1.3)),
        ("dare_factors", "dare_linear", 0.5, (0.3, 0.6)),
    ],
)
def test_parity_with_pefts_add_weighted_adapter(
    tiny_encoder: Path, tmp_path: Path, method: str, peft_name: str, density: float, weights: Any
) -> None:
    from transformers import AutoModelForMaskedLM

    base = AutoModelForMaskedLM.from_pretrained(tiny_encoder).eval()
    paths = [trained(base, tmp_path / name, seed) for seed, name in enumerate(("task", "reference"), 1)]
    combine(
        task=paths[0], target_reference=paths[1], method=method, density=density, weights=weights, seed=4,
        output=tmp_path / "ours",
    )  # fmt: skip
    if method == "dare_factors":
        # PEFT draws module by module as the model has them, ours by name: the draws are checked against the oracle,
        # the rest against PEFT with nothing dropped.
        masks = dict(zip(order(paths[0]), draws(paths[0], density, seed=4), strict=True))
        expected = dare_oracle(paths, masks, density, weights)
        for name, values in read(tmp_path / "ours").items():
            assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)
        density = 1.0
    combine(
        task=paths[0], target_reference=paths[1], method=method, density=density, weights=weights,
        output=tmp_path / "compared",
    )  # fmt: skip
    ids = torch.arange(5, 25).view(2, 10)
    ours = load(base, [tmp_path / "compared"])
    with torch.no_grad():
        answered = ours.model(input_ids=ids).logits
    ours.detach()
    theirs = PeftModel.from_pretrained(base, paths[0], adapter_name="task")
    theirs.load_adapter(paths[1], adapter_name="reference")
    theirs.add_weighted_adapter(["task", "reference"], list(weights or (1, 1)), "both", peft_name, density=density)
    theirs.set_adapter("both")
    theirs.eval()  # the new adapter's dropout
    with torch.no_grad():
        torch.testing.assert_close(answered, theirs(input_ids=ids).logits, rtol=1e-5, atol=1e-6)


def order(path: Path) -> list[str]:
    """The tensors in the order in which ours draws: modules sorted, A before B."""
    return sorted(tensors_of(path), key=lambda name: (name.split(".lora_")[0], name))


def draws(path: Path, density: float, seed: int) -> list[list[np.ndarray]]:
    """Two masks, of the task and of the reference, for every tensor."""
    tensors, found = tensors_of(path), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in order(path):
            found.append([torch.bernoulli(torch.full_like(tensors[name], density)).numpy() for _ in range(2)])
    return found


def dare_oracle(paths: list[Path], masks: Any, density: float, weights: Any) -> dict[str, np.ndarray]:
    one, two = (read(path) for path in paths)
    roots = np.sqrt(np.array(weights, np.float64))
    return {
        name: roots[0] * masks[name][0] * one[name] / density + roots[1] * masks[name][1] * two[name] / density
        for name in one
    }


def ties_oracle(task: np.ndarray, reference: np.ndarray, density: float, weights: tuple[float, float]) -> np.ndarray:
    """Trim, elect, disjoint mean (2306.01708, algorithm 1) in float64."""
    kept = []
    for values in (task, reference):
        count = int(density * values.size)
        threshold = np.sort(np.abs(values).ravel())[-count]
        kept.append(np.where(np.abs(values) >= threshold, values, 0.0))
    sign = np.where(kept[0] + kept[1] >= 0, 1, -1)
    agrees = [np.sign(values) == sign for values in kept]
    total = sum(np.sqrt(w) * values * ok for w, values, ok in zip(weights, kept, agrees, strict=True))
    return np.asarray(total / np.maximum(agrees[0].astype(int) + agrees[1], 1))


def test_ties_of_factors_is_trim_elect_and_mean(tmp_path: Path) -> None:
    paths = trio(tmp_path, alpha=6)
    report = combine(
        task=paths["task"], target_reference=paths["target_reference"], method="ties_factors", density=0.5,
        weights=(1.0, 0.5), output=tmp_path / "out",
    )  # fmt: skip
    one, two, found = read(paths["task"]), read(paths["target_reference"]), read(tmp_path / "out")
    for name, values in found.items():
        assert_allclose(values, ties_oracle(one[name], two[name], 0.5, (1.0, 0.5)), rtol=1e-6, atol=1e-7)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    item = next(item for item in report.modules if name.endswith(item.module))
    changed = [found[f"{name}.lora_{part}.weight"] - one[f"{name}.lora_{part}.weight"] for part in "AB"]
    assert item.change == pytest.approx(np.sqrt(sum((part**2).sum() for part in changed)), rel=1e-6)
    made = lineage.read(tmp_path / "out")
    assert made is not None and set(made.parents) == {"task", "target_reference"}
    assert made.merge is not None and (made.merge["rule"], made.merge["density"]) == ("ties_factors", 0.5)


def test_dare_of_factors_is_drawn_from_its_seed_alone(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    files = []
    for number, (seed, disturbed) in enumerate(((3, 0), (3, 99), (4, 0))):
        torch.manual_seed(disturbed)
        before = torch.random.get_rng_state()
        combine(
            task=paths["task"], target_reference=paths["target_reference"], method="dare_factors", density=0.5,
            seed=seed,
            output=tmp_path / f"out-{number}",
        )  # fmt: skip
        assert torch.equal(before, torch.random.get_rng_state())
        files.append((tmp_path / f"out-{number}" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]
