"""Bottleneck adapters in our layout: an oracle for every rule and dtype, laws, mutations, and the merge on a model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import DTYPES, Tensors, edit_tensors, near, read, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM

from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.adapters.bottleneck.stack import attach
from adamergex.adapters.formats.adapterhub import AdapterFiles, HeadFiles, import_adapter, read_adapter, write_adapter
from adamergex.cli.main import main
from adamergex.errors import (
    AdapterFileError,
    ConfigError,
    IncompatibleAdaptersError,
    NothingMergedError,
)
from adamergex.files.lineage import Lineage
from adamergex.merging import divergence, merge, merged_tensors

MADX = Path(__file__).parent.parent / "goldens" / "g1_madx"
ROLES = ("task", "target_reference", "source_reference")
CONFIG = BottleneckConfig.pfeiffer(2, attention=True, invertible=True)
FILE = "adapter_model.safetensors"
STEP = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-23, "F64": 2.0**-52}
HEAD = HeadFiles({"name": "task", "num_labels": 2}, {"classifier.weight": torch.arange(8.0).reshape(2, 4)})


def bottlenecks(seed: int, width: int = 8, layers: int = 2) -> Tensors:
    """Random tensors under our names; an odd embedding, so that the invertible halves differ."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    shapes = {"down": (width // 2, width), "up": (width, width // 2)}
    for layer in range(layers):
        for where in ("attention", "output"):
            for part, shape in shapes.items():
                tensors[f"layers.{layer}.{where}.{part}.weight"] = torch.randn(shape, generator=generator)
                tensors[f"layers.{layer}.{where}.{part}.bias"] = torch.randn(shape[:1], generator=generator)
    for half, (wide, out) in {"F": (5, 4), "G": (4, 5)}.items():
        for part, shape in {"0": (2, wide), "2": (out, 2)}.items():
            tensors[f"invertible.{half}.{part}.weight"] = torch.randn(shape, generator=generator)
            tensors[f"invertible.{half}.{part}.bias"] = torch.randn(shape[:1], generator=generator)
    return tensors


def write(path: Path, tensors: Tensors, dtype: str = "F32", config: BottleneckConfig = CONFIG, **fields: Any) -> Path:
    cast = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
    return write_adapter(path, AdapterFiles(path.name, config, cast, metadata={"model_name": "BASE"}, **fields))


def trio(path: Path, dtype: str = "F32", start: int = 0) -> dict[str, Path]:
    """Three adapters that began from one start, the task with a head."""
    tensors = bottlenecks(start)
    return {
        role: write(path / role, near(tensors, seed), dtype, head=HEAD if role == "task" else None)
        for seed, role in enumerate(ROLES, 1)
    }


def oracle(rule: str, t: np.ndarray, g: np.ndarray, s: np.ndarray, weight: float) -> np.ndarray:
    if rule == "average":
        return (1 - weight) * t + weight * g
    if rule in ("adaptive", "additive"):
        return t + weight * (g - s)
    return np.where(np.abs(s) < 1e-4, t, t * (weight * (g / np.where(s == 0, 1, s) - 1) + 1))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("rule", ["adaptive", "additive", "multiplicative", "average"])
