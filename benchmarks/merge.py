"""Merging at the size of Llama-2-7B, all linear modules, against the limit (reading and writing) and against PEFT.

    python benchmarks/merge.py [--quick]

Every figure is a ratio from one interleaved run: best of N in wall time, with CPU time beside it. Files lie in memory
(/dev/shm) where there is one, so that no disk is measured; both sides read, write and sync the same bytes there. Peak
memory also at the size of Llama-2-70B, from files (1 and 7 GB) in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adamergex.files.directory import (
    CHUNK,
    TENSORS,
    AdapterDirectory,
    Encoder,
    SafetensorsWriter,
    TensorInfo,
    TensorReader,
)
from adamergex.files.hashing import file_sha256
from adamergex.files.lineage import Lineage
from adamergex.merging import delta, merge
from adamergex.merging.rules.registry import rule_for
from adamergex.merging.stream import ElementwiseMerge
from adamergex.structures.layout import layout


class Shape(NamedTuple):
    """A Llama: its widths (of keys and values together, where heads share them), and its layers."""

    hidden: int
    inner: int
    shared: int
    layers: int

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Linear module of a layer -> (out, in)."""
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.shared, self.hidden),
            "self_attn.v_proj": (self.shared, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }


SEVEN, SEVENTY = Shape(4096, 11008, 4096, 32), Shape(8192, 28672, 1024, 80)
ROLES = ("task", "target_reference", "source_reference")
BLOCK = 512 * 1024  # bytes that the limit reads or writes at a time: the fastest of 32 KiB to 2 MiB here
Timing = tuple[float, float]


def write_adapter(path: Path, rank: int, dtype: str, seed: int, shape: Shape = SEVEN) -> None:
    """A LoRA of this shape, as PEFT saves it, with a lineage that tells its start."""
    path.mkdir(parents=True)
    infos = []
    for layer in range(shape.layers):
        for name, (out, width) in shape.modules.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            infos.append(TensorInfo(f"{stem}.lora_A.weight", dtype, (rank, width)))
            infos.append(TensorInfo(f"{stem}.lora_B.weight", dtype, (out, rank)))
    pool = (np.random.default_rng(seed).standard_normal(1 << 21) * 0.02).astype(np.float32)
    writer, encode = SafetensorsWriter(path / TENSORS, infos), Encoder()
    for index, info in enumerate(writer.order):
        start = (index * 7919) % (len(pool) - CHUNK)
        for begin in range(0, info.size, CHUNK):
            writer.write(encode(pool[start : start + min(CHUNK, info.size - begin)], dtype))
    writer.close()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "skeleton",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(name.rpartition(".")[2] for name in shape.modules),
        "bias": "none",
        "inference_mode": True,
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    Lineage(base={"name": "skeleton", "sha256": None}, start="0" * 64).write(path)


