"""What the Ray engine costs a step, beyond the step: many empty steps on one worker, with and without Ray.

    python benchmarks/ray_dispatch.py [--steps 500] [--rounds 3]

An empty step makes a directory; the store adds lock, manifest and rename in both engines alike.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adamergex.graph import local
from adamergex.graph import ray as ray_engine
from adamergex.graph.steps import Step, Store

GOAL = 10.0  # milliseconds a step


def empty(job: Mapping[str, Any], inputs: Mapping[str, Path], output: Path, workdir: Path) -> None:
    output.mkdir()


def silent(line: str) -> None:
    pass


def milliseconds(run: Callable[..., None], count: int) -> float:
    """Of one step: a chain of two levels, so that the driver has inputs to follow."""
    roots = [Step("empty", {"root": number}, {}, label=str(number)) for number in range(count // 2)]
    steps = [Step("empty", {"leaf": number}, {}, {"a": root}, label=str(number)) for number, root in enumerate(roots)]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run(steps, Store(Path(folder)), {"empty": empty}, silent)
        return 1000 * (time.perf_counter() - began) / (2 * len(roots))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000)
    milliseconds(ray_engine.run, 10)  # the first worker's start
    here, there = [], []
    for _ in range(arguments.rounds):
        here.append(milliseconds(local.run, arguments.steps))
        there.append(milliseconds(ray_engine.run, arguments.steps))
    ray.shutdown()
    print(f"{arguments.steps} empty steps, best of {arguments.rounds}: here {min(here):.2f} ms a step")
    print(f"through Ray {min(there):.2f} ms a step, one worker's start included")
    print(f"Ray's share {min(there) - min(here):.2f} ms a step; goal {GOAL:g} ms")


if __name__ == "__main__":
    main()
