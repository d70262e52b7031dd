"""12 languages × 5 tasks resident over one base: what they weigh, and how long switching takes.

    python benchmarks/stacks.py [--base nano] [--languages 12] [--tasks 5]

A base that is a model type (xlm-roberta) is built at its default size with random weights.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.adapters.bottleneck.stack import AdapterStack, attach
from adamergex.backbones import loading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="nano")
    parser.add_argument("--languages", type=int, default=12)
    parser.add_argument("--tasks", type=int, default=5)
    arguments = parser.parse_args()
    model = base(arguments.base)
    base_bytes, storage = weight(model), resident()
    start = time.perf_counter()
    stack: AdapterStack = attach(model).adapter_stack
    languages = [f"language-{i}" for i in range(arguments.languages)]
    tasks = [f"task-{i}" for i in range(arguments.tasks)]
    for name in languages:
        stack.add(BottleneckConfig.pfeiffer(2, invertible=True), name)
    for name in tasks:
        stack.add(BottleneckConfig.pfeiffer(16), name)
    adding = time.perf_counter() - start
    pairs = [(language, task) for language in languages for task in tasks]
    one, five = weight(stack.adapters[languages[0]]), weight(stack.adapters[tasks[0]])
    expected = base_bytes + len(languages) * one + len(tasks) * five
    grown = resident() - storage
    rows = [
        ("base", f"{base_bytes / 2**20:.2f} MiB"),
        ("one language adapter, one task adapter", f"{one / 2**20:.3f} MiB, {five / 2**20:.3f} MiB"),
        (f"base + {len(languages)} languages + {len(tasks)} tasks, computed", f"{expected / 2**20:.2f} MiB"),
        ("the same, as the model holds it", f"{weight(model) / 2**20:.2f} MiB"),
        ("growth of the process", f"{grown / 2**20:.2f} MiB"),
        ("one base for each of the pairs instead", f"{len(pairs) * (base_bytes + one + five) / 2**20:.2f} MiB"),
        ("adding all adapters", f"{adding * 1e3:.0f} ms"),
        *timed("switching, first time", pairs, lambda pair: model.set_stack(*pair)),
        *timed("switching, again", pairs, lambda pair: model.set_stack(*pair)),
        *timed("a mixed batch of all pairs, set", [pairs], lambda every: stack.set_rows(every)),
        *forward(model, pairs),
    ]
    width = max(len(name) for name, _ in rows)
    print(f"| {'12 x 5 resident' if len(pairs) == 60 else 'resident':<{width}} | {arguments.base} |")
    print(f"|{'-' * (width + 2)}|---|")
    for name, value in rows:
        print(f"| {name:<{width}} | {value} |")
    if weight(model) != expected:
        raise SystemExit("the model holds copies")


def base(name: str) -> PreTrainedModel:
    if name in CONFIG_MAPPING_NAMES:
        return AutoModelForMaskedLM.from_config(AutoConfig.for_model(name)).eval()
    return AutoModelForMaskedLM.from_pretrained(loading.resolve(name)).eval()


def weight(module: torch.nn.Module) -> int:
    """Bytes of all tensors, shared storage counted once."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def timed(name: str, items: Sequence[Any], run: Callable[[Any], object]) -> list[tuple[str, str]]:
    """Wall time; and the worst of the thread's own time, which other processes on the machine do not add to."""
    times, own = [], []
    for item in items:
        start, start_own = time.perf_counter(), time.thread_time()
        run(item)
        own.append((time.thread_time() - start_own) * 1e3)
        times.append((time.perf_counter() - start) * 1e3)
    return [(name, f"median {statistics.median(times):.4f} ms, worst {max(times):.4f} ms (own {max(own):.4f} ms)")]


def forward(model: PreTrainedModel, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    ids = torch.randint(5, model.config.vocab_size, (len(pairs), 32), generator=torch.Generator().manual_seed(0))

    def separately(_: int) -> None:
        for row, pair in enumerate(pairs):
            model.set_stack(*pair)
            model(input_ids=ids[row : row + 1])

    def together(_: int) -> None:
        with model.using(rows=pairs):
            model(input_ids=ids)

    def bare(_: int) -> None:
        with model.using():
            model(input_ids=ids)

    with torch.no_grad():
        bare(0)  # warm
        return [
            *timed(f"forward, {len(pairs)} rows of 32, bare base", [0, 1, 2], bare),
            *timed("forward, the same in one mixed batch", [0, 1, 2], together),
            *timed("forward, the same row by row", [0, 1], separately),
        ]


if __name__ == "__main__":
    main()
