"""The processes that train one adapter together, started by torchrun or accelerate; a single one by default.

Every process reads the same rows and plans the same batches; only the first writes and prints. No heavy import happens
before ``joined``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from adamergex.errors import AdamergexError, ConfigError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # timeout of a process that waits for the others


class ProcessLostError(AdamergexError):
    """Another process of the team ended or never started."""


@dataclass(frozen=True)
class Team:
    """``size`` processes, of which this is number ``rank``."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """The first process's value, in all processes."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _together():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Wait until all processes arrive."""
        if self.size > 1:
            import torch.distributed as dist

            with _together():
                dist.barrier()


def launched() -> Team:
    """The team from the launcher's environment variables. Raises: ConfigError: they are not a rank of a group."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    values = [os.environ.get(name) for name in names]
    if None in values:  # a scheduler may set some of them for other purposes
        return Team()
    rank, _, size = (int(text) if text and text.isdecimal() else -1 for text in values)
    if not 0 <= rank < size:
        raise ConfigError(
            "the environment names no process of a group",
            where=", ".join(names),
            found=", ".join(map(str, values)),
            fix="start with torchrun or accelerate launch, or unset these variables",
        )
    return Team(rank, size)


def speaker() -> str:
    """The name that prefixes errors; with several processes, it includes this one's number."""
    try:
        team = launched()
    except ConfigError:
        team = Team()
    return "adamergex" if team.size == 1 else f"adamergex, process {team.rank + 1} of {team.size}"


@contextmanager
def joined() -> Iterator[Team]:
    """The team of processes started together; without an error, all of them finish the block before any leaves it.

    With several processes, each takes the GPU of its local rank and communicates through NCCL; without GPUs, through
    gloo. Raises: ConfigError: fewer GPUs than processes, or a launcher that would shard the model.
    """
    team = launched()
    if team.size > 1:
        _join()
    yield team
    team.wait()


def leave() -> None:
    """Destroy the process group. Call it only after success: after a failure it could hang."""
    if launched().size > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            launched().wait()  # a process that leaves early could block the others
            dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # raised by torch when another process is gone or late
        raise ProcessLostError(
            "another process ended before this one",
            fix="see its output; started again, the run resumes from its last checkpoint",
        ) from error


def _join() -> None:
    import torch
    import torch.distributed as dist

    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1"):
            raise ConfigError(
                "the model is not divided over processes: each holds all of it",
                where="the configuration of accelerate",
                found=name,
                expected="MULTI_GPU or MULTI_CPU",
                fix="start with torchrun, or choose multi-GPU training in accelerate config",
            )
    gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if 0 < gpus <= local:
        raise ConfigError(
            "there are more processes than GPUs",
            found=f"process {local + 1} on {gpus} GPUs",
            expected=f"at most {gpus} processes on this machine",
            fix="lower --nproc-per-node (torchrun) or --num_processes (accelerate)",
        )
    if gpus:
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        device = torch.device("cuda", local) if gpus else None
        dist.init_process_group("nccl" if gpus else "gloo", timeout=PATIENCE, device_id=device)
