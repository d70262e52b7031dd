"""SHA-256 of regular files. Standard library only."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from threading import Thread

_BLOCK = 1024 * 1024  # large: a thread that imports holds the interpreter for milliseconds between two blocks


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal. Raises: OSError for a file that cannot be read."""
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """SHA-256 of several files, computed in threads beside other work: hashing releases the interpreter.

    A hash is always computed from bytes read here, never taken from a record. The files are read a second time, since
    the work reads them in any order; so a hash counts only if size, modification time and identity of the file are the
    same before hashing and at the end of the work.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._left = list(reversed(self.paths))
        self._hashed: dict[Path, tuple[str, tuple[int, ...]]] = {}
        self._stopped = False
        self._threads: list[Thread] = []
        self.add_thread()

    def add_thread(self) -> None:
        """Add one more thread."""
        thread = Thread(target=self._work)
        self._threads.append(thread)
        thread.start()

    def result(self) -> dict[Path, str]:
        """Wait, and return path -> SHA-256 without files that could not be read or were changed."""
        self._wait()
        digests = {}
        for path, (digest, state) in self._hashed.items():
            try:
                same = state == _state(os.stat(path))
            except OSError:
                same = False
            if same:
                digests[path] = digest
        return digests

    def stop(self) -> None:
        """Stop hashing."""
        self._stopped = True
        self._wait()

    def _wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        block = memoryview(bytearray(_BLOCK))
        while self._left and not self._stopped:
            try:
                self._hash(self._left.pop(), block)
            except (OSError, IndexError):  # a file that cannot be read; or another thread took the last one
                continue

    def _hash(self, path: Path, block: memoryview) -> None:
        digest = hashlib.sha256()
        with _open(path) as file:
            state = _state(os.fstat(file.fileno()))
            while count := file.readinto(block):
                digest.update(block[:count])
                if self._stopped:
                    return
        self._hashed[path] = digest.hexdigest(), state


def _open(path: str | Path) -> FileIO:
    """Open unbuffered; an OSError refuses devices and pipes, which could block a reader forever."""
    # O_NONBLOCK: opening a pipe without a writer would block.
    file = FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


_ahead: list[Digests] = []


@contextmanager
def ahead(paths: Sequence[Path]) -> Iterator[None]:
    """Start hashing the files that ``beside`` will request, while modules are still being imported."""
    digests = Digests(paths)
    _ahead.append(digests)
    try:
        yield
    finally:
        if digests in _ahead:
            _ahead.remove(digests)
        digests.stop()


def beside(paths: Sequence[Path]) -> Digests:
    """The digests of these files, started ``ahead`` or now."""
    digests = next((started for started in _ahead if started.paths == list(paths)), None)
    if digests is None:
        digests = Digests(paths)
    else:
        _ahead.remove(digests)
    digests.add_thread()
    return digests
