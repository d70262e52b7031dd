"""The engine of a Ray cluster: steps go to workers on any machine; paths travel, never tensors.

The store lies on a file system that all machines share under one path. Workers stay from step to step, so that the
backbone of the last one is still loaded; each holds its GPU as a resource of Ray. A step whose worker is lost with its
machine goes to another worker. The driver keeps nothing that the store does not have: a new one goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from adamergex.engines.walk import alike, walk
from adamergex.engines.worker import Action, WorkerLostError, attempt
from adamergex.errors import AdamergexError
from adamergex.graph import Step, Store

PATIENCE = 30.0  # seconds without any worker before it is said


def run(
    wanted: Iterable[Step],
    store: Store,
    actions: Mapping[str, Action],
    say: Callable[[str], None] = print,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus: float | None = None,
    cpus: float = 1,
    retries: int = 2,
    group: Callable[[Step], Hashable] = alike,
) -> None:
    """Run what is missing on a Ray cluster; ``actions`` must be importable functions.

    Args:
        address: of the cluster (``auto``, ``host:port`` or ``ray://…``); None starts one on this machine.
        workers: how many; by default as many as the cluster has room for now. More than there is room for wait, and
            start when machines join.
        gpus, cpus: what each worker holds; by default one GPU where the cluster has any, and one core.
        retries: how often a step is tried again when its worker was lost.

    Raises:
        StepsFailedError: one or more steps failed. The first failure is its cause.
        AdamergexError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _connected(address)
    room = ray.cluster_resources()
    if gpus is None:
        gpus = 1 if room.get("GPU", 0) >= 1 else 0
    if workers is None:
        workers = max(1, int(min(room.get("CPU", 1) / cpus, room.get("GPU", 0) / gpus if gpus else float("inf"))))
    walk(wanted, store, _Cluster(ray, store, actions, workers, gpus, cpus, say), say, group=group, retries=retries)


def _connected(address: str | None) -> Any:
    try:
        import ray
    except ImportError:
        raise AdamergexError("Ray is not installed", fix="pip install 'adamergex[ray]'") from None
    if not ray.is_initialized():
        alone = address is None and "RAY_ADDRESS" not in os.environ
        try:
            ray.init(address=address, include_dashboard=False if alone else None)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise AdamergexError(
                "there is no Ray cluster to connect to",
                where=address,
                found=str(error).splitlines()[0],
                fix="start one (ray start --head), or leave --address away to use this machine alone",
            ) from error
    return ray


class _Worker:
    """Runs in the cluster, one in a process."""

    def __init__(self, root: str, actions: Mapping[str, Action]) -> None:
        self.root, self.actions = Path(root), actions

    def ready(self) -> bool:
        return True

    def attempt(self, step: Step) -> Exception | None:
        return attempt(step, self.root, self.actions)


class _Cluster:
    """The workers of a cluster. One that has not answered yet has no machine to run on, and gets no step."""

    def __init__(
        self,
        ray: Any,
        store: Store,
        actions: Mapping[str, Action],
        count: int,
        gpus: float,
        cpus: float,
        say: Callable[[str], None],
    ) -> None:
        self.ray: Any = ray
        self.say = say
        self.remote = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        self.given = str(store.root.absolute()), dict(actions)
        self.actors: dict[int, Any] = {}
        self.ready: set[int] = set()
        self.calls: dict[Any, tuple[int, Step | None]] = {}  # reference -> worker and its step; None: is it there?
        for number in range(count):
            self._hire(number)

    def _hire(self, number: int) -> None:
        self.actors[number] = self.remote.remote(*self.given)
        self.calls[self.actors[number].ready.remote()] = number, None

    def idle(self) -> list[Hashable]:
        busy = {number for number, step in self.calls.values() if step is not None}
        return [number for number in sorted(self.ready) if number not in busy]

    def start(self, worker: Hashable, step: Step) -> None:
        assert isinstance(worker, int)
        self.calls[self.actors[worker].attempt.remote(step)] = worker, step

    def finished(self) -> list[tuple[Step, Exception | None]]:
        done: list[Any] = []
        while not done:
            done, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=PATIENCE)
            if not done and not self.ready:
                self.say(f"waiting for a worker: the cluster has {self.ray.available_resources()}")
        done = self.ray.wait(list(self.calls), num_returns=len(self.calls), timeout=0)[0] or done
        outcomes: list[tuple[Step, Exception | None]] = []
        for call in done:
            number, step = self.calls.pop(call)
            try:
                error = self.ray.get(call)
                self.ready.add(number)
            except self.ray.exceptions.RayActorError as lost:
                self.ready.discard(number)
                self._hire(number)
                error = _lost(step, lost) if step is not None else None
            if step is not None:
                outcomes.append((step, error if isinstance(error, Exception) else None))
        return outcomes

    def close(self) -> None:
        for actor in self.actors.values():
            self.ray.kill(actor)


def _lost(step: Step, error: Exception) -> WorkerLostError:
    return WorkerLostError(
        "the worker was lost while it ran a step",
        where=f"{step.kind} {step.label}",
        found=str(error).splitlines()[0],
        fix="run the same command again: what is done is kept",
    )
