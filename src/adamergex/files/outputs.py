"""Writes all outputs atomically: staged beside the target, synced, renamed. Standard library only.

After a kill or on a full disk the output is the old one or the new one, never a part. A killed run leaves a file or
directory ``.NAME.PID-HEX.partial``, which blocks nothing; the next run into the same output removes it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from adamergex.errors import AdapterFileError
from adamergex.files.locks import file_lock

_STAGE = r"\d+-[0-9a-f]{8}\.partial"


def require_free(output: str | Path) -> Path:
    """The output path, if it does not exist or is an empty directory.

    Raises:
        AdapterFileError: the output exists.
    """
    path = Path(output)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise _in_use(path)
    return path


@contextmanager
def staged_directory(output: str | Path) -> Iterator[Path]:
    """A hidden sibling directory that is renamed to ``output`` at the end, or removed on an exception.

    Only one process at a time writes an output: the others wait, and then fail because it exists.

    Raises:
        AdapterFileError: the output exists, or cannot be written.
    """
    path = require_free(output)
    with _locked(path):
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
    """A directory that only this process fills, file by file (see ``write_files``), while others wait.

    Raises:
        AdapterFileError: the output is not a directory, or cannot be written.
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
            expected="a real folder",
            fix="remove the link, or choose another output",
        )
    with file_lock(path / ".lock", waiting_for=f"another run into {path}"):
        for folder in (path, *parts):
            _clear(folder, rf"\..+\.{_STAGE}")
        yield path


@contextmanager
def replaced_directory(target: Path) -> Iterator[Path]:
    """A directory to fill, which replaces ``target``, if it exists, by one rename at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = _stage(target)
    try:
        stage.mkdir()
        yield stage
        sync_tree(stage)
        _replace(stage, target)
        sync(target.parent)
    finally:
        remove(stage)  # after the exchange this is the old directory


def write_files(folder: str | Path, contents: Mapping[str, str | bytes | Path]) -> None:
    """Write files into a folder, each atomically: name -> text (UTF-8), bytes, or the file to copy.

    All are on disk before the first one is renamed, so that a full disk changes none.
    Raises: AdapterFileError when a folder has the name of a file.
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
    """Remove a file, a link (never its target) or a directory tree; a missing path is fine."""
    if path.is_dir() and not path.is_symlink():
        from shutil import rmtree  # 3 ms to import, and rarely needed

        rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock an output against other processes, and remove what killed ones left of it."""
    target = path.absolute()
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = target.parent / f".{target.name}.lock"
            stack.enter_context(file_lock(lock, waiting_for=f"another run that writes {path}"))
        except OSError as error:
            raise _unwritable(path, error) from error
        _clear(target.parent, rf"\.{re.escape(target.name)}\.{_STAGE}")
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


def _replace(stage: Path, target: Path) -> None:
    """Rename ``stage`` to ``target``; an old directory gets the name of ``stage``. ``target`` exists at every moment
    if the file system can exchange two names (Linux, macOS)."""
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


def _exchanged(stage: Path, target: Path) -> bool:
    import ctypes

    libc, pair = ctypes.CDLL(None, use_errno=True), (os.fsencode(stage), os.fsencode(target))
    with suppress(AttributeError):  # a libc without it
        if sys.platform == "darwin":
            return int(libc.renamex_np(*pair, ctypes.c_uint(2))) == 0  # RENAME_SWAP
        here, exchange = -100, ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
        return int(libc.renameat2(here, pair[0], here, pair[1], exchange)) == 0
    return False


def sync_tree(folder: Path) -> None:
    """Flush a directory tree to disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to disk."""
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
        expected="a path that does not exist",
        fix="choose another output, or remove this one first",
    )


def _unwritable(path: Path, error: OSError) -> AdapterFileError:
    return AdapterFileError(
        "the output cannot be written",
        where=path,
        found=error.strerror or str(error),
        fix="choose another output",
    )
