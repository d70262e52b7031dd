"""The task's head beside a bottleneck adapter (AdapterHub's layout): checked like the adapter, then copied as it is."""

from __future__ import annotations

from pathlib import Path

from adamergex.checkpoint import FLOATS, AdapterDirectory, TensorReader, read_header
from adamergex.errors import AdapterFileError
from adamergex.merging.lockstep import Chunk, ranges
from adamergex.merging.stream import finite_squares

CONFIG, TENSORS, PICKLE = "head_config.json", "model_head.safetensors", "pytorch_model_head.bin"


def require_head(directory: Path) -> None:
    """The head, if there is one, can be read and is finite.

    Raises:
        AdapterFileError: it is damaged, holds a number that is not finite, or is only a pickle, which is never read.
    """
    if not (directory / TENSORS).is_file():
        if (directory / PICKLE).is_file():
            raise AdapterFileError(
                "The head has no safetensors file.",
                where=directory,
                found=PICKLE,
                expected=TENSORS,
                fix="convert the adapter once with adamergex convert",
            )
        return
    head = AdapterDirectory(directory, {}, *read_header(directory / TENSORS), TENSORS)
    with TensorReader(head) as reader:
        for info in head.tensors.values():
            for start, stop in ranges(info.size) if info.dtype in FLOATS else ():
                finite_squares(Chunk(reader, info, start, *reader.read(info, start, stop)))


def copy_head(directory: Path, stage: Path) -> None:
    """The head's files, as ``require_head`` found them."""
    for name in (CONFIG, TENSORS):
        if (directory / name).is_file():
            (stage / name).write_bytes((directory / name).read_bytes())
