"""Locks between processes: one holder at a time, let go by the kernel with the process. Standard library only."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, *, wait: bool = True, waiting_for: str | None = None) -> Iterator[bool]:
    """An exclusive lock on a file; the file goes when the lock does.

    Yields whether the lock is ours: without ``wait`` it may be another's. ``waiting_for`` names what another process
    does meanwhile; it is said once, on standard error.
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
        try:  # the holder before us may have removed the file that we waited for
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
