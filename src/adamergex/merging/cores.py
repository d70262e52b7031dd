"""Pieces of one piece of work on several cores: numpy, reads and writes leave the interpreter to other threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Lock, Thread
from typing import TypeVar

MOST = 3
"""Threads at most: each has buffers of its own (7 MB of bfloat16), and a few of them keep the memory busy."""

Buffers = TypeVar("Buffers")
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def cores() -> int:
    """How many threads to take: the cores that this process may use, at most ``MOST``."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return min(len(allowed(0)) if allowed else os.cpu_count() or 1, MOST)


def shared(
    work: Callable[[Buffers, Piece], Result], buffers: Sequence[Buffers], pieces: Sequence[Piece]
) -> list[Result]:
    """``work`` on every piece, one thread a buffer (the first is the caller's), taken in order.

    Results lie in the order of the pieces, whichever thread made them.

    Raises:
        what the earliest failing piece raised: the same one, however the threads took turns.
    """
    results: dict[int, Result] = {}
    failed: dict[int, BaseException] = {}
    numbers, lock = iter(range(len(pieces))), Lock()

    def run(buffer: Buffers) -> None:
        while not failed:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = work(buffer, pieces[number])
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
    return [results[number] for number in range(len(pieces))]
