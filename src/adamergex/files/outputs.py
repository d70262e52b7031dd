"""The one door for what is written: staged beside its place, synced, renamed whole. Standard library only.

A kill or a full disk at any point leaves what was there before or what is new, never a part. What a killed run leaves
has a name of its own (``.NAME.PID-HEX.partial``), blocks nothing, and goes with the next run into the same output.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from adamergex.errors import AdapterFileError
from adamergex.files.locks import held

_STAGE = r"\d+-[0-9a-f]{8}\.partial"


def require_free(output: str | Path) -> Path:
    """The output path, if nothing is there but at most an empty directory.

    Raises:
        AdapterFileError: the output exists already.
    """
    path = Path(output)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise _in_use(path)
    return path


@contextmanager
def staged_directory(output: str | Path) -> Iterator[Path]:
    """A hidden sibling directory that becomes ``output`` by one rename at the end, or disappears on an exception.

    Only one process at a time writes an output: the others wait, and then find that it exists.

    Raises:
        AdapterFileError: the output exists already, or cannot be written.
    """
    path = require_free(output)
    with _alone(path):
        require_free(path)
        stage = _stage(path)
        try:
            stage.mkdir()
            yield stage
            sync_tree(stage)
            try:
                stage.rename(path)
            except OSError as error:
                raise _in_use(path) from error
            sync(path.parent)
        except BaseException:
            remove(stage)
            raise


@contextmanager
def filled_directory(output: str | Path) -> Iterator[Path]:
    """A directory that this process alone fills, file by file (see ``write_files``), while others wait.

    Raises:
        AdapterFileError: the output is no directory, or cannot be written.
    """
    path = Path(output)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    parts = path / "predictions", path / "adapters"
    if links := [part for part in parts if part.is_symlink()]:
        raise AdapterFileError(
            "a folder of the output is a link",
            where=links[0],
            found=os.readlink(links[0]),
            expected="folders of its own",
            fix="remove the link, or choose another output",
        )
    with held(path / ".lock", waiting_for=f"another run into {path}"):
        for folder in (path, *parts):
            _clear(folder, rf"\..+\.{_STAGE}")
        yield path


@contextmanager
def replaced_directory(target: Path) -> Iterator[Path]:
    """A directory to fill that takes the place of ``target``, if there is one, in one rename at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = _stage(target)
    try:
        stage.mkdir()
        yield stage
        sync_tree(stage)
        _take_place(stage, target)
        sync(target.parent)
    finally:
        remove(stage)  # by now what was there before


def write_files(folder: str | Path, contents: Mapping[str, str | bytes | Path]) -> None:
    """Write files into a folder, each whole: name -> text (UTF-8), bytes, or the file to copy.

    All are on the disk before the first one is renamed, so that a full disk changes none.
    Raises: AdapterFileError, where a folder is in the place of a file.
    """
    for name in contents:
        if (Path(folder) / name).is_dir():
            raise _in_use(Path(folder) / name)
    staged: dict[Path, Path] = {}
    try:
        for name, content in contents.items():
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            staged[_stage(target)] = target
            _write(list(staged)[-1], content)
        for stage, target in staged.items():
            os.replace(stage, target)
        for parent in {target.parent for target in staged.values()}:
            sync(parent)
    finally:
        for stage in staged:
            stage.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a link (never what it leads to) or a directory with all that it holds; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        from shutil import rmtree  # 3 ms to import, and hardly ever needed

        rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes off an output that is one rename; what killed ones left of it goes."""
    place = path.absolute()
    with ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = place.parent / f".{place.name}.lock"
            stack.enter_context(held(lock, waiting_for=f"another run that writes {path}"))
        except OSError as error:
            raise _unwritable(path, error) from error
        _clear(place.parent, rf"\.{re.escape(place.name)}\.{_STAGE}")
        yield


def _clear(folder: Path, pattern: str) -> None:
    with suppress(OSError):
        for name in os.listdir(folder):
            if re.fullmatch(pattern, name):
                remove(folder / name)


def _stage(target: Path) -> Path:
    target = target if target.name not in ("", "..") else target.absolute()
    return target.parent / f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.partial"


def _write(stage: Path, content: str | bytes | Path) -> None:
    if isinstance(content, Path):
        from shutil import copyfile

        copyfile(content, stage)
    elif isinstance(content, bytes):
        stage.write_bytes(content)
    else:
        stage.write_text(content, encoding="utf-8", newline="\n")
    sync(stage)


def _take_place(stage: Path, target: Path) -> None:
    """Rename ``stage`` to ``target``; what was there gets the name of ``stage``. At no moment nothing is there, where
    the file system can exchange two names (Linux, macOS)."""
    if not target.exists() and not target.is_symlink():
        stage.rename(target)
    elif target.is_symlink() or not target.is_dir():
        target.unlink()
        stage.rename(target)
    elif not _exchanged(stage, target):
        aside = _stage(target)
        target.rename(aside)
        stage.rename(target)
        remove(aside)


def _exchanged(one: Path, other: Path) -> bool:
    import ctypes

    libc, pair = ctypes.CDLL(None, use_errno=True), (os.fsencode(one), os.fsencode(other))
    with suppress(AttributeError):  # a libc without it
        if sys.platform == "darwin":
            return int(libc.renamex_np(*pair, ctypes.c_uint(2))) == 0  # RENAME_SWAP
        here, exchange = -100, ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
        return int(libc.renameat2(here, pair[0], here, pair[1], exchange)) == 0
    return False


def sync_tree(folder: Path) -> None:
    """Bring a directory and all that it holds onto the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """Bring a file, or the names in a directory, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _in_use(path: Path) -> AdapterFileError:
    return AdapterFileError(
        "the output exists already",
        where=path,
        found="a directory" if path.is_dir() else "a file or link",
        expected="a path where nothing is yet",
        fix="choose another output, or remove this one first",
    )


def _unwritable(path: Path, error: OSError) -> AdapterFileError:
    return AdapterFileError(
        "the output cannot be written",
        where=path,
        found=error.strerror or str(error),
        fix="choose another output",
    )
