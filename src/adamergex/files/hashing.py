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

_BLOCK = 1024 * 1024  # large, because a thread that imports holds the interpreter for milliseconds between two blocks


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal. Raises: OSError for a file that cannot be read."""
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """SHA-256 of several files, beside other work: hashing leaves the interpreter to other threads.

    A hash is of the bytes that were read here, never taken over from a record. The files are read once more than the
    work itself needs, since its threads take them in any order; so a hash counts only if size, time of change and
    identity of the file are the same before the hashing and at the end of the work.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._left = list(reversed(self.paths))
        self._found: dict[Path, tuple[str, tuple[int, ...]]] = {}
        self._stopped = False
        self._threads: list[Thread] = []
        self.hurry()

    def hurry(self) -> None:
        """Take one more thread."""
        thread = Thread(target=self._work)
        self._threads.append(thread)
        thread.start()

    def result(self) -> dict[Path, str]:
        """Path -> SHA-256, without the files that could not be read or were changed; waits for all."""
        self._wait()
        found = {}
        for path, (digest, state) in self._found.items():
            try:
                same = state == _state(os.stat(path))
            except OSError:
                same = False
            if same:
                found[path] = digest
        return found

    def stop(self) -> None:
        """Give up what is not done."""
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
            except (OSError, IndexError):  # not read, so not found; or another thread took the last one
                continue

    def _hash(self, path: Path, block: memoryview) -> None:
        digest = hashlib.sha256()
        with _open(path) as file:
            state = _state(os.fstat(file.fileno()))
            while count := file.readinto(block):
                digest.update(block[:count])
                if self._stopped:
                    return
        self._found[path] = digest.hexdigest(), state


def _open(path: str | Path) -> FileIO:
    """Unbuffered; a pipe, which could keep a reader waiting for ever, or a device is refused by an OSError."""
    # O_NONBLOCK: opening a pipe that nobody writes to would wait.
    file = FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_ahead: list[Digests] = []


@contextmanager
def ahead(paths: Sequence[Path]) -> Iterator[None]:
    """Hash what ``beside`` will ask for, while the modules that do the work are still being imported."""
    digests = Digests(paths)
    _ahead.append(digests)
    try:
        yield
    finally:
        if digests in _ahead:
            _ahead.remove(digests)
        digests.stop()


def beside(paths: Sequence[Path]) -> Digests:
    """The digests of these files: those begun ``ahead``, or new ones."""
    begun = next((digests for digests in _ahead if digests.paths == list(paths)), None)
    if begun is None:
        begun = Digests(paths)
    else:
        _ahead.remove(begun)
    begun.hurry()
    return begun
