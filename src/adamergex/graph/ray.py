"""The engine of a Ray cluster: steps go to workers on any machine; paths travel, never tensors.

The store lies on a file system that all machines share under one path. Workers stay from step to step, so that the
backbone of the last one is still loaded; each holds its GPU as a resource of Ray. A step whose worker is lost with its
machine goes to another worker. The driver keeps nothing that the store does not have: a new one goes on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from adamergex.errors import AdamergexError
from adamergex.graph.steps import Step, Store
from adamergex.graph.walk import LATE, alike, walk
from adamergex.graph.worker import Action, WorkerLostError, attempt

PATIENCE = 30.0  # seconds without any worker before it is said
STARTS = 3  # workers of one number that may fail one after the other before one of them is ready


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
    late: float = LATE,
) -> None:
    """Run what is missing on a Ray cluster; ``actions`` must be importable functions.

    Args:
        address: of the cluster (``auto``, ``host:port`` or ``ray://…``); None starts one on this machine.
        workers: how many; by default as many as the cluster has room for now. More than there is room for wait, and
            start when machines join.
        gpus, cpus: what each worker holds; by default one GPU where the cluster has any, and one core.
        retries: how often a step is tried again when its worker was lost.
        late: seconds until what another machine has written must be seen on this one.

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
    cluster = _Cluster(ray, store, actions, workers, gpus, cpus, say)
    walk(wanted, store, cluster, say, group=group, retries=retries, late=late)


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
                fix="start one (ray start --head), or omit --address to use this machine alone",
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
        self.failed_starts: Counter[int] = Counter()  # those that failed since this number's last worker was ready
        self.calls: dict[Any, tuple[int, Step | None]] = {}  # reference -> worker and its step; None: is it there?
        for number in range(count):
            self._start_worker(number)

    def _start_worker(self, number: int) -> None:
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
            error = self._outcome(call, number, step)
            if step is not None:
                outcomes.append((step, error))
        return outcomes

    def _outcome(self, call: Any, number: int, step: Step | None) -> Exception | None:
        """What a call has come to. Whatever Ray itself says of it (lost with its machine, no memory, no environment)
        costs the worker; what our code raised is the step's own error, and comes back as a value but where the step
        could not even be read."""
        try:
            error = self.ray.get(call)
        except self.ray.exceptions.RayError as failed:
            if step is not None and isinstance(failed, self.ray.exceptions.RayTaskError):
                return failed.cause if isinstance(failed.cause, Exception) else failed
            self._replace(number, failed)
            return _lost(step, failed) if step is not None else None
        self.ready.add(number)
        del self.failed_starts[number]
        return error if isinstance(error, Exception) else None

    def _replace(self, number: int, error: Exception) -> None:
        """Another worker for one that failed; the old one, which may still hold its GPU, goes."""
        if number not in self.ready:
            self.failed_starts[number] += 1
            if self.failed_starts[number] == STARTS:
                raise _unstartable(error)
        self.ready.discard(number)
        self.ray.kill(self.actors[number])
        self._start_worker(number)

    def close(self) -> None:
        for actor in self.actors.values():
            self.ray.kill(actor)


def _unstartable(error: Exception) -> AdamergexError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return AdamergexError(
        f"a worker of the cluster does not start, tried {STARTS} times",
        found=lines[-1] if lines else type(error).__name__,  # of a traceback the last line names the cause
        fix="install adamergex, and what your own tasks import, in the same environment on every machine",
    )


def _lost(step: Step, error: Exception) -> WorkerLostError:
    return WorkerLostError(
        "the worker was lost while it ran a step",
        where=f"{step.kind} {step.label}",
        found=str(error).splitlines()[0],
        fix="run the same command again: what is done is kept",
    )
