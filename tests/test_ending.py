"""How commands end, with real processes: Ctrl-C, closed pipes, bugs of ours, no memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from adamergex.cli.ending import ended
from adamergex.cli.main import main
from adamergex.errors import DataError
from test_engines import alive
from test_pipeline import settings

STOPPED = "stopped; run the same command again, finished steps are kept\n"
TESTS = Path(__file__).parent
ENGINE = """
import sys
from pathlib import Path
from adamergex.cli.ending import ended
from adamergex.graph.local import run
from adamergex.graph.steps import Store
from counted_actions import ACTIONS, step
def command():
    log = Path(sys.argv[2])
    steps = [step(log, name, seconds=0 if name == "first" else 60) for name in ("first", "second", "third")]
    run(steps, Store(Path(sys.argv[1])), ACTIONS, processes=int(sys.argv[3]))
    return 0
if __name__ == "__main__":
    sys.exit(ended(command))
"""


def _as_in_the_foreground() -> None:
    """A shell's background jobs, and so tests that one starts there, ignore Ctrl-C; a foreground job does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*command: object, **settings: object) -> subprocess.Popen[str]:
    """A process with a group of its own, as a terminal's foreground job is."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, *map(str, command)], env=environment, text=True, start_new_session=True,
        preexec_fn=_as_in_the_foreground,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings},
    )  # fmt: skip


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ctrl-C: to all processes of the job. What it has said; nobody of it is left."""
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not members(process.pid)
    return said


@pytest.mark.parametrize(("processes", "running"), [(1, 1), (2, 2), (2, 0)])
def test_ctrl_c_is_one_line_and_leaves_no_worker(tmp_path: Path, processes: int, running: int) -> None:
    script, log, root = tmp_path / "script.py", tmp_path / "log", tmp_path / "store"
    script.write_text(ENGINE)
    process = start(script, root, log, processes)
    assert process.stdout is not None
    # From the second step on workers start: with running = 0 they are interrupted while they do.
    assert any("second" in line for line in iter(process.stdout.readline, "")), process.communicate()[1]
    deadline = time.monotonic() + 60
    while running and time.monotonic() < deadline:
        text = log.read_text() if log.exists() else ""
        if text.count("start") - text.count("end") >= running and "end first" in text:
            break
        time.sleep(0.02)
    out, err = interrupt(process)
    assert process.returncode == 130
    assert err == STOPPED and "Traceback" not in out
    pids = {int(line.split()[2]) for line in log.read_text().splitlines()} if log.exists() else set()
    assert not any(map(alive, pids))
    if running:
        from adamergex.graph.steps import Store
        from counted_actions import step

        assert Store(root).has(step(log, "first"))


def test_a_transfer_that_is_stopped_goes_on(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_encoder, small_data, tmp_path / "run", methods=["english_tuning"], targets=["sw"])
    wanted["task"]["optimisation"]["steps"] = 2000
    file = tmp_path / "topics.yaml"
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    process = start("-m", "adamergex", "transfer", file)
    assert process.stdout is not None
    assert "train" in process.stdout.readline()
    time.sleep(3)  # in the imports or in the training
    out, err = interrupt(process)
    assert process.returncode == 130
    assert [line for line in err.splitlines(True) if "loss" not in line] == [STOPPED]
    assert not list((tmp_path / "run").rglob(".*")) and not list((tmp_path / "run" / "store").glob("partial/*.lock"))
    wanted["task"]["optimisation"]["steps"] = 2
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    assert main(["transfer", str(file)]) == 0


@pytest.mark.parametrize("verb", ["runs", "--help"])
def test_a_closed_pipe_ends_quietly(verb: str, tmp_path: Path) -> None:
    process = start("-m", "adamergex", verb, *([tmp_path] if verb == "runs" else []))
    assert process.stdout is not None
    process.stdout.close()  # before the first line is there
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) == (128 + signal.SIGPIPE if verb == "runs" else 0)  # argparse lets its help go


def test_a_shell_pipe_ends_quietly(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    for number in range(3000):  # more lines than a pipe holds
        (tmp_path / "studies" / f"{number}.json").write_text("{}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        f"{sys.executable} -m adamergex runs {tmp_path} | head -1", shell=True, env=environment, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout == b"no results\n"


def test_a_broken_pipe_elsewhere_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise BrokenPipeError(32, "Broken pipe")

    assert ended(command) == 2
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("a \x1b[2Jproblem", where="here"), 2, "adamergex: a \\x1b[2Jproblem\n  where: here\n"),
        (KeyError("nobody thought of it"), 1, "this is a bug of adamergex: KeyError"),
        (RecursionError("deep"), 1, "this is a bug of adamergex: RecursionError"),
        (MemoryError(), 2, "the machine has no memory left"),
        (OSError(28, "No space left on device"), 2, "free space on the disk"),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_an_error_is_one_message(
    error: Exception, code: int, words: str, traced: bool, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def command() -> int:
        raise error

    if traced:
        monkeypatch.setenv("ADAMERGEX_TRACEBACK", "1")
    assert ended(command) == code
    told = capsys.readouterr().err
    assert words in told and ("Traceback" in told) == traced
    if code == 1:
        assert "test_ending.py, line" in told and "ADAMERGEX_TRACEBACK=1" in told
