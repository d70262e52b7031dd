"""Tensors into a safetensors file, with an error of ours where the disk does not take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from adamergex.errors import AdapterFileError


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of tensors, with PEFT's metadata by default. Raises: AdapterFileError, where it cannot."""
    try:
        save_file(dict(tensors), path, metadata=dict(metadata or {"format": "pt"}))
    except SafetensorError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path | str, error: Exception) -> AdapterFileError:
    """What a library says of a file that it cannot write, in our words."""
    return AdapterFileError(
        "tensors cannot be written",
        where=path,
        found=(str(error) or type(error).__name__).splitlines()[0],
        fix="free some room on the disk, raise the limit on the size of files, or choose another output",
    )
