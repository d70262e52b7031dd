"""The local engine: this process, or several processes with one GPU (or a share of the cores) each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process

from adamergex.backbones.cache import drop_backbone
from adamergex.graph.steps import Step, Store
from adamergex.graph.walk import StepsFailedError, by_kind, needed, walk
from adamergex.graph.worker import Action, WorkerLostError, attempt, perform

__all__ = ["Action", "StepsFailedError", "needed", "run"]


def run(
    wanted: Iterable[Step],
    store: Store,
    actions: Mapping[str, Action],
    say: Callable[[str], None] = print,
    *,
    processes: int = 1,
    gpus: bool = False,
    group: Callable[[Step], Hashable] = by_kind,
) -> None:
    """Run the missing steps. A failed step fails only the steps that depend on it; one final error lists all failures.

    With more than one process ``actions`` must be importable functions; with ``gpus`` process i sees only GPU i.

    Raises:
        StepsFailedError: one or more steps failed. The first failure is its cause.
    """
    workers = _Here(store, actions) if processes == 1 else _Processes(store, actions, processes, gpus)
    walk(wanted, store, workers, say, group=group)


class _Here:
    """One worker: this process."""

    def __init__(self, store: Store, actions: Mapping[str, Action]) -> None:
        self.store, self.actions = store, actions
        self.done: list[tuple[Step, Exception | None]] = []

    def idle(self) -> list[Hashable]:
        return ["here"]

    def start(self, worker: Hashable, step: Step) -> None:
        try:
            perform(step, self.store, self.actions)
            self.done.append((step, None))
        except Exception as error:  # the walk raises it after the other branches of the graph
            self.done.append((step, error))

    def finished(self) -> list[tuple[Step, Exception | None]]:
        done, self.done = self.done, []
        return done

    def close(self) -> None:
        drop_backbone()  # frees memory


class _Processes:
    """Workers in separate processes, kept from step to step. Each is a pool of one process, so that a crash loses only
    its own step."""

    def __init__(self, store: Store, actions: Mapping[str, Action], count: int, gpus: bool) -> None:
        self.store, self.actions, self.count, self.gpus = store, actions, count, gpus
        self.pools = [self._pool(index) for index in range(count)]
        self.running: dict[Future[Exception | None], tuple[int, Step]] = {}

    def _pool(self, index: int) -> ProcessPoolExecutor:
        threads = max(1, (os.cpu_count() or 1) // self.count)
        arguments = (str(index) if self.gpus else None, threads)
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_set_up_worker, initargs=arguments)

    def idle(self) -> list[Hashable]:
        busy = {index for index, _ in self.running.values()}
        return [index for index in range(self.count) if index not in busy]

    def start(self, worker: Hashable, step: Step) -> None:
        assert isinstance(worker, int)
        with _uninterrupted():  # inherited by the worker process, which starts with its first step
            future = self.pools[worker].submit(attempt, step, self.store.root, dict(self.actions))
        self.running[future] = worker, step

    def finished(self) -> list[tuple[Step, Exception | None]]:
        done, _ = wait(self.running, return_when=FIRST_COMPLETED)
        outcomes: list[tuple[Step, Exception | None]] = []
        for future in done:
            index, step = self.running.pop(future)
            try:
                outcomes.append((step, future.result()))
            except BrokenProcessPool:
                self.pools[index] = self._pool(index)
                outcomes.append((step, _lost(step)))
        return outcomes

    def close(self) -> None:
        for pool in self.pools:
            # After an interrupt a step may still run; terminate it, since it can resume from its work folder.
            for process in list(getattr(pool, "_processes", None) or {}) if self.running else []:
                pool._processes[process].terminate()
            pool.shutdown(wait=not self.running, cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block SIGINT: Ctrl-C reaches all processes of the terminal, but only this one should handle it and end its
    workers. Workers started here never see it; this process handles it after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up_worker(gpu: str | None, threads: int) -> None:
    """Set a worker's device and threads before any library reads them, and make it end with its parent."""
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(gpu)] if visible else gpu
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent process ends, so that an orphaned worker does not keep its GPU."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _lost(step: Step) -> WorkerLostError:
    return WorkerLostError(
        "the worker process died while it ran a step",
        where=f"{step.kind} {step.label}",
        expected="a common cause is lack of memory: see the machine's log",
        fix="run the same command again, with fewer processes or smaller batches",
    )