def test_every_rule_and_dtype(rule: str, dtype: str, tmp_path: Path) -> None:
    """Every tensor, the invertible blocks' too."""
    paths = trio(tmp_path, dtype)
    t, g, s = (read(path) for path in paths.values())
    if rule == "average":
        del paths["source_reference"]
    report = merge(**paths, weight=0.7, output=tmp_path / "out", rule=rule)
    assert (report.kind, report.matched, report.changed) == ("bottleneck", 6, 6)
    found = read(tmp_path / "out")
    assert set(found) == set(t) and {value.dtype for value in tensors_of(tmp_path / "out").values()} == {DTYPES[dtype]}
    for name, value in found.items():
        want = oracle(rule, t[name], g[name], s[name], 0.7)
        slack = 4e-6 * (np.abs(want) + np.abs(t[name]) + np.abs(g[name]) + np.abs(s[name])) if dtype != "F64" else 1e-12
        np.testing.assert_array_less(np.abs(value - want), STEP[dtype] * np.abs(want) + slack + 1e-7, err_msg=name)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    weight=st.floats(-2, 2, width=32),
    dtype=st.sampled_from(sorted(DTYPES)),
    rule=st.sampled_from(["adaptive", "multiplicative"]),
)
def test_laws(seed: int, weight: float, dtype: str, rule: str) -> None:
    """λ = 0, and equal references, give the task's bytes; a saved divergence gives those of the three adapters."""
    with TemporaryDirectory() as folder:
        path = Path(folder)
        paths = trio(path, dtype, seed)
        merge(**paths, weight=0.0, output=path / "zero", rule=rule)
        assert (path / "zero" / FILE).read_bytes() == (paths["task"] / FILE).read_bytes()
        references = {role: paths[role] for role in ROLES[1:]}
        # Three adapters of other starts: their lineage is what a divergence goes by.
        for adapter in paths.values():
            Lineage(start="a" * 64).write(adapter)
        divergence(**references, output=path / "d", rule=rule)
        merged_of = {"task": paths["task"], "weight": weight or 1.0, "rule": rule}
        try:
            merge(**merged_of, **references, output=path / "out")
        except NothingMergedError:
            return
        merge(**merged_of, divergence=path / "d", output=path / "again")
        assert (path / "out" / FILE).read_bytes() == (path / "again" / FILE).read_bytes()
        with pytest.raises(NothingMergedError):
            same = dict.fromkeys(ROLES[1:], paths["target_reference"])
            merge(**merged_of, **same, output=path / "equal")


def test_task_equal_to_source_at_weight_one_gives_the_target(tmp_path: Path) -> None:
    paths = trio(tmp_path, "F64")
    edit_tensors(paths["task"], tensors_of(paths["source_reference"]))
    merge(**paths, weight=1.0, output=tmp_path / "out")
    for name, value in read(tmp_path / "out").items():
        np.testing.assert_allclose(value, read(paths["target_reference"])[name], rtol=0, atol=1e-12)


