"""What is written is whole or not there: killed at every step, on a full disk, and by many processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adamergex.errors import AdapterFileError
from adamergex.files import outputs
from adamergex.files.outputs import filled_directory, replaced_directory, staged_directory, write_files

# One run into an output: a new folder, an old folder replaced, files replaced, all of one generation.
RUN = """
import os, sys
from pathlib import Path
from adamergex.files.outputs import *
def run(root, text):
    big = text * 100_000
    with filled_directory(root / "run") as folder:
        with replaced_directory(folder / "adapters" / "one") as stage:
            (stage / "config").write_text(big)
            (stage / "part").mkdir()
            (stage / "part" / "tensors").write_text(big)
        (root / "origin").write_text(big)
        write_files(folder, {"predictions/one": root / "origin"})
        write_files(folder, {"results": big, "report": big.encode()})
    if not (root / "merged").exists():
        with staged_directory(root / "merged") as stage:
            (stage / "tensors").write_text(big)
"""
KILLED = (
    RUN
    + """
import signal
WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile", "shutil.rmtree", "ctypes.dlsym")
def attempt(number, root):
    count = 0
    def hook(event, arguments):
        nonlocal count
        writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if event in WATCHED and writes and str(root) in str(arguments):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    run(root, "new")
root, copies = Path(sys.argv[1]), Path(sys.argv[2])
import shutil
run(root, "old")
for number in range(1, 500):
    place = copies / str(number)
    shutil.copytree(root, place)
    if number % 2:
        shutil.rmtree(place / "merged")
    child = os.fork()
    if child == 0:
        attempt(number, place)
        os._exit(0)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        break
print(number)
"""
)


def python(code: str, *arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload, no-any-return]


def contents(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_killed_at_every_change_the_old_or_the_new_is_there_whole(tmp_path: Path) -> None:
    root, copies = tmp_path / "root", tmp_path / "copies"
    root.mkdir()
    done = python(KILLED, root, copies)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25  # so many changes were cut off
    whole = {text * 100_000 for text in ("old", "new")}
    expected = {name for name in contents(root) if name.startswith("run/")}
    seen = set()
    for place in copies.iterdir():
        found = contents(place)
        for name in expected:
            assert found[name] in whole, f"{name} after {place.name}"
            seen.add(found[name])
        assert found["run/adapters/one/config"] == found["run/adapters/one/part/tensors"]  # of one generation
        assert found.get("merged/tensors") in {*whole, None}
        again = python(f"{RUN}\nrun(Path(sys.argv[1]), 'again')", place) if place.name in ("9", "17", "26") else None
        if again is not None:  # what was left blocks nothing and goes
            assert again.returncode == 0, again.stderr
            assert not list(place.rglob(".*"))
            assert {contents(place)[name] for name in expected} == {"again" * 100_000}
    assert seen == whole


LIMITED = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
"""


@pytest.mark.parametrize("room", [0, 1000, 299_999])
def test_a_limit_on_files_leaves_the_old_ones_and_no_rest(tmp_path: Path, room: int) -> None:
    assert python(f"{RUN}\nrun(Path(sys.argv[1]), 'old')", tmp_path).returncode == 0
    before = contents(tmp_path)
    done = python(f"{RUN}{LIMITED}\nrun(Path(sys.argv[1]), 'new')", tmp_path, room)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert contents(tmp_path) | {"origin": ""} == before | {"origin": ""}
    assert not list(tmp_path.rglob(".*.partial"))


def test_a_limit_that_kills_in_the_middle_of_a_write_leaves_the_old_files(tmp_path: Path) -> None:
    assert python(f"{RUN}\nrun(Path(sys.argv[1]), 'old')", tmp_path).returncode == 0
    before = contents(tmp_path)
    deadly = f"{LIMITED}\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)\nrun(Path(sys.argv[1]), 'new')"
    assert python(f"{RUN}{deadly}", tmp_path, 1000).returncode < 0
    found = contents(tmp_path)
    assert all(found[name] == text for name, text in before.items())
    assert any(name.endswith(".partial/config") for name in found)  # half of it was written, under another name
    assert python(f"{RUN}\nrun(Path(sys.argv[1]), 'new')", tmp_path).returncode == 0
    assert not list(tmp_path.rglob(".*"))


