"""The Ray engine: steps run on workers of any machine of a cluster; paths are sent, never tensors.

The store is on a file system that all machines share under one path. Workers are kept from step to step, so that the
last backbone stays loaded; each holds its GPU as a Ray resource. If a worker is lost with its machine, its step goes to
another worker. The driver has no state beyond the store: a new driver can continue.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from adamergex.errors import AdamergexError
from adamergex.graph.steps import Step, Store
from adamergex.graph.walk import LATE, by_kind, walk
from adamergex.graph.worker import Action, WorkerLostError, attempt

PATIENCE = 30.0  # seconds without any worker before a message
STARTS = 3  # consecutive failed starts of one worker before an error


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
    group: Callable[[Step], Hashable] = by_kind,
    late: float = LATE,
) -> None:
    """Run the missing steps on a Ray cluster; ``actions`` must be importable functions.

    Args:
        address: of the cluster (``auto``, ``host:port`` or ``ray://…``); None starts one on this machine.
        workers: number of workers; by default as many as currently fit. Surplus workers start when machines join.
        gpus, cpus: resources of each worker; by default one core, and one GPU if the cluster has any.
        retries: how often a step is retried after its worker was lost.
        late: seconds within which a result written by another machine must become visible here.

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
    """The Ray actor that runs steps, one per process."""

    def __init__(self, root: str, actions: Mapping[str, Action]) -> None:
        self.root, self.actions = Path(root), actions

    def ready(self) -> bool:
        return True

    def attempt(self, step: Step) -> Exception | None:
        return attempt(step, self.root, self.actions)


class _Cluster:
    """The workers of a cluster. A worker that has not answered yet has no machine, and gets no step."""

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
        self.arguments = str(store.root.absolute()), dict(actions)
        self.actors: dict[int, Any] = {}
        self.ready: set[int] = set()
        self.failed_starts: Counter[int] = Counter()  # failures since this number's last worker was ready
        self.calls: dict[Any, tuple[int, Step | None]] = {}  # reference -> worker and its step; None: a ready call
        for number in range(count):
            self._start_worker(number)

    def _start_worker(self, number: int) -> None:
        self.actors[number] = self.remote.remote(*self.arguments)
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
        """The error of a finished call, if any. An error of Ray itself (machine lost, no memory, no environment)
        replaces the worker; an error of our code is the step's, and is returned as a value, except if the step could
        not be unpickled."""
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
        """Start another worker for a failed one; kill the old one, which may still hold its GPU."""
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
        found=lines[-1] if lines else type(error).__name__,  # the last line of a traceback names the cause
        fix="install adamergex, and what your own tasks import, in the same environment on every machine",
    )


def _lost(step: Step, error: Exception) -> WorkerLostError:
    return WorkerLostError(
        "the worker was lost while it ran a step",
        where=f"{step.kind} {step.label}",
        found=str(error).splitlines()[0],
        fix="run the same command again: what is done is kept",
    )
