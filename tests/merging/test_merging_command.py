"""The merge as a command where the machine is in its way: no room, no signs beyond latin-1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from adapter_files import trio


def command(tmp_path: Path) -> list[str]:
    given = [sys.executable, "-m", "adamergex", "merge", "--weight", "0.5", "--output", str(tmp_path / "out")]
    for role, path in trio(tmp_path / "in").items():
        given += ["--" + role.replace("_", "-"), str(path)]
    return given


def test_a_file_that_cannot_grow_is_one_message(tmp_path: Path) -> None:
    """A limit on the size of files fails in the middle of the merge, as a full disk does."""
    given = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *command(tmp_path)]
    result = subprocess.run(given, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("adamergex: ") and "File too large" in result.stderr
    assert "next: raise the limit" in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_output_that_cannot_say_lambda(tmp_path: Path) -> None:
    """The report of a merge and its help hold λ and Δ; in latin-1 there are none."""
    given = command(tmp_path)
    for arguments in (given, [*given[:4], "--help"]):
        environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        result = subprocess.run(arguments, capture_output=True, check=False, env=environment)
        assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
