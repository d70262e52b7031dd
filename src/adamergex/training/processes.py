"""The processes that train one adapter together, as torchrun or accelerate start them; by default one alone.

Every process reads the same rows and makes the same plan of batches; the first alone writes and speaks. Nothing heavy
is imported before ``joined``.
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
PATIENCE = timedelta(minutes=30)  # that a process waits for the others before it ends with an error


class ProcessLostError(AdamergexError):
    """Another process of the team ended, or did not come."""


@dataclass(frozen=True)
class Team:
    """``size`` processes, of which this is number ``rank``."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """What the first process has, in all of them."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _together():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            import torch.distributed as dist

            with _together():
                dist.barrier()


def launched() -> Team:
    """What the launcher says in the environment. Raises: ConfigError when that is no rank of a group."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    found = [os.environ.get(name) for name in names]
    if None in found:  # a scheduler may set one of them for reasons of its own
        return Team()
    rank, _, size = (int(text) if text and text.isdecimal() else -1 for text in found)
    if not 0 <= rank < size:
        raise ConfigError(
            "the environment names no process of a group",
            where=", ".join(names),
            found=", ".join(map(str, found)),
            fix="start with torchrun or accelerate launch, or unset these variables",
        )
    return Team(rank, size)


def speaker() -> str:
    """Who tells an error: of several processes which one."""
    try:
        team = launched()
    except ConfigError:
        team = Team()
    return "adamergex" if team.size == 1 else f"adamergex, process {team.rank + 1} of {team.size}"


@contextmanager
def joined() -> Iterator[Team]:
    """This process among those that were started with it; when the block ends well, all of them have ended it.

    Of several processes each takes the GPU of its local rank and talks through NCCL; without GPUs, through gloo.
    Raises: ConfigError: fewer GPUs than processes, or a launcher that would shard the model.
    """
    team = launched()
    if team.size > 1:
        _join()
    yield team
    team.wait()


def leave() -> None:
    """End the talk between the processes. Only after work that ended well: to end what hangs would hang too."""
    if launched().size > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            launched().wait()  # one that leaves first can leave another waiting
            dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch raises when the other end is gone, or late
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
