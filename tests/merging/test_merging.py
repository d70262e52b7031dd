"""merge() and divergence() as a whole: what is written, that it is repeatable, and what it costs to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import DTYPES, PREFIX, edit_config, edit_tensors, read, tensors_of, trio

from adamergex import inspect
from adamergex.errors import AdapterFileError, IncompatibleAdaptersError
from adamergex.files import lineage
from adamergex.files.hashing import file_sha256
from adamergex.files.lineage import Lineage
from adamergex.merging import MergeReport, divergence, merge, select
from adamergex.merging.stream import ElementwiseMerge
from adamergex.merging.stream_delta import DeltaMerge

TENSORS = "adapter_model.safetensors"


def with_lineages(paths: dict[str, Path]) -> dict[str, Path]:
    for role, path in paths.items():
        language = "sw" if role == "target_reference" else "en"
        task = {"kind": "classification"} if role == "task" else {"kind": "language-modeling"}
        facts = {"base": {"name": "BASE", "sha256": "b" * 64}, "structure": {"kind": "lora", "rank": 4, "alpha": 8}}
        Lineage(**facts, start="s" * 64, language=language, task=task).write(path)
    return paths


def references(paths: dict[str, Path]) -> dict[str, Path]:
    return {role: path for role, path in paths.items() if role != "task"}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize(
    ("kind", "space", "rule"),
    [
        ("lora", "factors", "adaptive"),
        ("lora", "factors", "multiplicative"),
        ("lora", "delta", "adaptive"),
        ("ia3", "factors", "adaptive"),
        ("ia3", "factors", "additive"),
    ],
)
@pytest.mark.parametrize("weight", [0.37, 0.0])
def test_a_saved_divergence_gives_the_very_bits_of_the_three(
    kind: str, space: str, rule: str, dtype: str, weight: float, tmp_path: Path
) -> None:
    paths = with_lineages(trio(tmp_path, kind, dtype))
    choices: dict[str, Any] = {"space": space, "rule": rule}
    divergence(**references(paths), output=tmp_path / "d", **choices)
    merge(**paths, weight=weight, output=tmp_path / "three", **choices)
    merge(task=paths["task"], divergence=tmp_path / "d", weight=weight, output=tmp_path / "saved", **choices)
    for name in (TENSORS, "adapter_config.json"):
        assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_a_divergence_is_an_adapter_with_a_lineage(tmp_path: Path) -> None:
    paths = with_lineages(trio(tmp_path, dtype="BF16"))
    report = divergence(**references(paths), output=tmp_path / "d")
    assert report.weight is None
    assert report.changed == report.matched == 6
    found = lineage.read(tmp_path / "d")
    assert found is not None
    assert found.is_divergence
    assert found.language == "sw"
    assert found.merge == {"rule": "additive", "space": "factors", "modules": "all", "weight": None, "rank": None}
    for role, path in references(paths).items():
        assert found.parents[role]["sha256"] == file_sha256(path / TENSORS)
    target, source = (read(path) for path in references(paths).values())
    for name, value in read(tmp_path / "d").items():
        assert value == pytest.approx(target[name] - source[name], abs=1e-7)
    assert "Language vector" in (tmp_path / "d" / "README.md").read_text()


@pytest.mark.parametrize("choices", [{}, {"space": "delta"}, {"space": "delta", "rank": 3}], ids=str)
def test_the_same_inputs_give_the_same_bytes(choices: dict[str, Any], tmp_path: Path) -> None:
    paths = with_lineages(trio(tmp_path))
    for name in ("one", "two"):
        merge(**paths, weight=0.5, output=tmp_path / name, **choices)
    for item in sorted((tmp_path / "one").iterdir()):
        assert item.read_bytes() == (tmp_path / "two" / item.name).read_bytes(), item.name
    names = {item.name for item in (tmp_path / "one").iterdir()}
    assert names == {TENSORS, "adapter_config.json", "lineage.json", "README.md", "merge_report.json"}


@pytest.mark.parametrize(("space", "stream"), [("factors", ElementwiseMerge), ("delta", DeltaMerge)])
def test_a_failure_in_the_middle_leaves_nothing(
    space: str, stream: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = trio(tmp_path)
    calls = []

    def fail(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return kept(self, *arguments)

    kept = stream._merged
    monkeypatch.setattr(stream, "_merged", fail)
    with pytest.raises(OSError, match="No space left"):
        merge(**paths, weight=0.5, output=tmp_path / "out", space=space)
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(paths)


def test_lineage_of_a_merge(tmp_path: Path) -> None:
    paths = with_lineages(trio(tmp_path))
    merge(**paths, weight=0.5, output=tmp_path / "out", space="delta")
    found = lineage.read(tmp_path / "out")
    assert found is not None
    assert found.base == {"name": "BASE", "sha256": "b" * 64}
    assert (found.language, found.start) == ("sw", None)
    assert found.task == {"kind": "classification"}
    assert found.structure["rank"] == 12
    assert found.merge == {
        "rule": "additive",
        "space": "delta",
        "modules": "attention-qv",
        "weight": 0.5,
        "rank": None,
    }
    for role, path in paths.items():
        assert found.parents[role]["sha256"] == file_sha256(path / TENSORS)
        assert found.parents[role]["path"] == str(path)
    assert found.versions["adamergex"]
    merge(**paths, weight=0.5, output=tmp_path / "factors")
    factors = lineage.read(tmp_path / "factors")
    assert factors is not None
    assert factors.start == "s" * 64  # still of that start: it can be merged again


def test_the_report_counts_and_measures(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    report = merge(**paths, weight=0.5, output=tmp_path / "out")
    assert (report.matched, report.changed, report.copied, report.guarded) == (4, 4, 2, 0)
    t, g, s = (read(path) for path in paths.values())
    for item in report.modules:
        names = [f"{PREFIX}{item.module}.{factor}.weight" for factor in ("lora_A", "lora_B")]
        assert item.task == pytest.approx(sum((t[name] ** 2).sum() for name in names) ** 0.5, rel=1e-5)
        if item.merged:
            size = sum(((g[name] - s[name]) ** 2).sum() for name in names) ** 0.5
            assert item.divergence == pytest.approx(size, rel=1e-5)
            assert item.change == pytest.approx(size / 2, rel=1e-5)
    saved = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert saved["counts"] == {"matched": 4, "changed": 4, "copied": 2, "guarded": 0}
    assert "model.layers.*.self_attn.q_proj" in str(report)
    assert isinstance(report, MergeReport)


def test_guarded_entries_are_counted_and_stay(tmp_path: Path) -> None:
    paths = trio(tmp_path, "ia3")
    source = tensors_of(paths["source_reference"])
    name = f"{PREFIX}model.layers.0.self_attn.k_proj.ia3_l"
    source[name][2:5] = torch.tensor([[0.0], [-0.0], [5e-5]])
    edit_tensors(paths["source_reference"], source)
    report = merge(**paths, weight=0.5, output=tmp_path / "out")
    assert report.guarded == 3
    ours, task = tensors_of(tmp_path / "out")[name], tensors_of(paths["task"])[name]
    assert torch.equal(ours[2:5], task[2:5])
    assert not torch.equal(ours[5:], task[5:])
    assert "3 entries guarded" in str(report)


def test_heads_of_references_are_ignored_and_listed(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    head = f"{PREFIX}score.weight"
    for number, path in enumerate(paths.values()):
        edit_tensors(path, {**tensors_of(path), head: torch.full((2, 3), float(number))})
    task = {**tensors_of(paths["task"]), f"{PREFIX}ids": torch.arange(5)}  # not floating point: copied as it is
    edit_tensors(paths["task"], task)
    report = merge(**paths, weight=0.5, output=tmp_path / "out")
    ours = tensors_of(tmp_path / "out")
    assert torch.equal(ours[head], torch.zeros(2, 3))
    assert torch.equal(ours[f"{PREFIX}ids"], torch.arange(5))
    assert report.ignored_heads == (head, head)
    assert report.heads == (f"{PREFIX}ids", head)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_large_tensors_are_merged_over_many_chunks(dtype: str, tmp_path: Path) -> None:
    paths = trio(tmp_path, dtype=dtype)
    name = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
    for seed, path in enumerate(paths.values()):
        wide = torch.randn(4, 70_001, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])
        edit_tensors(path, {**tensors_of(path), name: wide})
    merge(**paths, weight=0.5, output=tmp_path / "out", allow_different_start=True)
    t, g, s = (tensors_of(path)[name].float() for path in paths.values())
    ours = tensors_of(tmp_path / "out")[name]
    assert torch.equal(ours, (t + 0.5 * (g - s)).to(DTYPES[dtype]))
    spoilt = tensors_of(paths["target_reference"])
    spoilt[name][3, 69_999] = float("nan")
    edit_tensors(paths["target_reference"], spoilt)
    with pytest.raises(AdapterFileError, match=r"lora_A\.weight\[3, 69999\]"):
        merge(**paths, weight=0.5, output=tmp_path / "again", allow_different_start=True)


def test_files_laid_out_in_another_order_merge_alike(tmp_path: Path) -> None:
    """Tensors are found by name, not by place."""
    paths = trio(tmp_path)
    merge(**paths, weight=0.5, output=tmp_path / "one")
    path = paths["source_reference"]
    file = path / TENSORS
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    names, position, body = sorted(header, reverse=True), 0, b""
    for name in names:
        begin, end = header[name]["data_offsets"]
        body += data[8 + length + begin : 8 + length + end]
        header[name]["data_offsets"] = [position, position := position + end - begin]
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    merge(**paths, weight=0.5, output=tmp_path / "two")
    assert (tmp_path / "one" / TENSORS).read_bytes() == (tmp_path / "two" / TENSORS).read_bytes()


def test_a_merge_of_factors_can_be_merged_again(tmp_path: Path) -> None:
    """It still belongs to the start; only its language is the target's now, so a reference of that one must follow."""
    paths = with_lineages(trio(tmp_path))
    merge(**paths, weight=0.5, output=tmp_path / "once")
    again = {**paths, "task": tmp_path / "once"}
    with pytest.raises(IncompatibleAdaptersError, match="have different languages"):
        merge(**again, weight=0.5, output=tmp_path / "twice")
    swapped = {"target_reference": paths["source_reference"], "source_reference": paths["target_reference"]}
    merge(**{**again, **swapped}, weight=0.5, output=tmp_path / "back")
    for name, value in read(tmp_path / "back").items():
        assert value == pytest.approx(read(paths["task"])[name], abs=1e-6)


