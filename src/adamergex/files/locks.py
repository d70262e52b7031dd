"""Locks between processes: one holder at a time, released by the kernel when it exits. Standard library only."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, *, wait: bool = True, waiting_for: str | None = None) -> Iterator[bool]:
    """Hold an exclusive lock on a file, which is removed with the lock.

    Yields whether the lock was acquired; it always is with ``wait``. ``waiting_for`` names the other process's work,
    for one message on standard error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not _locked(handle):
            if not wait:
                os.close(handle)
                yield False
                return
            if waiting_for is not None:
                print(f"waiting for {waiting_for} (it holds {path})", file=sys.stderr, flush=True)
                waiting_for = None
            _await(handle)
        try:  # the previous holder may have removed the file
            same = os.fstat(handle).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(handle)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except BaseException:
        os.close(handle)
        raise
    return True


def _await(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except BaseException:  # an interrupt, or a file system without locks
        os.close(handle)
        raise
