"""Writes tensors to a safetensors file, with a typed error on failure; hashes of tensors and seeds for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from adamergex.errors import AdapterFileError
from adamergex.files.directory import TENSORS
from adamergex.files.tensor_files import separate


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of tensors, with PEFT's metadata by default. Raises: AdapterFileError on failure."""
    try:
        save_file(dict(tensors), path, metadata=dict(metadata or {"format": "pt"}))
    except SafetensorError as error:
        raise unwritable(path, error) from error


def write_adapter_tensors(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write ``adapter_model.safetensors``, creating the directory if needed. Raises: AdapterFileError."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(separate(tensors), directory / TENSORS)


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and float32 bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + b"\0" + str(tuple(tensor.shape)).encode() + b"\0")
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def seeded(text: str) -> torch.Generator:
    """A generator seeded by the SHA-256 of a text, so that its numbers do not depend on earlier draws."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1)


def unwritable(path: Path | str, error: Exception) -> AdapterFileError:
    """The typed error for a file that a library cannot write."""
    return AdapterFileError(
        "tensors cannot be written",
        where=path,
        found=(str(error) or type(error).__name__).splitlines()[0],
        fix="free some room on the disk, raise the limit on the size of files, or choose another output",
    )