@pytest.mark.parametrize(
    ("names", "modules", "chosen"),
    [
        (["a.q_proj", "a.v_proj", "a.k_proj"], "attention-qv", {"a.q_proj", "a.v_proj"}),
        (["a.self.query", "a.self.value", "a.self.key"], "attention-qv", {"a.self.query", "a.self.value"}),
        (["b.SelfAttention.q", "b.SelfAttention.v", "b.SelfAttention.k"], "attention-qv", None),
        (["a.0.x", "a.1.x", "ba.1.x"], r"a\.1\.x", {"a.1.x"}),
        (["layers.1.x", "layers.11.x"], r"layers\.1\..*", {"layers.1.x"}),
        (["a.up", "a.down"], "up|down", {"a.up", "a.down"}),
        (["a.up", "a.down"], "all", {"a.up", "a.down"}),
    ],
)
def test_selections(names: list[str], modules: str, chosen: set[str] | None) -> None:
    assert select(names, modules) == (chosen or {"b.SelfAttention.q", "b.SelfAttention.v"})


def test_inspection_tells_structure_norms_and_lineage(tmp_path: Path) -> None:
    paths = with_lineages(trio(tmp_path))
    merge(**paths, weight=0.5, output=tmp_path / "out", space="delta")
    text = str(inspect(tmp_path / "out"))
    for part in (
        "lora (CAUSAL_LM)",
        "rank        12, alpha 24, scaling 2 (4 modules)",
        "rank        4, alpha 8, scaling 2 (2 modules)",
        "model.layers.*.self_attn.q_proj.lora_A.weight",
        "12x24",
        "language           sw",
        "space delta",
        "source_reference",
    ):
        assert part in text
    found = inspect(paths["task"])
    total = sum((value**2).sum() for value in read(paths["task"]).values())
    assert sum(group.norm**2 for group in found.groups) == pytest.approx(total, rel=1e-9)
    assert found.parameters == sum(value.size for value in read(paths["task"]).values())
    edit_config(paths["task"], peft_type="PREFIX_TUNING")
    assert inspect(paths["task"]).kind == "prefix"


def test_merging_imports_nothing_heavy(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    code = (
        "import sys\nimport adamergex.merging as m, adamergex.merging.inspection\n"
        "m.merge(task=sys.argv[1], target_reference=sys.argv[2], source_reference=sys.argv[3], weight=0.5,"
        " output=sys.argv[4])\n"
        "heavy = {'torch', 'transformers', 'peft', 'pydantic', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    arguments = [str(path) for path in (*paths.values(), tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)
    subprocess.run([sys.executable, "-c", "import adamergex.merging.rules.additive"], env=environment, check=True)


def test_memory_does_not_grow_with_the_adapter(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    name = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
    for path in paths.values():
        edit_tensors(path, {**tensors_of(path), name: torch.randn(4, 4_000_000)})  # 64 MB each
    code = (
        "import sys\nfrom adamergex.merging import merge\n"
        "merge(task=sys.argv[1], target_reference=sys.argv[2], source_reference=sys.argv[3], weight=0.5,"
        " output=sys.argv[4], allow_different_start=True)\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    arguments = [str(path) for path in (*paths.values(), tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, check=True, capture_output=True, text=True
    )
    assert int(run.stdout) / 1024 <= 64
