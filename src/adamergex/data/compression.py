"""Compressed files, read in bounded space."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO

from adamergex.errors import DataError
from adamergex.files import inputs

SWALLOWED = 8
"""csv: this many lines inside quotation marks that all look like rows show an unclosed mark; tsv: marks that open and
close within fewer lines show that the file is quoted like csv."""


class Unpacked(io.RawIOBase):
    """The contents of a gzip file, within the limits of ``inputs``."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file, self._count = path, file, 0
        self._unpacked = gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        block = self._unpacked.read1(len(buffer))
        buffer[: len(block)] = block
        self._count += len(block)
        require_ratio(self._path, self._file.tell(), self._count)
        return len(block)


def require_ratio(path: Path, packed: int, unpacked: int) -> None:
    """Raises: DataError for data that expand more than text can."""
    if unpacked > inputs.UNPACKED_BYTES and unpacked > inputs.UNPACKED_RATIO * packed:
        raise DataError(
            "the file expands too much when unpacked",
            where=path,
            found=f"more than {unpacked:,} bytes from {packed:,}",
            expected=f"at most {inputs.UNPACKED_RATIO} times its size (text: 3 to 10 times)",
            fix="check where the file comes from, or unpack it yourself",
        )
