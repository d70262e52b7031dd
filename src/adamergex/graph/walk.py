"""The graph walk shared by all engines: which steps must run, which are ready, and which a failure skips."""

from __future__ import annotations

import heapq
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Protocol

from adamergex.errors import AdamergexError, of_machine, of_memory, printable
from adamergex.graph.steps import Step, Store, in_order
from adamergex.graph.worker import WorkerLostError

LATE = 60.0
"""Seconds until a result of another machine is visible: NFS caches directories that long."""


class StepsFailedError(AdamergexError):
    """Some steps failed; all steps that do not depend on them are done and kept."""


class Workers(Protocol):
    """The workers of an engine. ``finished`` waits until a started step has an outcome, or a new worker is idle."""

    def idle(self) -> list[Hashable]: ...

    def start(self, worker: Hashable, step: Step) -> None: ...

    def finished(self) -> list[tuple[Step, Exception | None]]: ...

    def close(self) -> None: ...


def needed(wanted: Iterable[Step], store: Store) -> list[Step]:
    """The steps that must run, inputs first: wanted steps without a result in the store, and their missing inputs."""
    missing: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in missing and not store.has(step):
            missing[step.key] = step
            for name in sorted(step.inputs):
                visit(step.inputs[name])

    for step in wanted:
        visit(step)
    return [step for step in in_order(missing.values()) if step.key in missing]


def by_kind(step: Step) -> Hashable:
    """The default group of a step: its kind. See ``walk``."""
    return step.kind


def walk(
    wanted: Iterable[Step],
    store: Store,
    workers: Workers,
    say: Callable[[str], None] = print,
    *,
    group: Callable[[Step], Hashable] = by_kind,
    retries: int = 0,
    late: float = LATE,
) -> None:
    """Run the missing steps. A failed step fails only the steps that depend on it; one final error lists all failures.

    A worker preferably gets a step of the same ``group`` as its last one, to reuse what it has loaded. A step whose
    worker was lost is retried ``retries`` times. A result written by another machine may take up to ``late`` seconds to
    become visible here.

    Raises:
        StepsFailedError: one or more steps failed. The first failure is its cause.
    """
    state = _Walk(needed(wanted, store), group, retries, say)
    for damaged in state.steps:
        if damaged.key in store.damaged:
            reason = printable(store.damaged[damaged.key], 300)
            say(f"{store.path(damaged)} is damaged, so it is made again: {reason}")
    try:
        while state.unfinished:
            for worker in workers.idle():
                step = state.next(worker)
                if step is not None:
                    workers.start(worker, step)
            for step, error in workers.finished():
                if error is None and not _is_visible(step, store, late):
                    error = _not_shared(step, store)
                    late = 0  # the store is not shared: do not wait for its other steps either
                state.end(step, error)
    finally:
        workers.close()
    state.require_success()


class _Walk:
    """The state of a walk: waiting steps, ready steps (by group, in graph order), failures."""

    def __init__(
        self, steps: list[Step], group: Callable[[Step], Hashable], retries: int, say: Callable[[str], None]
    ) -> None:
        self.steps, self.group, self.retries, self.say = steps, group, retries, say
        self.position = {step.key: number for number, step in enumerate(steps)}
        self.users: dict[str, list[Step]] = {step.key: [] for step in steps}
        self.waiting: dict[str, int] = {}
        self.ready: dict[Hashable, list[int]] = {}
        self.last: dict[Hashable, Hashable] = {}
        self.tries: Counter[str] = Counter()
        self.failures: dict[str, Exception] = {}
        self.started, self.unfinished = 0, len(steps)
        for step in steps:
            inputs = {parent.key for parent in step.inputs.values()} & self.position.keys()
            self.waiting[step.key] = len(inputs)
            for key in inputs:
                self.users[key].append(step)
            if not inputs:
                self._make_ready(step)

    def next(self, worker: Hashable) -> Step | None:
        """Remove and return the next step for a worker."""
        if not self.ready:
            return None
        last = self.last.get(worker, math.nan)
        name = last if last in self.ready else min(self.ready, key=lambda name: self.ready[name][0])
        step = self.steps[heapq.heappop(self.ready[name])]
        if not self.ready[name]:
            del self.ready[name]
        self.last[worker] = name
        if not self.tries[step.key]:
            self.started += 1
        self.tries[step.key] += 1
        self.say(self._line(step))
        return step

    def end(self, step: Step, error: Exception | None) -> None:
        """Record an outcome: steps that waited for this one become ready, or fail with it."""
        if isinstance(error, WorkerLostError) and self.tries[step.key] <= self.retries:
            self.say(f"{self._line(step)} - the worker was lost, again")
            self._make_ready(step)
            return
        self.unfinished -= 1
        if isinstance(error, (OSError, MemoryError)):
            error = of_machine(error) if isinstance(error, OSError) else of_memory(error)
        if error is not None:
            self.failures[step.key] = error
            self.say(f"{self._line(step)} - failed: {printable(str(error) or type(error).__name__).splitlines()[0]}")
        for user in self.users[step.key]:
            if error is None:
                self.waiting[user.key] -= 1
                if not self.waiting[user.key] and user.key not in self.failures:
                    self._make_ready(user)
            elif user.key not in self.failures:
                self.started += 1
                self._skip(user)

    def _skip(self, step: Step) -> None:
        self.say(f"{self._line(step)} - skipped, an input failed")
        self.failures[step.key] = AdamergexError("an input failed", where=step.label)
        self.unfinished -= 1
        for user in self.users[step.key]:
            if user.key not in self.failures:
                self.started += 1
                self._skip(user)

    def _make_ready(self, step: Step) -> None:
        heapq.heappush(self.ready.setdefault(self.group(step), []), self.position[step.key])

    def _line(self, step: Step) -> str:
        return f"[{self.started}/{len(self.steps)}] {step.kind:9s} {printable(step.label)}"

    def require_success(self) -> None:
        if not self.failures:
            return
        first = next(iter(self.failures.values()))
        if len(self.failures) == 1 and isinstance(first, AdamergexError):
            raise first
        failed = [step for step in self.steps if step.key in self.failures]
        raise StepsFailedError(
            f"{len(failed)} of {len(self.steps)} steps failed",
            where="; ".join(f"{step.kind} {step.label}" for step in failed),
            found=f"{type(first).__name__}: {first}",
            fix="fix the first one and run the same command again: what is done is kept",
        ) from first


def _is_visible(step: Step, store: Store, late: float) -> bool:
    """Whether the step's result is visible to this process within ``late`` seconds."""
    deadline = time.monotonic() + late
    while store.manifest(step) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
        with suppress(OSError):
            os.listdir(store.path(step).parent)  # opening the folder refreshes a network file system's cache
    return True


def _not_shared(step: Step, store: Store) -> AdamergexError:
    return AdamergexError(
        "a worker has done a step, but its result is not in the store that this process sees",
        where=store.path(step),
        fix="keep the store on a file system that all machines share, under one path",
    )
