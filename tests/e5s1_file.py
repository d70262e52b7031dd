"""A small E5S1 file, written by the format's description and by nothing of the package that reads it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁river", "▁deep", "river", "s", "é", "<mask>"]
HIDDEN, LAYERS, HEADS, INNER, ROWS, POSITIONS, TYPES = 32, 2, 4, 64, 13, 16, 2


def shapes() -> dict[str, tuple[int, ...]]:
    every: dict[str, tuple[int, ...]] = {
        "emb.word": (ROWS, HIDDEN),
        "emb.pos": (POSITIONS, HIDDEN),
        "emb.type": (TYPES, HIDDEN),
        "emb.ln.w": (HIDDEN,),
        "emb.ln.b": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for part in ("q", "k", "v", "ao"):
            every |= {f"l{layer}.{part}.w": (HIDDEN, HIDDEN), f"l{layer}.{part}.b": (HIDDEN,)}
        for part in ("aln", "oln"):
            every |= {f"l{layer}.{part}.w": (HIDDEN,), f"l{layer}.{part}.b": (HIDDEN,)}
        every |= {f"l{layer}.fi.w": (INNER, HIDDEN), f"l{layer}.fi.b": (INNER,)}
        every |= {f"l{layer}.fo.w": (HIDDEN, INNER), f"l{layer}.fo.b": (HIDDEN,)}
    return every


def blocks(generator: np.random.Generator, count: int) -> tuple[bytes, np.ndarray]:
    """Random Q4_0 blocks, and their weights by a loop over single nibbles in float64."""
    data, values = b"", []
    for _ in range(count // 32):
        scale = np.float16(generator.normal() * 0.02)
        nibbles = generator.integers(0, 256, 16, dtype=np.uint8)
        data += scale.tobytes() + nibbles.tobytes()
        values += [(int(byte) % 16 - 8) * float(scale) for byte in nibbles]
        values += [(int(byte) // 16 - 8) * float(scale) for byte in nibbles]
    return data, np.array(values, np.float64)


def write(path: Path, *, seed: int = 0, tokens: list[str] = TOKENS) -> dict[str, np.ndarray]:
    """Write the file; returns name -> weights in float64, in their shape."""
    generator = np.random.default_rng(seed)
    texts = [token.encode() for token in tokens]
    header = struct.pack("<4sI7ifi", b"E5S1", 1, HIDDEN, LAYERS, HEADS, INNER, ROWS, POSITIONS, TYPES, 1e-12, 32)
    header += struct.pack("<5iQ", len(tokens), 0, 2, 1, 3, sum(map(len, texts)))
    header += np.cumsum([0, *map(len, texts)], dtype=np.uint32).tobytes()
    header += np.linspace(0, -9, len(tokens), dtype=np.float32).tobytes() + b"".join(texts)
    header += struct.pack("<iI", 0, 5) + b"rules"
    weights, parts = {}, []
    for name, shape in shapes().items():
        count = int(np.prod(shape))
        if len(shape) > 1:
            data, values = blocks(generator, count)
        else:
            single = generator.normal(1, 0.1, count).astype("<f4")
            data, values = single.tobytes(), single.astype(np.float64)
        weights[name] = values.reshape(shape)
        parts.append((name.encode(), int(len(shape) > 1), count, data))
    offset = len(header) + 4 + sum(2 + len(name) + 1 + 4 + 8 + 8 for name, *_ in parts)
    directory = struct.pack("<i", len(parts))
    for name, kind, count, data in parts:
        directory += struct.pack("<H", len(name)) + name + struct.pack("<BIQQ", kind, count, offset, len(data))
        offset += len(data)
    path.write_bytes(header + directory + b"".join(data for *_, data in parts))
    return weights
