"""Damaged adapters through the command line, in this process: refused with a message, or right numbers.

    python scripts/fuzz/adapters.py --seed 0 --count 10000

One mutant: three small adapters of one structure and dtype, one of them damaged, then merge, divergence or
inspect. Right is exit 2 with a message and nothing left behind, or exit 0 with the numbers of the formula in float64 on
what PEFT's rules of loading read from the files. A traceback, 5 seconds, a long message, a control character on the
terminal, files that safetensors refuses, or other numbers are failures; each is printed with the seed that makes it
again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import math
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from adamergex.cli.main import main as command_line
from mutants import CONFIG, PREFIX, ROLES, TENSORS, Tensor, damaged, decoded, trio, unpacked

SECONDS, GIGABYTES, LONGEST = 5, 8, 8000
WEIGHT = 0.5
_FLOATS = ("F16", "BF16", "F32", "F64")
_ROUNDING = {"F16": 2e-3, "BF16": 1.6e-2, "F32": 1e-5, "F64": 1e-12}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Late(BaseException):
    """The time of a mutant is over."""


class Ran(NamedTuple):
    """What a command did; ``code`` is None after ``SECONDS``, and -1 after an exception."""

    code: int | None
    text: str


class Outcome(NamedTuple):
    """One mutant: what was done, and what is wrong with the answer, if anything is."""

    seed: int
    what: str
    code: int | None
    complaint: str


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """``Late`` is raised after ``SECONDS``."""

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(arguments: list[str]) -> Ran:
    """``adamergex ARGUMENTS`` in this process, under a limit of time."""
    written = io.StringIO()
    code: int | None
    try:
        streams = contextlib.redirect_stdout(written), contextlib.redirect_stderr(written)
        with limited(), streams[0], streams[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = command_line(arguments)
    except Late:
        code = None
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        code = -1
        written.write(traceback.format_exc())
    return Ran(code, written.getvalue())


def mutant(seed: int, room: Path) -> Outcome:
    """Make and try the mutant of a seed in an empty folder."""
    chance = random.Random(seed)
    kind, dtype = chance.choice(("lora", "lora", "lora", "ia3", "prefix")), chance.choice(_FLOATS)
    files = trio(kind, dtype, chance.random() < 0.5, chance.random() < 0.3)
    for role, contents in files.items():
        (room / role).mkdir()
        for name, content in contents.items():
            (room / role / name).write_bytes(content)
    verb = chance.choice(("merge", "merge", "merge", "merge", "delta", "average", "divergence", "inspect", "inspect"))
    if verb == "delta" and kind != "lora":
        verb = "merge"
    one = chance.choice(ROLES) if verb != "inspect" else "task"
    what = f"{verb} {kind} {dtype}, {one}: {damaged(room / one, chance)}"
    ran = run(_arguments(verb, room))
    return Outcome(seed, what, ran.code, _complaint(ran, verb, kind, room))


def _arguments(verb: str, room: Path) -> list[str]:
    if verb == "inspect":
        return ["inspect", str(room / "task")]
    references = ["--target-reference", str(room / "target"), "--output", str(room / "out")]
    source = ["--source-reference", str(room / "source")]
    if verb == "divergence":
        return ["divergence", *references, *source]
    merge = ["merge", "--task", str(room / "task"), "--weight", str(WEIGHT), "--modules", "all", *references]
    if verb == "average":
        return [*merge, "--rule", "average"]
    return [*merge, *source, *(["--space", "delta"] if verb == "delta" else [])]


def _complaint(ran: Ran, verb: str, kind: str, room: Path) -> str:
    if ran.code is None:
        return f"no answer in {SECONDS} s"
    if ran.code not in (0, 2):
        return f"exit {ran.code}: {ran.text.strip().splitlines()[-1][:120] if ran.text.strip() else ''}"
    if "machine refused" in ran.text:
        return "an error of the system instead of one of ours"
    if _CONTROL.search(ran.text):
        return "a control character on the terminal"
    if len(ran.text) > LONGEST:
        return "an endless message"
    if ran.code == 2:
        left = sorted(path.name for path in room.iterdir() if path.name not in ROLES)
        if left:
            return f"left behind: {left[0]}"
        return "" if ran.text.startswith("adamergex: ") else f"a message without a name: {ran.text[:60]!r}"
    used = {"inspect": ROLES[:1], "divergence": ROLES[1:], "average": ROLES[:2]}.get(verb, ROLES)
    return _refused_by_library(room, used) or _wrong_numbers(room, verb, kind, used)


def _refused_by_library(room: Path, used: tuple[str, ...]) -> str:
    for role in used:
        try:
            with safe_open(room / role / TENSORS, "np") as file:
                list(file.keys())
        except (SafetensorError, OSError) as error:
            return f"accepted, and safetensors refuses it: {str(error)[:80]}"
    return ""


def _wrong_numbers(room: Path, verb: str, kind: str, used: tuple[str, ...]) -> str:
    read = {role: as_peft_reads(room / role, kind) for role in used}
    for role, tensors in read.items():
        for tensor in tensors.values():
            if tensor.dtype in _FLOATS and not np.isfinite(decoded(tensor)).all():
                return f"accepted a number that is not finite in the {role}"
    if verb == "inspect":
        return ""
    for path in (room / "out").glob("*.json"):
        try:
            json.loads(path.read_bytes().decode(), parse_constant=_no_constant)
        except ValueError as error:
            return f"{path.name} is not JSON: {error}"
    with contextlib.suppress(KeyError):  # a name that PEFT would not read is told below
        out = {tensor.name: tensor for tensor in unpacked((room / "out" / TENSORS).read_bytes())}
        return _differing(read, out, verb, kind, room)
    return "the output lacks a tensor under PEFT's name"


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def as_peft_reads(folder: Path, kind: str) -> dict[str, Tensor]:
    """Tensors by PEFT's names: without wrappers and the adapter's own name, with the prefix."""
    found = {}
    for tensor in unpacked((folder / TENSORS).read_bytes()):
        name = tensor.name
        for wrapper in ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_fpw_module."):
            name = name.replace(wrapper, "")
        name = re.sub(r"^(module\.)+", "", name)
        name = re.sub(r"(?<=lora_[AB])\.[^.]+(?=\.weight$)|(?<=ia3_l)\.[^.]+$", "", name)
        if kind != "prefix" and not name.startswith(PREFIX):
            name = PREFIX + name
        name = re.sub(rf"^{re.escape(PREFIX)}(module\.)+", PREFIX, name)
        found[name] = tensor
    return found


def _differing(
    read: Mapping[str, Mapping[str, Tensor]], out: Mapping[str, Tensor], verb: str, kind: str, room: Path
) -> str:
    if kind == "prefix":
        return _prefix_differs(read, out, verb)
    if unread := [name for name in out if re.search(r"lora|ia3", name) and not _targeted(room / "out", name)]:
        return f"PEFT would not read {unread[0]}"
    if verb == "delta":
        return _delta_differs(read, out, room)
    for name, tensor in read["task" if verb != "divergence" else "target"].items():
        head = not re.search(r"\.(lora_[AB]\.weight|ia3_l)$", name)
        if head:
            if verb != "divergence" and out[name].data != tensor.data:
                return f"the head {name} differs"
            continue
        values = {role: decoded(tensors[name]) for role, tensors in read.items()}
        wanted = _formula(values, verb, kind)
        if complaint := far(name, decoded(out[name]), wanted, tensor.dtype, *values.values()):
            return complaint
    return ""


def _formula(values: Mapping[str, np.ndarray], verb: str, kind: str) -> np.ndarray:
    target = values["target"]
    if verb == "average":
        return (1 - WEIGHT) * values["task"] + WEIGHT * target
    if kind == "ia3":
        source = values["source"]
        small = np.abs(source) < 1e-6
        ratio = np.where(small, 1.0, target / np.where(small, 1.0, source))
        return ratio if verb == "divergence" else values["task"] * (WEIGHT * (ratio - 1) + 1)
    divergence = target - values["source"]
    return divergence if verb == "divergence" else values["task"] + WEIGHT * divergence


def far(name: str, found: np.ndarray, wanted: np.ndarray, dtype: str, *parts: np.ndarray) -> str:
    """Where two arrays are not equal up to the rounding of a dtype, relative to the largest value of all ``parts``."""
    if found.shape != wanted.shape:
        return f"{name} has shape {found.shape}, not {wanted.shape}"
    with np.errstate(all="ignore"):
        largest = max(1.0, *(float(np.abs(part).max(initial=0)) for part in (wanted, *parts)))
        away = float(np.abs(found - wanted).max(initial=0)) / largest
    return "" if math.isfinite(away) and away <= _ROUNDING[dtype] else f"{name} is off by {away:.2g}"


def _delta_differs(read: Mapping[str, Mapping[str, Tensor]], out: Mapping[str, Tensor], room: Path) -> str:
    for name, tensor in read["task"].items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        deltas = {role: delta(tensors, module, room / role) for role, tensors in read.items()}
        wanted = deltas["task"] + WEIGHT * (deltas["target"] - deltas["source"])
        found = delta(out, module, room / "out")
        if complaint := far(module, found, wanted, tensor.dtype, *deltas.values()):
            return complaint
    return ""


def delta(tensors: Mapping[str, Tensor], module: str, folder: Path) -> np.ndarray:
    """ΔW = scaling · B · A of a module, the scaling by PEFT's reading of the config in the folder."""
    config, name = json.loads((folder / CONFIG).read_bytes()), module.removeprefix(PREFIX)
    rank, alpha = config["r"], config["lora_alpha"]
    for key, value in (config.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            rank = value
            break
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            alpha = value
            break
    A, B = (decoded(tensors[f"{module}.lora_{factor}.weight"]) for factor in "AB")
    with np.errstate(all="ignore"):
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank) * B @ A


