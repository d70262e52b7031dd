"""TIES and DARE of task vectors: against their definitions in float64 on ΔW of LoRA and l − 1 of (IA)³."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import (
    DTYPES,
    GOLDENS,
    PREFIX,
    edit_config,
    ia3_config,
    ia3_tensors,
    lora_config,
    lora_tensors,
    near,
    read,
    save,
    tensors_of,
    trio,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from peft import LoraConfig, PeftModel, get_peft_model
from test_merging_bottleneck import trio as bottleneck_trio
from transformers import LlamaConfig, LlamaForCausalLM

from adamergex.adapters import combining
from adamergex.adapters.combining import combine
from adamergex.errors import AdapterFileError, ConfigError, IncompatibleAdaptersError
from adamergex.files import lineage
from adamergex.merging import task_vectors

Vectors = dict[str, np.ndarray]


def scaling(config: dict[str, Any], module: str) -> float:
    """PEFT's α/r, or α/√r, of a module; patterns match the end of its name."""
    patterns = [config.get(key) or {} for key in ("alpha_pattern", "rank_pattern")]
    alpha, rank = (
        next((value for name, value in pattern.items() if f".{module}".endswith(f".{name}")), usual)
        for pattern, usual in zip(patterns, (config["lora_alpha"], config["r"]), strict=True)
    )
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def changes(path: Path) -> Vectors:
    """Module -> ΔW of a LoRA directory, from its files alone."""
    tensors, config = read(path), json.loads((path / "adapter_config.json").read_text())
    found = {}
    for name in tensors:
        if ".lora_A." in name:
            module = name.removesuffix(".lora_A.weight")
            product = tensors[f"{module}.lora_B.weight"] @ tensors[name]
            found[module] = scaling(config, module) * product
    return found