def test_a_full_disk_leaves_the_old_files(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        assert python(f"{RUN}\nrun(Path(sys.argv[1]), 'old')", tmp_path).returncode == 0
        before = contents(tmp_path)
        done = python(f"{RUN}\nrun(Path(sys.argv[1]), 'newer')", tmp_path)
        assert done.returncode == 1 and "No space left" in done.stderr
        found = contents(tmp_path)
        assert {name for name in before if found[name] not in ("old" * 100_000, "newer" * 100_000)} <= {"origin"}
        assert found["run/results"] == "old" * 100_000 and found["run/report"] == "old" * 100_000
        assert not list(tmp_path.rglob(".*.partial"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_eight_writers_of_one_output_wait_and_are_refused(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom adamergex.errors import AdapterFileError\n"
        "from adamergex.files.outputs import staged_directory\ntry:\n"
        "    with staged_directory(sys.argv[1]) as stage:\n"
        "        (stage / 'file').write_text(sys.argv[2]); time.sleep(0.2)\n    print('wrote')\n"
        "except AdapterFileError as error:\n    print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    runs = [subprocess.Popen([*command, str(n)], env=environment, stdout=-1, stderr=-1, text=True) for n in range(8)]
    said = [run.communicate(timeout=60) for run in runs]
    assert all(run.returncode == 0 for run in runs)
    wrote = [number for number, (out, _) in enumerate(said) if out == "wrote\n"]
    assert len(wrote) == 1 and (tmp_path / "out" / "file").read_text() == str(wrote[0])
    assert all("the output exists already" in out for number, (out, _) in enumerate(said) if number != wrote[0])
    assert all(err.count("\n") <= 1 and err.startswith(("", "waiting for another run")) for _, err in said)
    assert any("waiting for another run that writes" in err for _, err in said)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_rest_of_another_output_is_left_alone(tmp_path: Path) -> None:
    for name in (".out.1-0123abcd.partial", ".out.b.2-0123abcd.partial", ".out.2-0123abcd.part", "out.partial"):
        (tmp_path / name).mkdir()
    with staged_directory(tmp_path / "out") as stage:
        (stage / "file").write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".out.2-0123abcd.part", ".out.b.2-0123abcd.partial", "out", "out.partial",
    ]  # fmt: skip


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("before", ["nothing", "folder", "file", "link"])
def test_a_folder_takes_the_place_of_what_was_there(
    tmp_path: Path, before: str, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # a file system that cannot exchange two names
        monkeypatch.setattr(outputs, "_exchanged", lambda one, other: False)
    target, other = tmp_path / "adapters" / "one", tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("kept")
    target.parent.mkdir()
    if before == "folder":
        target.mkdir()
        (target / "old").write_text("old")
    elif before == "file":
        target.write_text("old")
    elif before == "link":
        target.symlink_to(other)
    with replaced_directory(target) as stage:
        (stage / "new").write_text("new")
    assert contents(target) == {"new": "new"} and not target.is_symlink()
    assert contents(other) == {"kept": "kept"}
    assert [path.name for path in target.parent.iterdir()] == ["one"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "old").write_text("old")
    with pytest.raises(RuntimeError), replaced_directory(tmp_path / "one") as stage:
        (stage / "new").write_text("new")
        raise RuntimeError
    assert contents(tmp_path) == {"one/old": "old"}


def test_one_missing_origin_changes_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError):
        write_files(tmp_path, {"a": "new", "b": tmp_path / "nothing"})
    assert contents(tmp_path) == {"a": "old"}


def test_an_output_that_is_a_file_cannot_be_filled(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AdapterFileError, match="cannot be written"), filled_directory(tmp_path / "file"):
        pass


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(AdapterFileError, match=r"exists already(.|\n)*a directory"):
        write_files(tmp_path, {"a": "new", "b": "new"})
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("part", ["predictions", "adapters"])
def test_an_output_whose_folders_are_links_is_refused(tmp_path: Path, part: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / part).symlink_to(tmp_path / "outside")
    with pytest.raises(AdapterFileError, match="is a link"), filled_directory(tmp_path / "run"):
        pass
    assert contents(tmp_path) == {}