def _prefix_differs(read: Mapping[str, Mapping[str, Tensor]], out: Mapping[str, Tensor], verb: str) -> str:
    prompts = {role: tensors["prompt_embeddings"] for role, tensors in read.items()}
    if verb == "divergence":
        return ""
    dtype, values = prompts["task"].dtype, {role: decoded(tensor) for role, tensor in prompts.items()}
    if verb == "average":
        wanted = (1 - WEIGHT) * values["task"] + WEIGHT * values["target"]
        return far("prompt_embeddings", decoded(out["prompt_embeddings"]), wanted, dtype, *values.values())
    wanted = values["task"].copy()
    width = wanted.shape[1] // 2
    for columns in (slice(0, width), slice(width, None)):
        target, source = values["target"][:, columns], values["source"][:, columns]
        with np.errstate(all="ignore"):
            away = (target - source) @ np.linalg.pinv(source, rcond=1e-7)
        wanted[:, columns] += WEIGHT * away @ values["task"][:, columns]
    return far("prompt_embeddings", decoded(out["prompt_embeddings"]), wanted, dtype, *values.values())


def _targeted(folder: Path, name: str) -> bool:
    targets = json.loads((folder / CONFIG).read_bytes()).get("target_modules")
    module = name.removeprefix(PREFIX).partition(".lora_")[0].partition(".ia3_l")[0]
    if not targets or targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


