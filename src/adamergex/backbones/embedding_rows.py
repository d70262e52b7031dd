"""The tensors of a checkpoint with one row per token, and the others: the body."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adamergex.backbones.base_files import checkpoint_files
from adamergex.backbones.loading import vocabulary_size
from adamergex.errors import ModelError
from adamergex.files.directory import SafetensorsWriter, TensorInfo
from adamergex.files.tensor_header import read_header

# Name endings of input embeddings and language-model heads in transformers' architectures, for tensors with one axis as
# long as the vocabulary.
_TOKEN_ROWS = (
    "word_embeddings.weight",
    "embed_tokens.weight",
    "tok_embeddings.weight",
    "wte.weight",
    "embed_in.weight",
    "shared.weight",
    "lm_head.weight",
    "lm_head.bias",
    "cls.predictions.bias",
    "decoder.weight",
    "decoder.bias",
    "vocab_projector.weight",
    "vocab_projector.bias",
    "embed_out.weight",
    "final_logits_bias",
)
_CHUNK = 16 << 20  # bytes hashed or copied at a time


@dataclass(frozen=True)
class _Tensor:
    info: TensorInfo
    path: Path
    axis: int | None

    def bytes(self, rows: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """The stored bytes of all rows, or of the given ones, in chunks."""
        info = self.info
        if info.size == 0:
            return
        stored = np.memmap(self.path, np.uint8, "r", info.offset, (info.size * info.item_size,))
        if rows is None or self.axis is None:
            for start in range(0, len(stored), _CHUNK):
                yield np.asarray(stored[start : start + _CHUNK])
            return
        outer = int(np.prod(info.shape[: self.axis]))
        table = stored.reshape(outer, info.shape[self.axis], -1)
        step = max(1, _CHUNK // table.shape[2])
        for index in range(outer):
            for start in range(0, len(rows), step):
                yield np.ascontiguousarray(table[index, rows[start : start + step]])


@dataclass(frozen=True)
class WeightRows:
    """A checkpoint's tensors. ``tokens``: number of rows of the embeddings; ``hidden``: their width."""

    tensors: tuple[_Tensor, ...]
    tokens: int
    hidden: int
    bytes: int

    @classmethod
    def open(cls, base: str, tokens: int, known: int = 0) -> WeightRows:
        """The tensors of a base. ``tokens``: the config's ``vocab_size``; ``known``: tokens of the tokenizer.

        Raises: ModelError: the weights are only a pickle, there are no embeddings of ``tokens`` rows, an unknown tensor
        has that many rows, or the tokenizer has more tokens than there are rows.
        """
        files = checkpoint_files(base)[1:]
        if any(path.suffix != ".safetensors" for path in files):
            raise ModelError(
                "the weights are a pickle, which is not read here",
                where=base,
                found=files[0].name,
                expected="model.safetensors",
                fix="load the model once with transformers and save it again",
            )
        tensors, hidden = [], 0
        for path in files:
            for info in read_header(path).tensors.values():
                axis = _axis(base, info, tokens)
                if axis == 0 and len(info.shape) == 2:
                    hidden = info.shape[1]
                tensors.append(_Tensor(info, path, axis))
        if not hidden or known > tokens:
            raise ModelError(
                "the embeddings do not have a row for each token",
                where=base,
                found=f"vocab_size {tokens}, {known} tokens in the tokenizer",
                expected="embeddings of vocab_size rows, and no fewer rows than tokens",
                fix="use the base as it is",
            )
        return cls(tuple(tensors), tokens, hidden, sum(path.stat().st_size for path in files))

    def write(self, path: Path, rows: Sequence[int]) -> None:
        """Write all tensors; those with one row per token get only the given rows."""
        infos = {}
        for tensor in self.tensors:
            shape = list(tensor.info.shape)
            if tensor.axis is not None:
                shape[tensor.axis] = len(rows)
            infos[tensor.info.name] = replace(tensor.info, shape=tuple(shape), offset=0)
        writer = SafetensorsWriter(path, list(infos.values()))
        named = {tensor.info.name: tensor for tensor in self.tensors}
        for info in writer.order:
            for part in named[info.name].bytes(rows):
                writer.write(part)
        writer.close()

    def is_part_of(self, full: WeightRows, rows: Sequence[int]) -> bool:
        """Whether these tensors equal the full base's, restricted to the given rows, bit for bit."""
        others = {tensor.info.name: tensor for tensor in full.tensors}
        if others.keys() != {tensor.info.name for tensor in self.tensors} or len(rows) != self.tokens:
            return False
        if rows and not 0 <= min(rows) <= max(rows) < full.tokens:
            return False
        for tensor in self.tensors:
            other = others[tensor.info.name]
            if (tensor.info.dtype, tensor.axis) != (other.info.dtype, other.axis):
                return False
            if tensor.axis is None and tensor.info.shape != other.info.shape:
                return False
            # The chunks of both cover the same rows.
            chunks = zip(tensor.bytes(range(self.tokens)), other.bytes(rows), strict=False)
            if not all(np.array_equal(chunk, full_chunk) for chunk, full_chunk in chunks):
                return False
        return True

    def body_sha256(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of the body's tensors, ordered by name."""
        digest = hashlib.sha256()
        for tensor in sorted(self.tensors, key=lambda item: item.info.name):
            if tensor.axis is None:
                digest.update(f"{tensor.info.name}\0{tensor.info.dtype}\0{tensor.info.shape}\0".encode())
                for part in tensor.bytes():
                    digest.update(part.tobytes())
        return digest.hexdigest()


_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.int32: "I32"}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a small safetensors file of floats and int32; unlike the library's, deterministic in its bytes."""
    infos = [TensorInfo(name, _DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(path, infos, metadata)
    for info in writer.order:
        writer.write(tensors[info.name].cpu().contiguous().numpy())
    writer.close()


def body_sha256(base: str) -> str:
    """SHA-256 of a base's body: see ``WeightRows.body_sha256``."""
    return WeightRows.open(base, vocabulary_size(base)).body_sha256()


def _axis(base: str, info: TensorInfo, tokens: int) -> int | None:
    """The axis of a tensor that indexes tokens, or None. Raises: ModelError for an unknown tensor."""
    if tokens not in info.shape:
        return None
    if info.name.endswith(_TOKEN_ROWS):
        return info.shape.index(tokens)
    if info.shape[0] != tokens:
        return None
    raise ModelError(
        "an unknown tensor has as many rows as there are tokens",
        where=f"{base}: {info.name}",
        found=info.shape,
        fix="use the base as it is, and report this architecture",
    )