def test_modules_can_be_selected(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    report = merge(**paths, weight=0.5, output=tmp_path / "out", modules="invertible.*")
    assert (report.matched, report.copied) == (2, 4)
    task, ours = tensors_of(paths["task"]), tensors_of(tmp_path / "out")
    assert {name for name in task if not torch.equal(task[name], ours[name])} == {n for n in task if "invertible" in n}


def test_the_head_is_the_tasks_and_two_merges_are_the_same_bytes(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for name in ("one", "two"):
        merge(**paths, weight=0.5, output=tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert {"head_config.json", "model_head.safetensors", "lineage.json", "merge_report.json", "README.md"} < set(files)
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for name in ("head_config.json", "model_head.safetensors", "adapter_config.json"):
        before = json.loads if name == "adapter_config.json" else bytes  # key order and line ends apart
        assert before((tmp_path / "one" / name).read_bytes()) == before((paths["task"] / name).read_bytes())
    divergence(target_reference=paths["task"], source_reference=paths["source_reference"], output=tmp_path / "d",
               allow_different_start=True)  # fmt: skip
    assert not (tmp_path / "d" / "model_head.safetensors").exists()
    head = read_adapter(tmp_path / "one").head
    assert head is not None and torch.equal(head.tensors["classifier.weight"], HEAD.tensors["classifier.weight"])
    swapped = {"target_reference": paths["source_reference"], "source_reference": paths["target_reference"]}
    merge(task=paths["task"], **swapped, weight=0.5, output=tmp_path / "swapped")
    assert (tmp_path / "swapped" / FILE).read_bytes() != (tmp_path / "one" / FILE).read_bytes()


@pytest.mark.parametrize("case", ["xlmr_seqbn", "bert_seqbn", "xlmr_leaveout"])
def test_a_merge_of_imported_adapters_computes_on_the_model(case: str, tmp_path: Path) -> None:
    """AdapterHub's own files, converted; the merged directory against tensors merged here in float64."""
    imported = {}
    for role, name in zip(ROLES, ("lang", "lang2", "lang"), strict=True):
        files = import_adapter(MADX / case / "adapters" / name, tmp_path / f"{role}-{name}")
        moved = near(dict(files.tensors), 7, 0.05) if role == "task" else files.tensors
        imported[role] = write_adapter(tmp_path / role, replace(files, tensors=moved))
    with pytest.raises(IncompatibleAdaptersError, match="mean cosine .* of the down-projections"):
        merge(**imported, weight=0.4, output=tmp_path / "out")
    merge(**imported, weight=0.4, output=tmp_path / "out", allow_different_start=True)
    t, g, s = (read(path) for path in imported.values())
    by_hand = {name: torch.from_numpy(t[name] + 0.4 * (g[name] - s[name])).float() for name in t}
    ids = torch.tensor([[0, 11, 12, 13, 2]])
    outputs = []
    for source in (tmp_path / "out", replace(read_adapter(imported["task"]), tensors=by_hand), None):
        base = AutoModelForMaskedLM.from_pretrained(MADX / "bases" / case.split("_")[0] / "base_lm").eval()
        model = base if source is None else attach(base, source)
        with torch.no_grad():
            outputs.append(model(input_ids=ids).logits)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-4)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-2


def mutated(path: Path, change: str) -> None:
    """A reference that does not fit the task any more."""
    tensors = tensors_of(path)
    down = "layers.1.output.down.weight"
    if change == "drop a tensor":
        del tensors[down]
    elif change == "drop a module":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.1.output")}
    elif change == "drop the invertible block":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("invertible")}
    elif change == "add a layer":
        more = {name: tensor for name, tensor in tensors.items() if name.startswith("layers.1")}
        tensors |= {name.replace("layers.1", "layers.2"): tensor.clone() for name, tensor in more.items()}
    elif change == "another width":
        for part, shape in {"down.weight": (3, 8), "down.bias": (3,), "up.weight": (8, 3)}.items():
            tensors[f"layers.1.output.{part}"] = torch.zeros(shape)
    elif change == "one shape":
        tensors[down] = torch.zeros(3, 8)
    elif change == "not finite":
        tensors[down][0, 0] = float("inf")
    elif change == "a dtype":
        tensors[down] = tensors[down].half()
    elif change == "a foreign name":
        tensors["roberta.encoder.layer.1.output.adapters.sw.adapter_down.0.weight"] = tensors.pop(down)
    edit_tensors(path, tensors)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("drop a tensor", AdapterFileError, "do not fit together"),
        ("drop a module", IncompatibleAdaptersError, "missing layers.1.output"),
        ("drop the invertible block", IncompatibleAdaptersError, "missing invertible.F, invertible.G"),
        ("add a layer", IncompatibleAdaptersError, "extra layers.2.attention"),
        ("another width", IncompatibleAdaptersError, "the shape of layers.1.output"),
        ("one shape", AdapterFileError, "do not fit together"),
        ("not finite", AdapterFileError, "not finite"),
        ("a dtype", IncompatibleAdaptersError, "the dtype of layers.1.output"),
        ("a foreign name", AdapterFileError, "adamergex convert"),
    ],
)
def test_another_adapter_is_refused(change: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    mutated(paths["source_reference"], change)
    with pytest.raises(error, match=message):
        merge(**paths, weight=0.5, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (replace(CONFIG, activation="gelu"), "non_linearity"),
        (replace(CONFIG, scaling=2.0), "scaling"),
        (replace(CONFIG, reuse_norm=False), "original_ln_before"),
        (replace(CONFIG, leave_out=(2,)), "leave_out"),
    ],
)
def test_another_configuration_is_refused(config: BottleneckConfig, name: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    paths["target_reference"] = write(tmp_path / "other", near(bottlenecks(0), 2), config=config)
    with pytest.raises(IncompatibleAdaptersError, match=f"{name} in the config differs"):
        merge(**paths, weight=0.5, output=tmp_path / "out")
    paths["target_reference"] = write(tmp_path / "same", near(bottlenecks(0), 2), config=replace(CONFIG, dropout=0.1))
    merge(**paths, weight=0.5, output=tmp_path / "out")


def test_another_base_or_start_is_refused(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    other = tmp_path / "other"
    files = AdapterFiles("x", CONFIG, near(bottlenecks(0), 2), metadata={"model_name": "OTHER"})
    with pytest.raises(IncompatibleAdaptersError, match="different base models"):
        merge(**(paths | {"target_reference": write_adapter(other, files)}), weight=0.5, output=tmp_path / "out")
    foreign = paths | {"source_reference": write(tmp_path / "foreign", bottlenecks(5))}
    with pytest.raises(IncompatibleAdaptersError, match="(?s)mean cosine .* override with --allow-diff") as error:
        merge(**foreign, weight=0.5, output=tmp_path / "out")
    assert "--space delta" not in str(error.value)  # a way out for LoRA only
    merge(**foreign, weight=0.5, output=tmp_path / "out", allow_different_start=True)
    for role, path in paths.items():
        Lineage(start=("a" if role == "task" else "b") * 64).write(path)
    with pytest.raises(IncompatibleAdaptersError, match="start bbbb"):
        merge(**paths, weight=0.5, output=tmp_path / "again")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_head_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    tensors = {"classifier.bias": torch.ones(3, dtype=torch.int32), "classifier.weight": torch.ones(2, 400_000)}
    tensors["classifier.weight"][1, 399_999] = value  # in the last chunk of several
    save_file(tensors, paths["task"] / "model_head.safetensors")
    with pytest.raises(AdapterFileError, match=r"model_head\.safetensors: classifier\.weight"):
        merge(**paths, weight=0.5, output=tmp_path / "out")
    (paths["task"] / "model_head.safetensors").write_bytes(b"damaged")
    with pytest.raises(AdapterFileError, match="truncated"):
        merge(**paths, weight=0.5, output=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == set(ROLES)


def test_a_pickled_head_is_to_be_converted(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    head = paths["task"] / "pytorch_model_head.bin"
    torch.save({"classifier.weight": torch.ones(2, 4)}, head)
    merge(**paths, weight=0.5, output=tmp_path / "out")
    assert not (tmp_path / "out" / head.name).exists()  # the safetensors beside it is the head
    (paths["task"] / "model_head.safetensors").unlink()
    with pytest.raises(AdapterFileError, match="adamergex convert"):
        merge(**paths, weight=0.5, output=tmp_path / "again")


def test_adapterhubs_pickles_are_to_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = MADX / "xlmr_seqbn" / "adapters" / "lang"
    arguments = ["merge", "--task", str(hub), "--target-reference", str(hub), "--source-reference", str(hub)]
    assert main([*arguments, "--weight", "0.5", "--output", str(tmp_path / "out")]) == 2
    assert "convert it once with adamergex convert" in capsys.readouterr().err
    other = tmp_path / "dialect"
    shutil.copytree(trio(tmp_path / "x")["task"], other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"config": "pfeiffer[reduction_factor=2]"}))
    with pytest.raises(AdapterFileError, match="another dialect"):
        merge(task=other, target_reference=other, source_reference=other, weight=1, output=tmp_path / "out")
    save_file({}, other / FILE)
    with pytest.raises(AdapterFileError, match="no bottlenecks"):
        merge(task=other, target_reference=other, source_reference=other, weight=1, output=tmp_path / "out")


def test_options_of_other_structures_are_refused(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for choices in ({"space": "delta"}, {"span": "whole"}, {"form": "left"}):
        with pytest.raises(ConfigError):
            merge(**paths, weight=0.5, output=tmp_path / "out", **choices)


def test_resident_tensors_give_the_bytes_of_files(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    merge(**paths, weight=0.7, output=tmp_path / "out")
    found = merged_tensors(*(tensors_of(path) for path in paths.values()), 0.7, kind="bottleneck")
    assert all(torch.equal(found[name], value) for name, value in tensors_of(tmp_path / "out").items())


def test_cards_and_lineages_name_the_structure(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    merge(**paths, weight=0.5, output=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert told["structure"] == {"kind": "bottleneck"} and told["base"]["name"] == "BASE"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "attach(model, " in card and "PeftModel" not in card


def test_merging_bottlenecks_loads_no_torch(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    arguments = {role: str(path) for role, path in paths.items()} | {"output": str(tmp_path / "out")}
    code = (
        f"import sys; from adamergex import merge; merge(**{arguments}, weight=0.5)\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
