"""The command line in processes of their own, forked from one that has the libraries loaded: loading them takes longer
than most commands do. ``subprocess`` is for what is claimed of the start itself."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import runpy
import socket
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

TESTS = Path(__file__).parent
Work = Callable[[list[str]], int]


@cache
def preloaded() -> Any:
    """The context whose processes are forked from the one that has the libraries, which starts with the first use."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()
    return context


class Running:
    """A process that was started; ``done`` waits for it."""

    def __init__(
        self, work: Work, arguments: list[str], paths: list[str], largest: int | None = None, **environment: str
    ) -> None:
        (out, child_out), (err, child_err) = preloaded().Pipe(False), preloaded().Pipe(False)
        given = (work, arguments, {**os.environ, **environment}, paths, largest, child_out, child_err)
        self.arguments, self.process = arguments, preloaded().Process(target=_child, args=given)
        self.process.start()
        child_out.close()
        child_err.close()
        self._readers = ThreadPoolExecutor(2)
        self._said = [self._readers.submit(_all_of, pipe) for pipe in (out, err)]

    def done(self, timeout: float = 300) -> CompletedProcess[str]:
        out, err = (said.result(timeout) for said in self._said)
        self.process.join(timeout)
        self._readers.shutdown()
        return CompletedProcess(self.arguments, self.process.exitcode, out, err)


def _all_of(pipe: Connection) -> str:
    with open(os.dup(pipe.fileno()), encoding="utf-8") as stream:
        pipe.close()
        return stream.read()


def _child(
    work: Work,
    arguments: list[str],
    environment: Mapping[str, str],
    paths: list[str],
    largest: int | None,
    out: Connection,
    err: Connection,
) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
    os.environ.clear()
    os.environ.update(environment, TOKENIZERS_PARALLELISM="false")
    sys.path[:0] = paths
    importlib.invalidate_caches()
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    code = work(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _command(arguments: list[str]) -> int:
    from adamergex.cli.main import main

    sys.argv = ["adamergex", *arguments]
    return main(arguments)


def _script(arguments: list[str]) -> int:
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def start(*arguments: object, paths: tuple[Path, ...] = (), largest: int | None = None) -> Running:
    """``adamergex`` with these arguments. ``paths``: installed packages; ``largest``: bytes that a file may have."""
    return Running(_command, [*map(str, arguments)], [*map(str, paths)], largest)


def command(*arguments: object, paths: tuple[Path, ...] = (), largest: int | None = None) -> CompletedProcess[str]:
    """The same, waited for."""
    return start(*arguments, paths=paths, largest=largest).done()


def script(path: Path, *arguments: object) -> CompletedProcess[str]:
    """A script of this project, as ``python PATH ...`` runs it."""
    return Running(_script, [str(path), *map(str, arguments)], [str(path.parent)]).done()


def team(path: Path, *arguments: object, size: int = 2, timeout: float = 300) -> list[CompletedProcess[str]]:
    """A script in ``size`` processes that find each other as those of torchrun do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    given = [str(path), *map(str, arguments)]
    running = [
        Running(_script, given, [str(path.parent)], RANK=str(rank), LOCAL_RANK=str(rank), **meeting)
        for rank in range(size)
    ]
    return [process.done(timeout) for process in running]
