"""The task's head of a bottleneck adapter (AdapterHub's layout): checked like the adapter, then copied."""

from __future__ import annotations

import os
from pathlib import Path

from adamergex.errors import AdapterFileError
from adamergex.files import inputs
from adamergex.files.directory import (
    HEAD_CONFIG,
    HEAD_PICKLE,
    HEAD_TENSORS,
    AdapterDirectory,
    TensorReader,
    require_gathered,
)
from adamergex.files.tensor_header import read_header
from adamergex.merging.stream import require_finite


def require_head(directory: Path) -> None:
    """Require that the head, if any, can be read and is finite.

    Raises:
        AdapterFileError: it is damaged, has a value that is not finite, or is only a pickle, which is never read.
    """
    if not os.path.lexists(directory / HEAD_TENSORS):
        if os.path.lexists(directory / HEAD_PICKLE):
            raise AdapterFileError(
                "the head has no safetensors file",
                where=directory,
                found=HEAD_PICKLE,
                expected=HEAD_TENSORS,
                fix="convert the adapter once with adamergex convert",
            )
        return
    header = read_header(directory / HEAD_TENSORS)
    require_gathered(header.tensors.values(), directory / HEAD_TENSORS)
    head = AdapterDirectory(directory, {}, header.tensors, header.metadata, HEAD_TENSORS)
    with TensorReader(head) as reader:
        require_finite(reader, head.tensors.values())
    if os.path.lexists(directory / HEAD_CONFIG):
        inputs.read_json_object(directory / HEAD_CONFIG, what="the head's config", error=AdapterFileError)


def copy_head(directory: Path, stage: Path) -> None:
    """Copy the head's files."""
    for name in (HEAD_CONFIG, HEAD_TENSORS):
        if (directory / name).is_file():
            (stage / name).write_bytes((directory / name).read_bytes())
