"""The task's head beside a bottleneck adapter (AdapterHub's layout): checked like the adapter, then copied as it is."""

from __future__ import annotations

import os
from pathlib import Path

from adamergex.errors import AdapterFileError
from adamergex.files import inputs
from adamergex.files.directory import AdapterDirectory, TensorReader, require_gathered
from adamergex.files.tensor_header import read_header
from adamergex.merging.stream import require_finite

CONFIG, TENSORS, PICKLE = "head_config.json", "model_head.safetensors", "pytorch_model_head.bin"


def require_head(directory: Path) -> None:
    """The head, if there is one, can be read and is finite.

    Raises:
        AdapterFileError: it is damaged, holds a number that is not finite, or is only a pickle, which is never read.
    """
    if not os.path.lexists(directory / TENSORS):
        if os.path.lexists(directory / PICKLE):
            raise AdapterFileError(
                "The head has no safetensors file.",
                where=directory,
                found=PICKLE,
                expected=TENSORS,
                fix="convert the adapter once with adamergex convert",
            )
        return
    header = read_header(directory / TENSORS)
    require_gathered(header.tensors.values(), directory / TENSORS)
    head = AdapterDirectory(directory, {}, header.tensors, header.metadata, TENSORS)
    with TensorReader(head) as reader:
        require_finite(reader, head.tensors.values())
    if os.path.lexists(directory / CONFIG):
        inputs.read_json_object(directory / CONFIG, what="the head's config", error=AdapterFileError)


def copy_head(directory: Path, stage: Path) -> None:
    """The head's files, as ``require_head`` found them."""
    for name in (CONFIG, TENSORS):
        if (directory / name).is_file():
            (stage / name).write_bytes((directory / name).read_bytes())
