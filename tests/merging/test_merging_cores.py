"""Work shared by threads gives what one thread gives: the same bytes, the same report, the same error."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_files import PREFIX, edit_tensors, lora_config, lora_tensors, near, save, tensors_of, trio

from adamergex.cli.main import main
from adamergex.errors import AdapterFileError
from adamergex.files import hashing, lineage
from adamergex.files.directory import (
    CHUNK,
    TENSORS,
    AdapterDirectory,
    SafetensorsWriter,
    TensorInfo,
    TensorReader,
)
from adamergex.files.hashing import Digests, file_sha256
from adamergex.merging import RULES, divergence, merge, stream
from adamergex.merging.cores import cores, shared

ROLES = ("task", "target_reference", "source_reference")


def large_trio(path: Path, dtype: str) -> dict[str, Path]:
    """Modules of several chunks, the last of them not full, beside modules of one; a head in the task."""
    rank = 96
    start = lora_tensors(0, rank=rank, modules=("self_attn.q_proj", "self_attn.v_proj"), width=2400, out=3001)
    small = lora_tensors(9, rank=rank, modules=("self_attn.k_proj",), layers=5)
    assert CHUNK < rank * 3001 < 2 * CHUNK
    found = {}
    for seed, role in enumerate(ROLES, 1):
        tensors = near({**start, **small}, seed)
        if role == "task":
            tensors[f"{PREFIX}score.weight"] = torch.ones(3, 7)
        found[role] = save(
            path / role, tensors, lora_config(rank=rank, target_modules=["q_proj", "k_proj", "v_proj"]), dtype
        )
    return found


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize(("rule", "modules"), [("additive", "attention-qv"), ("average", "all")])
def test_any_number_of_threads_writes_the_same_bytes(
    dtype: str, rule: str, modules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = large_trio(tmp_path, dtype)
    if rule == "average":
        del paths["source_reference"]
    reports = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(stream, "cores", lambda threads=threads: threads)
        reports.append(merge(**paths, weight=0.3, modules=modules, rule=rule, output=tmp_path / f"{threads}"))  # type: ignore[arg-type]
        if rule == "additive":
            divergence(**{role: paths[role] for role in ROLES[1:]}, output=tmp_path / f"d{threads}")  # type: ignore[arg-type]
    assert reports[0] == reports[1] == reports[2]
    for name in ["{}"] + ["d{}"] * (rule == "additive"):
        one, *others = (
            [(folder / file).read_bytes() for file in (TENSORS, "merge_report.json", "lineage.json")]
            for folder in (tmp_path / name.format(threads) for threads in (1, 2, 3))
        )
        assert others == [one, one]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_first_number_that_is_not_finite_is_named_whichever_thread_met_it(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "cores", lambda: threads)
    paths = trio(tmp_path)
    names = [f"{PREFIX}model.layers.{layer}.self_attn.q_proj.lora_B.weight" for layer in (0, 1)]
    for role, name in zip(("source_reference", "task"), names, strict=True):
        tensors = tensors_of(paths[role])
        tensors[name][5, 2] = float("nan")
        edit_tensors(paths[role], tensors)
    with pytest.raises(AdapterFileError, match="not finite") as caught:
        merge(**paths, weight=0.5, output=tmp_path / "out")  # type: ignore[arg-type]
    assert f"{paths['source_reference'] / TENSORS}: {names[0]}[5, 2]" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_results_lie_in_order_and_the_earliest_error_wins() -> None:
    seen = set()

    def work(desk: str, piece: int) -> int:
        seen.add((desk, threading.get_ident()))
        time.sleep(0.002 if piece % 2 else 0.0)
        return piece * piece

    assert shared(work, ["a", "b", "c"], list(range(50))) == [piece * piece for piece in range(50)]
    assert len({thread for _, thread in seen}) == len({desk for desk, _ in seen}) == 3

    begun = []

    def failing(desk: str, piece: int) -> None:
        begun.append(piece)
        if piece == 3:
            time.sleep(0.05)
            raise ValueError("third")
        if piece >= 4:
            raise ValueError("later")

    with pytest.raises(ValueError, match="third"):
        shared(failing, ["a", "b"], list(range(1000)))
    assert len(begun) < 10


def test_cores_are_those_allowed() -> None:
    assert 1 <= cores() <= max(1, os.cpu_count() or 1)


@pytest.mark.parametrize("name", ["additive", "average"])
def test_a_rule_in_given_room_computes_the_same_bits(name: str) -> None:
    rng = np.random.default_rng(0)
    task, target, source = (rng.standard_normal(1000).astype(np.float32) for _ in range(3))
    rule, inputs = RULES[name], [array.copy() for array in (task, target, source)]
    room = np.empty(1000, np.float32)
    D = rule.divergence(target, source)
    wanted = rule.shift(task, D, 0.3)
    found = rule.shift(task, rule.divergence(target, source, out=room), 0.3, out=room)
    assert found is room
    assert found.tobytes() == wanted.tobytes()
    assert all(np.array_equal(was, now) for was, now in zip(inputs, (task, target, source), strict=True))


def test_tensors_written_in_any_order_give_the_same_file(tmp_path: Path) -> None:
    infos = [TensorInfo("b", "F32", (5,)), TensorInfo("a", "BF16", (3,))]
    values = {"b": np.arange(5, dtype=np.float32), "a": np.arange(3, dtype=np.uint16)}
    forward, backward = (SafetensorsWriter(tmp_path / name, infos) for name in ("forward", "backward"))
    for info in forward.order:
        forward.write(values[info.name])
    backward.write_at(20, values["a"])
    backward.write_at(0, values["b"])
    forward.close()
    backward.close()
    assert (tmp_path / "forward").read_bytes() == (tmp_path / "backward").read_bytes()


def test_readers_of_one_handle_do_not_disturb_each_other(tmp_path: Path) -> None:
    directory = AdapterDirectory.open(trio(tmp_path)["task"])
    one, two = list(directory.tensors.values())[:2]
    with TensorReader(directory) as first:
        second = TensorReader(directory, first)
        kept = first.read(one, 0, one.size)[0]
        wanted = kept.copy()
        second.read(two, 0, two.size)
        assert np.array_equal(kept, wanted)


def test_digests_are_of_the_bytes_read_and_lapse_when_the_file_changes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "gone")]
    contents = {path: os.urandom(3_000_001) for path in paths[:2]}
    for path, content in contents.items():
        path.write_bytes(content)
    digests = Digests(paths)
    digests.add_thread()
    assert digests.result() == {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    os.utime(paths[0], ns=(1, 1))
    assert list(digests.result()) == [paths[1]]
    paths[1].unlink()
    assert digests.result() == {}


def test_a_file_that_changes_during_the_merge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = trio(tmp_path)

    def slow(*arguments: object) -> object:
        tensors = tensors_of(paths["source_reference"])
        edit_tensors(paths["source_reference"], {name: value + 1 for name, value in tensors.items()})
        return written(*arguments)  # type: ignore[arg-type]

    written = stream.ElementwiseMerge._write_run
    monkeypatch.setattr(stream.ElementwiseMerge, "_write_run", slow)
    with pytest.raises(AdapterFileError, match="changed while it was read") as caught:
        merge(**paths, weight=0.5, output=tmp_path / "out")  # type: ignore[arg-type]
    assert str(paths["source_reference"]) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_command_takes_the_hashes_begun_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, begun = trio(tmp_path), []

    class Counted(Digests):
        def __init__(self, files: list[Path]) -> None:
            begun.append(files)
            super().__init__(files)

    monkeypatch.setattr(hashing, "Digests", Counted)
    flags = [text for role in ROLES for text in (f"--{role.replace('_', '-')}", str(paths[role]))]
    assert main(["merge", *flags, "--weight", "0.5", "--output", str(tmp_path / "out")]) == 0
    assert begun == [[paths[role] / TENSORS for role in ROLES]]
    assert not hashing._ahead
    found = lineage.read(tmp_path / "out")
    assert found is not None
    assert {role: found.parents[role]["sha256"] for role in ROLES} == {
        role: file_sha256(paths[role] / TENSORS) for role in ROLES
    }
    assert main(["merge", *flags, "--weight", "0.5", "--output", str(tmp_path / "out")]) == 2
    assert not hashing._ahead


def test_the_report_is_json_whatever_a_module_is_called(tmp_path: Path) -> None:
    report = merge(**trio(tmp_path), weight=0.5, output=tmp_path / "out")  # type: ignore[arg-type]
    found = json.loads((tmp_path / "out" / "merge_report.json").read_text(encoding="utf-8"))
    assert [entry["module"] for entry in found["modules"]] == [item.module for item in report.modules]
    assert found["counts"]["changed"] == report.changed == 4
    assert found["modules"][0]["relative"] == pytest.approx(report.modules[0].relative)
