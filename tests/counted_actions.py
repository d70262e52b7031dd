"""Quick actions that note every start and end in a log, for engines in this process, in others and in a cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamergex.graph.steps import Step


def note(log: str, line: str) -> None:
    """One appended line, whole even when several processes write."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)


def work(job: Mapping[str, Any], inputs: Mapping[str, Path], output: Path, workdir: Path) -> None:
    """Writes its name and its inputs' texts; waits, fails or dies when told to."""
    note(job["log"], f"start {job['name']} {os.getpid()}")
    deadline = time.monotonic() + job.get("seconds", 0)
    while time.monotonic() < deadline and not Path(job.get("until", "/nowhere")).exists():
        time.sleep(0.001)
    if job.get("fails"):
        raise ValueError(f"{job['name']} broke")
    if job.get("dies"):
        os._exit(3)
    output.mkdir()
    parts = [(inputs[role] / "text").read_text() for role in sorted(inputs)]
    (output / "text").write_text(f"{job['name']}({','.join(parts)})")
    note(job["log"], f"end {job['name']} {os.getpid()}")


ACTIONS = {"work": work}


def step(log: Path, name: str, inputs: Mapping[str, Step] | None = None, **job: Any) -> Step:
    return Step("work", {"name": name}, {"name": name, "log": str(log), **job}, inputs or {}, label=name)


def grid(log: Path, width: int, seconds: float) -> list[Step]:
    """``width`` roots; each of ``width`` × 3 more steps needs two of the level below."""
    level = [step(log, f"0.{number}", seconds=seconds) for number in range(width)]
    wanted = list(level)
    for depth in range(1, 4):
        level = [
            step(log, f"{depth}.{number}", {"a": level[number], "b": level[(number + 1) % width]}, seconds=seconds)
            for number in range(width)
        ]
        wanted += level
    return wanted


def started(log: Path) -> list[str]:
    """The names that were started, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1] for line in lines if line.startswith("start ")]


def main(root: str, log: str, width: str, seconds: str, processes: str) -> None:
    from adamergex.graph.local import run
    from adamergex.graph.steps import Store

    run(
        grid(Path(log), int(width), float(seconds)),
        Store(Path(root)),
        ACTIONS,
        lambda line: None,
        processes=int(processes),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