def best(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, Timing]:
    """Interleaved: every piece of work once a round; the least wall and the least CPU seconds of each."""
    found = {name: (float("inf"), float("inf")) for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            took = time.perf_counter() - wall, time.process_time() - cpu
            found[name] = min(found[name][0], took[0]), min(found[name][1], took[1])
    return found


def limit(folder: Path, hashed: bool = False) -> None:
    """Read three files and write one, in lockstep, one thread, reused buffers; ``hashed``: also their SHA-256."""
    if hashed:
        for role in ROLES:
            file_sha256(folder / role / TENSORS)
    files = [(folder / role / TENSORS).open("rb", buffering=0) for role in ROLES]
    views = [memoryview(bytearray(BLOCK)) for _ in ROLES]
    with (folder / "limit").open("wb", buffering=0) as output:
        while True:
            counts = [file.readinto(view) for file, view in zip(files, views, strict=True)]
            if not counts[0]:
                break
            output.write(views[0][: counts[0]])
        os.fsync(output.fileno())
    for file in files:
        file.close()


def stream(folder: Path) -> None:
    """Our merge without hashes and cards: parse, check every number, merge, norms, write, sync; on every core."""
    directories = [AdapterDirectory.open(folder / role) for role in ROLES]
    found = layout(directories[0])
    rule = rule_for("adaptive", "lora")
    task, target, source = (TensorReader(directory) for directory in directories)
    with task, target, source:
        chosen = frozenset(found.sites)
        ElementwiseMerge(rule, 0.5, found, chosen, task, (target, source)).write(folder / "ours")
    handle = os.open(folder / "ours", os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def on_one_core(work: Callable[[], None]) -> None:
    """The same work with one core, as the smallest machine has it: the merge then takes one thread."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        work()
    finally:
        os.sched_setaffinity(0, allowed)


def whole_merge(folder: Path) -> None:
    """merge() as a user calls it: also SHA-256 of the inputs, report, lineage and card."""
    shutil.rmtree(folder / "merged", ignore_errors=True)
    merge(**{role: folder / role for role in ROLES}, weight=0.5, modules="all", output=folder / "merged")  # type: ignore[arg-type]


def skeleton() -> Any:
    """A base with the modules of Llama-2-7B and weights that take no memory: only the adapters cost anything."""
    import torch
    from torch import nn

    def linear(out: int, width: int) -> nn.Linear:
        module = nn.Linear(width, out, bias=False, device="meta")
        module.weight = nn.Parameter(torch.zeros(1).expand(out, width), requires_grad=False)
        return module

    base = nn.Module()
    base.model = nn.Module()
    layers = nn.ModuleList()
    for _ in range(SEVEN.layers):
        layer = nn.Module()
        for name, (out, width) in SEVEN.modules.items():
            part, _, leaf = name.partition(".")
            if not hasattr(layer, part):
                setattr(layer, part, nn.Module())
            setattr(getattr(layer, part), leaf, linear(out, width))
        layers.append(layer)
    base.model.layers = layers
    return base


def peft_merge(folder: Path, base: Any) -> None:
    """PEFT's way to the same bytes: three adapters loaded, add_weighted_adapter (linear), one saved."""
    from peft import PeftModel

    shutil.rmtree(folder / "peft", ignore_errors=True)
    model = PeftModel.from_pretrained(base, folder / "task", adapter_name="task", autocast_adapter_dtype=False)
    for role in ROLES[1:]:
        model.load_adapter(folder / role, adapter_name=role, autocast_adapter_dtype=False)
    model.add_weighted_adapter(list(ROLES), [1.0, 0.5, -0.5], "merged", combination_type="linear")
    model.save_pretrained(folder / "peft", selected_adapters=["merged"])
    model.unload()


def process(code: str, *arguments: str) -> tuple[float, float, float]:
    """A fresh interpreter: (wall seconds, CPU seconds, peak RSS in MB)."""
    tail = "\nprint([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    # With bytecode, as an installed package has it: else every process of ours compiles the package, and PEFT's none.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, wall = os.times(), time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", code + tail, *arguments], env=environment, check=True, capture_output=True, text=True
    )
    wall, after = time.perf_counter() - wall, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu, int(run.stdout.split()[-1]) / 1024


OURS = """
import sys
from adamergex.cli.main import main
folder = sys.argv[1]
main(['merge', '--task', folder + '/task', '--target-reference', folder + '/target_reference',
      '--source-reference', folder + '/source_reference', '--weight', '0.5', '--modules', 'all',
      '--output', folder + '/merged']) and sys.exit('the merge failed')
"""
PEFTS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import merge
merge.peft_merge(Path(sys.argv[1]), merge.skeleton())
"""


HELP = """
from adamergex.cli.main import main
try:
    main(['--help'])
except SystemExit:
    pass
"""


def row(name: str, ratio: float, goal: str, detail: str) -> None:
    print(f"{name:<56} {ratio:>8.2f}  {goal:<8}  {detail}", flush=True)


def seconds(timing: Timing) -> str:
    return f"{timing[0]:.3f} s (CPU {timing[1]:.3f})"


def streaming(folder: Path, rank: int, dtype: str, rounds: int) -> None:
    """The rows of one shape: against the limit, without and with hashes."""
    found = best(
        {
            "limit": lambda: limit(folder),
            "stream": lambda: stream(folder),
            "one core": lambda: on_one_core(lambda: stream(folder)),
            "limit, hashed": lambda: limit(folder, hashed=True),
            "merge()": lambda: whole_merge(folder),
        },
        rounds,
    )
    name = f"r{rank} {dtype.lower()}"
    goal = "<= 2.3" if dtype == "BF16" else "<= 1.3"
    for title, ours, base, aim in (
        ("merge / (read 3 + write 1)", "stream", "limit", goal),
        ("the same on one core", "one core", "limit", ""),
        ("merge() / (read 3 + SHA-256 of 3 + write 1)", "merge()", "limit, hashed", ""),
    ):
        detail = f"{seconds(found[ours])} / {seconds(found[base])}"
        row(f"{title}, {name}", found[ours][0] / found[base][0], aim, detail)


def against_peft(folder: Path, rank: int, dtype: str, rounds: int) -> None:
    """The merge stage: PEFT's seconds over ours, in one process, imports and base already there."""
    base = skeleton()
    work = {
        "peft": lambda: peft_merge(folder, base),
        "ours": lambda: stream(folder),
        "all": lambda: whole_merge(folder),
    }
    found = best(work, rounds)
    for ours, title in (("ours", "merge stage, PEFT / ours"), ("all", "merge(), PEFT / ours")):
        detail = f"{seconds(found['peft'])} / {seconds(found[ours])}"
        row(f"{title}, r{rank} {dtype.lower()}", found["peft"][0] / found[ours][0], ">= 15", detail)


