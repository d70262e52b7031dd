"""Runs the items of a job on several cores, in threads: numpy, reads and writes release the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Lock, Thread
from typing import TypeVar

MOST = 3
"""Most threads: each has its own buffers (7 MB for bfloat16), and a few of them saturate the memory."""

Buffer = TypeVar("Buffer")
Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """The number of threads: the cores that this process may use, at most ``MOST``."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return min(len(allowed(0)) if allowed else os.cpu_count() or 1, MOST)


def shared(work: Callable[[Buffer, Item], Result], buffers: Sequence[Buffer], items: Sequence[Item]) -> list[Result]:
    """Run ``work`` on every item, in order, in one thread per buffer (the first is the calling thread).

    Results are in the order of the items.

    Raises:
        the error of the first failing item, independent of the order of the threads.
    """
    results: dict[int, Result] = {}
    failed: dict[int, BaseException] = {}
    numbers, lock = iter(range(len(items))), Lock()

    def run(buffer: Buffer) -> None:
        while not failed:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = work(buffer, items[number])
            except BaseException as error:
                failed[number] = error

    threads = [Thread(target=run, args=(buffer,)) for buffer in buffers[1:]]
    for thread in threads:
        thread.start()
    run(buffers[0])
    for thread in threads:
        thread.join()
    if failed:
        raise failed[min(failed)]
    return [results[number] for number in range(len(items))]