def ties_oracle(vectors: list[np.ndarray], density: float, weights: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Algorithm 1 of 2306.01708, entry by entry."""
    kept = []
    for vector in vectors:
        order = sorted(np.abs(vector).ravel(), reverse=True)
        least = order[max(int(density * vector.size), 1) - 1]
        kept.append(np.where(np.abs(vector) >= least, vector, 0.0).ravel())
    merged = []
    for entries in zip(*kept, strict=True):
        total = sum(entries)
        agree = [(w, e) for w, e in zip(weights, entries, strict=True) if e * total > 0]
        merged.append(sum(w * e for w, e in agree) / len(agree) if agree else 0.0)
    return np.array(merged).reshape(vectors[0].shape)


def pair(paths: dict[str, Path]) -> dict[str, Any]:
    return {"task": paths["task"], "target_reference": paths["target_reference"]}


def strangers(folder: Path) -> dict[str, Path]:
    """Two LoRAs of other ranks, alphas, scalings and starts."""
    one = lora_config(rank=4, alpha=8, alpha_pattern={"v_proj": 3})
    two = lora_config(rank=6, alpha=5, use_rslora=True)
    return {
        "task": save(folder / "task", lora_tensors(1), one),
        "target_reference": save(folder / "target_reference", lora_tensors(2, rank=6), two),
    }


def shared(folder: Path) -> dict[str, Path]:
    """Two LoRAs whose A is nearly the same, as trained ones have it: a big random A, a small B from zero."""
    start, made = lora_tensors(0), {}
    for seed, role in enumerate(("task", "target_reference"), 1):
        noise = lora_tensors(seed)
        tensors = {key: 0.02 * noise[key] if ".lora_B." in key else start[key] + 0.01 * noise[key] for key in start}
        made[role] = save(folder / role, tensors, lora_config())
    return made


@pytest.mark.parametrize("make", [shared, strangers])
@pytest.mark.parametrize(("density", "weights"), [(0.2, None), (0.5, None), (0.7, (1.5, 0.25)), (1.0, None)])
def test_ties_is_that_of_the_paper_on_what_is_added_to_the_weights(
    make: Any, density: float, weights: Any, tmp_path: Path
) -> None:
    paths = make(tmp_path)
    report = combine(**pair(paths), method="ties", density=density, weights=weights, output=tmp_path / "out")
    task, reference, found = (changes(path) for path in (*paths.values(), tmp_path / "out"))
    for module, values in found.items():
        expected = ties_oracle([task[module], reference[module]], density, weights or (1.0, 1.0))
        assert np.linalg.norm(values - expected) <= 1e-6 * np.linalg.norm(expected)
    (item,) = (item for item in report.modules if item.module.endswith("layers.1.mlp.up_proj"))
    module = f"{PREFIX}model.layers.1.mlp.up_proj"
    assert (item.task, item.divergence) == pytest.approx(
        (np.linalg.norm(task[module]), np.linalg.norm(reference[module])), rel=1e-6
    )
    assert item.change == pytest.approx(np.linalg.norm(found[module] - task[module]), rel=1e-4)
    assert (report.space, report.rank, item.truncation) == ("delta", None, None)
    made = lineage.read(tmp_path / "out")
    assert made is not None and made.merge is not None and made.start is None
    assert (made.merge["rule"], made.merge["space"], made.merge["density"]) == ("ties", "delta", density)


def test_the_factor_form_is_another_mixture(tmp_path: Path) -> None:
    """What the task-vector form corrects: TIES of A and B zeroes most of a shared A's information."""
    paths, errors = shared(tmp_path), []
    for method in ("ties", "ties_factors"):
        combine(**pair(paths), method=method, density=0.5, output=tmp_path / method)
        task, reference, found = (changes(path) for path in (*paths.values(), tmp_path / method))
        expected = {module: ties_oracle([task[module], reference[module]], 0.5) for module in task}
        errors.append(max(np.linalg.norm(found[m] - expected[m]) / np.linalg.norm(expected[m]) for m in task))
    assert errors[0] < 1e-6 and errors[1] > 0.3


@pytest.mark.parametrize("make", [shared, strangers])
def test_dare_drops_and_rescales_what_is_added_to_the_weights(make: Any, tmp_path: Path) -> None:
    paths, density, weights = make(tmp_path), 0.3, (0.5, 0.25)
    combine(**pair(paths), method="dare", density=density, weights=weights, seed=3, output=tmp_path / "out")
    task, reference, found = (changes(path) for path in (*paths.values(), tmp_path / "out"))
    kept: list[np.ndarray] = []
    for module, values in found.items():
        parts = weights[0] / density * task[module], weights[1] / density * reference[module]
        choices = np.stack([np.zeros_like(values), parts[0], parts[1], parts[0] + parts[1]])
        distances = np.abs(choices - values)
        assert distances.min(axis=0).max() <= 1e-6 * np.abs(values).max()
        kept.append(distances.argmin(axis=0).ravel())
    drawn = np.concatenate(kept)
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    expected = np.array([0.49, 0.21, 0.21, 0.09])  # the two are drawn apart
    assert_allclose(shares, expected, atol=4 * np.sqrt(expected * (1 - expected) / len(drawn)).max())


def test_dare_has_the_weighted_sum_as_its_mean(tmp_path: Path) -> None:
    """With its default weights 1/2 it averages; on factors that share their A it adds both, twice as much."""
    paths = shared(tmp_path)
    task, reference = (changes(path) for path in paths.values())
    module, ratios = f"{PREFIX}model.layers.0.self_attn.q_proj", {}
    expected = 0.5 * task[module] + 0.5 * reference[module]
    for method in ("dare", "dare_factors"):
        total, draws = np.zeros_like(expected), 60
        for seed in range(draws):
            out = tmp_path / f"{method}-{seed}"
            combine(**pair(paths), method=method, density=0.5, seed=seed, output=out)
            total += changes(out)[module] / draws
        ratios[method] = float((total * expected).sum() / (expected * expected).sum())
    assert ratios["dare"] == pytest.approx(1.0, abs=0.08) and ratios["dare_factors"] == pytest.approx(2.0, abs=0.2)


def test_dare_is_drawn_from_its_seed_the_module_and_the_place_alone(tmp_path: Path) -> None:
    paths, files = trio(tmp_path), []
    for number, (seed, disturbed) in enumerate(((3, 0), (3, 99), (4, 0))):
        torch.manual_seed(disturbed)
        np.random.seed(disturbed)
        combine(**pair(paths), method="dare", density=0.5, seed=seed, output=tmp_path / f"out-{number}")
        files.append((tmp_path / f"out-{number}" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]
    fewer = {}
    for role in ("task", "target_reference"):
        left = {name: tensor for name, tensor in tensors_of(paths[role]).items() if "layers.1" in name}
        fewer[role] = save(tmp_path / "fewer" / role, left, lora_config())
    combine(**pair(fewer), method="dare", density=0.5, seed=3, output=tmp_path / "fewer" / "out")
    every = changes(tmp_path / "out-0")
    for module, values in changes(tmp_path / "fewer" / "out").items():
        assert_array_equal(values, every[module])


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_a_rank_cuts_off_as_little_as_possible_and_says_how_much(method: str, tmp_path: Path) -> None:
    paths, rank = strangers(tmp_path), 5
    combine(**pair(paths), method=method, density=0.5, output=tmp_path / "whole")
    report = combine(**pair(paths), method=method, density=0.5, rank=rank, output=tmp_path / "cut")
    whole, cut = changes(tmp_path / "whole"), changes(tmp_path / "cut")
    errors = {item.module: item.truncation for item in report.modules}
    for module, values in whole.items():
        u, sizes, vt = np.linalg.svd(values)
        best = (u[:, :rank] * sizes[:rank]) @ vt[:rank]
        assert np.linalg.norm(cut[module] - best) <= 1e-5 * np.linalg.norm(values)
        lost = math.sqrt(float(np.sum(sizes[rank:] ** 2))) / float(np.linalg.norm(values))
        assert errors[module.removeprefix(PREFIX)] == pytest.approx(lost, rel=1e-4) and lost > 0.01
    assert all(tensor.shape[0] == rank for name, tensor in read(tmp_path / "cut").items() if "lora_A" in name)
    made = lineage.read(tmp_path / "cut")
    assert made is not None and made.merge is not None
    assert (made.merge["rank"], made.structure["rank"]) == (rank, rank) and f"truncated to rank {rank}" in str(report)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_two_equal_adapters_are_their_own_mixture(dtype: str, tmp_path: Path) -> None:
    path = save(tmp_path / "task", lora_tensors(1), lora_config(), dtype)
    rounding = {"F32": 1e-6, "BF16": 2**-8, "F16": 2**-10}[dtype]
    for method, density in (("ties", 1.0), ("dare", 1.0)):
        out = tmp_path / f"{method}-out"
        combine(task=path, target_reference=path, method=method, density=density, output=out)
        for module, values in changes(out).items():
            assert_allclose(values, changes(path)[module], rtol=rounding, atol=1e-7)
        assert {tensor.dtype for tensor in tensors_of(out).values()} == {DTYPES[dtype]}


def test_peft_reads_the_mixture(tmp_path: Path) -> None:
    """Logits of the adapter in PEFT are those of a base to whose weights the mixtures were added."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))
    base.save_pretrained(tmp_path / "base")

    def fresh() -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()

    for seed, name in enumerate(("task", "target_reference"), 1):
        modules = ["q_proj", "v_proj", "up_proj", "down_proj"]
        made = get_peft_model(fresh(), LoraConfig(r=4, lora_alpha=6, target_modules=modules, task_type="CAUSAL_LM"))
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in made.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(0, 0.2)
        made.save_pretrained(tmp_path / name)
    paths = {name: tmp_path / name for name in ("task", "target_reference")}
    combine(**pair(paths), method="ties", density=0.4, output=tmp_path / "out")
    task, reference, expected = changes(paths["task"]), changes(paths["target_reference"]), fresh()
    with torch.no_grad():
        for module in task:
            mixture = ties_oracle([task[module], reference[module]], 0.4)
            expected.get_submodule(module.removeprefix(PREFIX)).weight += torch.from_numpy(mixture).float()
        ids = torch.arange(20).view(2, 10)
        found = PeftModel.from_pretrained(fresh(), tmp_path / "out").eval()(input_ids=ids).logits
        torch.testing.assert_close(found, expected(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_gates_are_mixed_as_what_they_add_to_one(method: str, tmp_path: Path) -> None:
    paths = trio(tmp_path, "ia3")
    report = combine(**pair(paths), method=method, density=0.5, seed=2, output=tmp_path / "out")
    task, reference, found = (read(path) for path in (paths["task"], paths["target_reference"], tmp_path / "out"))
    for name, values in found.items():
        one, two = task[name] - 1, reference[name] - 1
        if method == "ties":
            assert_allclose(values, 1 + ties_oracle([one, two], 0.5), rtol=1e-6)
        else:
            choices = np.stack([np.zeros_like(one), one, two, one + two])
            assert np.abs(choices - (values - 1)).min(axis=0).max() <= 1e-6
    assert report.kind == "ia3" and report.matched == len(found) == report.changed


def test_what_cannot_be_combined_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = trio(tmp_path / "lora")
    out: dict[str, Any] = {"output": tmp_path / "out"}
    for change in (
        {"density": 0.0},
        {"density": 1.5},
        {"density": math.nan},
        {"method": "soup"},
        {"weights": (1.0,)},
        {"weights": (1.0, -1.0)},
        {"weights": (1.0, math.nan)},
        {"weights": (1.0, math.inf)},
        {"rank": 0},
    ):
        with pytest.raises(ConfigError, match="settings of the combination are not valid"):
            combine(**{**pair(paths), **out, "method": "ties", "density": 0.5, **change})
    gates = trio(tmp_path / "ia3", "ia3")
    for method, rank in (("ties", 3), ("dare_factors", 3)):
        with pytest.raises(ConfigError, match="a rank applies to the ΔW of LoRA only"):
            combine(**pair(gates if rank and method == "ties" else paths), **out, method=method, density=0.5, rank=rank)
    with pytest.raises(IncompatibleAdaptersError, match="dare_factors is not for this structure"):
        combine(**pair(gates), **out, method="dare_factors", density=0.5)
    with pytest.raises(IncompatibleAdaptersError, match="different structures"):
        combine(task=paths["task"], target_reference=gates["task"], **out, method="dare", density=0.5)
    prefix = GOLDENS / "llama_prefix"
    bottlenecks = bottleneck_trio(tmp_path / "bottleneck")
    for others in ({"task": prefix / "task", "target_reference": prefix / "ref_tgt"}, pair(bottlenecks)):
        for method in combining.METHODS:
            with pytest.raises(IncompatibleAdaptersError, match="not for this structure"):
                combine(**others, **out, method=method, density=0.5)
    monkeypatch.setattr(combining, "LARGEST", 1000)
    with pytest.raises(ConfigError, match="too large"):
        combine(**pair(paths), **out, method="ties", density=0.5)
    combine(**pair(paths), output=tmp_path / "cut", method="ties", density=0.5, rank=2)
    monkeypatch.undo()
    edit_config(paths["target_reference"], lora_alpha=4)
    with pytest.raises(IncompatibleAdaptersError, match="rank or alpha"):
        combine(**pair(paths), **out, method="ties_factors", density=0.5)
    stranger = save(tmp_path / "stranger", lora_tensors(77), lora_config())
    with pytest.raises(IncompatibleAdaptersError, match="different random starts"):
        combine(task=paths["task"], target_reference=stranger, **out, method="ties_factors", density=0.5)
    for kind, adapters, tensors in (("lora", paths, lora_tensors(3)), ("ia3", gates, ia3_tensors(3))):
        next(iter(tensors.values())).view(-1)[2] = math.nan
        path = save(tmp_path / f"nan-{kind}", tensors, lora_config() if kind == "lora" else ia3_config())
        with pytest.raises(AdapterFileError, match="not finite"):
            combine(task=adapters["task"], target_reference=path, **out, method="ties", density=0.5)
    assert not (tmp_path / "out").exists()


def test_a_result_beyond_its_dtype_is_refused(tmp_path: Path) -> None:
    big = {name: 200 * tensor for name, tensor in lora_tensors(1).items()}
    paths = [save(tmp_path / name, big, lora_config(), "F16") for name in ("task", "target_reference")]
    with pytest.raises(AdapterFileError, match="does not fit its dtype"):
        combine(task=paths[0], target_reference=paths[1], method="ties", density=0.5, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(
    st.lists(st.tuples(*[st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0])] * 2), min_size=1, max_size=12),
    st.sampled_from([0.01, 0.25, 0.5, 0.8, 1.0]),
)
def test_ties_of_small_vectors_with_equal_sizes_and_zeros(entries: list[tuple[float, float]], density: float) -> None:
    vectors = [np.array(vector) for vector in zip(*entries, strict=True)]
    assert_allclose(task_vectors.ties(vectors, (1.0, 0.5), density), ties_oracle(vectors, density, (1.0, 0.5)))


def test_a_reference_that_adds_nothing_leaves_the_trimmed_task(tmp_path: Path) -> None:
    task = save(tmp_path / "task", near(lora_tensors(0), 1), lora_config())
    zero = {name: 0 * value if ".lora_B." in name else value for name, value in tensors_of(task).items()}
    nothing = save(tmp_path / "nothing", zero, lora_config())
    combine(task=task, target_reference=nothing, method="ties", density=0.5, output=tmp_path / "out")
    for module, values in changes(tmp_path / "out").items():
        assert_allclose(values, task_vectors.trimmed(changes(task)[module], 0.5), rtol=1e-5, atol=1e-7)