def processes(folder: Path, rank: int, dtype: str, rounds: int, with_peft: bool) -> None:
    """Whole processes, imports and all: ours is ``adamergex merge`` with hashes and cards; and our peak memory."""
    ours = []
    for _ in range(rounds):
        shutil.rmtree(folder / "merged", ignore_errors=True)
        ours.append(process(OURS, str(folder)))
    fastest = min(ours)
    if with_peft:
        theirs = min(process(PEFTS, str(folder)) for _ in range(max(1, rounds // 2)))
        detail = f"{seconds(theirs[:2])} / {seconds(fastest[:2])}"
        row(f"whole process, PEFT / ours, r{rank} {dtype.lower()}", theirs[0] / fastest[0], ">= 30", detail)
    row(f"peak RSS MB of our process, r{rank} {dtype.lower()}", max(run[2] for run in ours), "<= 64", "")


def memory(rank: int, rounds: int) -> None:
    """Our peak at the size of Llama-2-70B: the same few chunks, whatever the files hold."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, role in enumerate(ROLES):
            write_adapter(folder / role, rank, "BF16", seed, SEVENTY)
        size = (folder / ROLES[0] / TENSORS).stat().st_size / 1e6
        peaks = []
        for _ in range(rounds):
            shutil.rmtree(folder / "merged", ignore_errors=True)
            peaks.append(process(OURS, str(folder))[2])
        row(f"peak RSS MB of our process, 70B r{rank} bf16", max(peaks), "<= 64", f"{size:,.0f} MB an adapter")


def first_words(rounds: int) -> None:
    """``adamergex --help`` over ``import torch``, each in processes of its own."""
    work = {"help": HELP, "torch": "import torch"}
    found = {name: min(process(code) for _ in range(rounds)) for name, code in work.items()}
    detail = f"{seconds(found['help'][:2])} / {seconds(found['torch'][:2])}"
    row("adamergex --help / import torch", found["help"][0] / found["torch"][0], "<= 0.1", detail)


def truncation(size: int) -> None:
    """One module of rank 3·8 back to 8: the full SVD of ΔW over ours."""
    import torch

    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((24, size), (size, 24)))
    factors = delta.Factors(A, B, 2.0)

    def full() -> None:
        u, s, v = torch.linalg.svd(torch.from_numpy(2.0 * B @ A), full_matrices=False)
        (u[:, :8] * s[:8]) @ v[:8]

    ours = best({"ours": lambda: (delta.truncate(factors, 8), None)[1]}, 7)["ours"]
    theirs = best({"full": full}, 1)["full"]
    row(
        f"rank 24 -> 8 at {size}^2, full SVD / ours",
        theirs[0] / ours[0],
        ">= 100",
        f"{seconds(theirs)} / {seconds(ours)}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="rank 8 only, fewer rounds, a smaller SVD")
    quick = parser.parse_args().quick
    rounds = 3 if quick else 7
    print(f"{'measure':<56} {'ratio':>8}  {'goal':<8}  seconds")
    home = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for rank, dtype in [(8, "BF16"), (8, "F32"), *([] if quick else [(64, "BF16"), (64, "F32")])]:
        with tempfile.TemporaryDirectory(dir=home) as name:
            folder = Path(name)
            for seed, role in enumerate(ROLES):
                write_adapter(folder / role, rank, dtype, seed)
            streaming(folder, rank, dtype, rounds)
            processes(folder, rank, dtype, rounds, with_peft=(rank, dtype) == (8, "BF16"))
            if dtype == "BF16":
                against_peft(folder, rank, dtype, rounds if rank == 8 else 2)
    for rank in (8,) if quick else (8, 64):
        memory(rank, min(rounds, 3))
    first_words(rounds)
    truncation(1024 if quick else SEVEN.hidden)


if __name__ == "__main__":
    main()