Try = Callable[[int, Path], Outcome]


def outcomes(mutant: Try, seeds: range) -> Iterator[Outcome]:
    """What came of the mutants of all seeds; each has a folder to itself, in memory where there is one."""
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None) as room:
        for seed in seeds:
            folder = Path(room) / str(seed)
            folder.mkdir()
            try:
                yield mutant(seed, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def tried(mutant: Try, about: str) -> int:
    """The command line of a fuzzer: 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    begun, codes = time.monotonic(), collections.Counter[str]()
    wrong: dict[str, list[Outcome]] = {}
    for outcome in outcomes(mutant, range(arguments.seed, arguments.seed + arguments.count)):
        codes["failed" if outcome.complaint else "refused" if outcome.code else "accepted"] += 1
        if outcome.complaint:
            wrong.setdefault(re.sub(r"\d+(\.\d+)?", "N", outcome.complaint)[:100], []).append(outcome)
    seconds = time.monotonic() - begun
    print(f"{arguments.count:,} mutants, {seconds:.0f} s ({arguments.count / seconds:.0f} a second): {dict(codes)}")
    for kind, found in sorted(wrong.items(), key=lambda item: -len(item[1])):
        print(f"{len(found):5} {kind}")
        for outcome in found[:3]:
            print(f"      seed {outcome.seed}: {outcome.what}: {outcome.complaint[:160]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(tried(mutant, __doc__ or ""))
