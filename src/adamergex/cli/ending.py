"""How a command ends: an exit code, and one message instead of a traceback.

Exit codes: 0 success; 1 a bug of adamergex; 2 an error that the user can fix; 130 stopped by Ctrl-C; 141 the reader of
a pipe is gone. Standard library only.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper

from adamergex.errors import AdamergexError, of_machine, of_memory, printable

TRACEBACK = "ADAMERGEX_TRACEBACK"
"""The environment variable that makes errors show their traceback."""


def say(text: object) -> None:
    """Print text that may contain untrusted words, without terminal control codes."""
    print(printable(text, sys.maxsize), flush=True)


def ended(command: Callable[[], int], speaker: str = "adamergex") -> int:
    """Run a command; returns its exit code, or that of its error, which is printed on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show λ replaces it
    try:
        try:
            return _run(command, speaker)
        finally:
            sys.stdout.flush()  # a closed pipe raises here, not when the interpreter exits
    except KeyboardInterrupt:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends at once
        start = "\n" if sys.stderr.isatty() else ""
        print(f"{start}stopped; run the same command again, finished steps are kept", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in filter(_reader_is_gone, (sys.stdout, sys.stderr)):
            os.dup2(nowhere, stream.fileno())  # discards its buffer
        return 128 + signal.SIGPIPE


def _run(command: Callable[[], int], speaker: str) -> int:
    try:
        return command()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and any(map(_reader_is_gone, (sys.stdout, sys.stderr))):
            raise
        if os.environ.get(TRACEBACK):
            from traceback import print_exc  # 7 ms to import

            print_exc()
        message, code = _message(error)
        print(f"{speaker}: {message}", file=sys.stderr)
        return code


def _message(error: Exception) -> tuple[object, int]:
    """The message of an error, and the exit code."""
    if isinstance(error, AdamergexError):
        return error, 2
    # Operating-system errors: a full disk, a limit, permissions, no memory. Bad input raises AdamergexError before.
    if isinstance(error, OSError):
        return of_machine(error), 2
    if isinstance(error, MemoryError):
        return of_memory(error), 2
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}" if trace is not None else None
    bug = AdamergexError(
        f"this is a bug of adamergex: {type(error).__name__}",
        where=place,
        found=error,
        fix=f"please report it; with {TRACEBACK}=1 in the environment the same command shows the traceback",
    )
    return bug, 1


def _reader_is_gone(stream: object) -> bool:
    """Whether the stream's pipe has no reader."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # type: ignore[attr-defined]
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False
