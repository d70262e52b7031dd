"""Small adapters and the damage that is done to them: everything follows from one ``random.Random``."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TENSORS, CONFIG, LINEAGE = "adapter_model.safetensors", "adapter_config.json", "lineage.json"
ROLES = ("task", "target", "source")
SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8, "U8": 1, "F8_E4M3": 1}
PREFIX = "base_model.model."
LAYERS, WIDTH, OUT, RANK, TOKENS = 2, 6, 8, 3, 4  # as in a Llama of width 6 with 2 heads of 4


class Tensor(NamedTuple):
    """A tensor as a file holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def encoded(values: np.ndarray, dtype: str) -> bytes:
    """Float values as stored; bfloat16 by cutting, which is good enough here."""
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with np.errstate(over="ignore"):
        return values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).tobytes()


def decoded(tensor: Tensor) -> np.ndarray:
    """Float values in float64, in their shape."""
    if tensor.dtype == "BF16":
        wide = (np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        wide = np.frombuffer(tensor.data, {"F16": np.float16, "F32": np.float32, "F64": np.float64}[tensor.dtype])
    return wide.astype(np.float64).reshape(tensor.shape)


def packed(tensors: list[Tensor], metadata: object = None) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    return framed(json.dumps(header).encode(), b"".join(tensor.data for tensor in tensors))


def framed(text: bytes, data: bytes) -> bytes:
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def unpacked(file: bytes) -> list[Tensor]:
    """The tensors of a sound safetensors file."""
    size = struct.unpack("<Q", file[:8])[0]
    header, data = json.loads(file[8 : 8 + size]), file[8 + size :]
    header.pop("__metadata__", None)
    found = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        found.append(Tensor(name, entry["dtype"], tuple(entry["shape"]), data[begin:end]))
    return found


def trio(kind: str, dtype: str, own_lineage: bool, head: bool) -> dict[str, dict[str, bytes]]:
    """Role -> file -> bytes: three adapters that began from one start and took a small step each."""
    generator, found = np.random.default_rng(0), {}
    start = _start(kind, generator)
    for number, role in enumerate(ROLES):
        step = np.random.default_rng(number + 1)
        tensors = []
        for name, values in start.items():
            moved = values + 0.05 * step.standard_normal(values.shape)
            tensors.append(Tensor(name, dtype, values.shape, encoded(moved, dtype)))
        if head and role == "task" and kind != "prefix":
            tensors.append(Tensor(f"{PREFIX}score.weight", dtype, (2, WIDTH), encoded(np.ones((2, WIDTH)), dtype)))
        found[role] = {
            TENSORS: packed(sorted(tensors), {"format": "pt"}),
            CONFIG: json.dumps(_config(kind), indent=1).encode(),
        }
        if own_lineage:
            found[role][LINEAGE] = json.dumps(_lineage(kind, role)).encode()
    return found


def _start(kind: str, generator: np.random.Generator) -> dict[str, np.ndarray]:
    found = {}
    if kind == "prefix":
        return {"prompt_embeddings": generator.standard_normal((TOKENS, 2 * LAYERS * OUT))}
    for layer in range(LAYERS):
        for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"):
            name = f"{PREFIX}model.layers.{layer}.{module}"
            if kind == "ia3":
                found[f"{name}.ia3_l"] = 1 + 0.2 * generator.standard_normal((OUT, 1))
            else:
                found[f"{name}.lora_A.weight"] = generator.standard_normal((RANK, WIDTH))
                found[f"{name}.lora_B.weight"] = generator.standard_normal((OUT, RANK))
    return found


def _config(kind: str) -> dict[str, Any]:
    known: dict[str, Any] = {"base_model_name_or_path": "BASE", "revision": None, "task_type": "CAUSAL_LM"}
    if kind == "prefix":
        shape = {"num_virtual_tokens": TOKENS, "num_layers": LAYERS, "token_dim": OUT}
        return known | shape | {"peft_type": "PREFIX_TUNING", "num_attention_heads": 2, "num_transformer_submodules": 1}
    known |= {"target_modules": ["q_proj", "v_proj", "up_proj"], "modules_to_save": None, "fan_in_fan_out": False}
    if kind == "ia3":
        return known | {"peft_type": "IA3", "feedforward_modules": []}
    lora = {"r": RANK, "lora_alpha": 2 * RANK, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}
    return known | lora | {"peft_type": "LORA", "use_rslora": False, "lora_dropout": 0.1, "exclude_modules": None}


def _lineage(kind: str, role: str) -> dict[str, Any]:
    task = {"kind": "classification", "labels": ["a", "b"], "measured_as": None, "words": {"a": "x"}}
    return {
        "format": "adamergex-lineage/1",
        "base": {"name": "BASE", "sha256": "0" * 64},
        "structure": {"kind": kind},
        "start": "1" * 64,
        "task": task if role == "task" else {"kind": "language-modeling", "segment": 8},
        "language": "sw" if role == "target" else "en",
        "data": {"rows": 3},
        "settings": {"seed": 0},
        "parents": {"base_adapter": {"path": "x", "sha256": "2" * 64, "language": "en"}},
        "merge": None,
        "versions": {"adamergex": "1"},
    }


LONG, DEEP = "A" * 50_000, "[" * 20_000 + "]" * 20_000
SLOW = "(a|a|aa)+(.*.*.*.*)*X"
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 4, 3.5, -0.0, 1e308, 10**30, -(10**30), 2**63, "", "x", "4", "false", [], [None],
    [[1]], ["x"], {}, {"": None}, {"a": {"b": []}}, "\x1b[31mred\x1b]0;t\x07", "\u202egnp", "a\nb", "../../x",
    "/dev/zero", "x.py", "os.system", SLOW, "(?=q).*", "(", "*", "\\", [SLOW], {SLOW: 3}, {"q_proj": 3}, {"q_proj": 2},
    {".*": 8},
    "@NAN", "@INF", "@-INF", "@HALF", "@LONG", "@DEEP", "@DIGITS",
]  # fmt: skip
_RAW = {
    '"@NAN"': "NaN", '"@INF"': "Infinity", '"@-INF"': "-Infinity", '"@HALF"': '"\\ud800"', '"@LONG"': f'"{LONG}"',
    '"@DEEP"': DEEP, '"@DIGITS"': "9" * 6000,
}  # fmt: skip
FIELDS = (
    "r", "lora_alpha", "peft_type", "task_type", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "use_rslora", "use_dora", "bias", "fan_in_fan_out", "modules_to_save", "layers_to_transform", "layers_pattern",
    "base_model_name_or_path", "revision", "auto_mapping", "auto_map", "trust_remote_code", "megatron_config",
    "megatron_core", "init_lora_weights", "lora_dropout", "num_virtual_tokens", "token_dim", "num_layers", "config",
    "feedforward_modules", "name", "model_name", "lora_bias", "prefix_projection", "encoder_hidden_size",
)  # fmt: skip
WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_fpw_module.")
Damage = Callable[[Path, random.Random], str]


def text_of(value: object) -> bytes:
    """JSON with what ``json`` does not write."""
    text = json.dumps(value)
    for mark, raw in _RAW.items():
        text = text.replace(mark, raw)
    return text.encode()


def _bytes(path: Path, chance: random.Random) -> str:
    """Any file, as bytes."""
    content, kind = (
        path.read_bytes(),
        chance.choice(("flip", "cut", "insert", "drop", "append", "empty", "twice", "utf16")),
    )
    at = chance.randrange(max(1, len(content)))
    if kind == "flip" and content:
        content = content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    elif kind == "cut":
        content = content[:at]
    elif kind == "insert":
        content = content[:at] + chance.randbytes(chance.choice((1, 4, 16))) + content[at:]
    elif kind == "drop":
        content = content[:at] + content[at + chance.choice((1, 4, 16)) :]
    elif kind == "append":
        content += chance.choice((b"\0", b" ", b"x", b"\0" * 8))
    elif kind == "empty":
        content = b""
    elif kind == "twice":
        content += content
    else:
        content = content.decode("latin-1").encode("utf-16")
    path.write_bytes(content)
    return f"bytes {kind} {path.name}"


def _document(folder: Path, chance: random.Random) -> str:
    """A value of a JSON file, at any depth."""
    path = chance.choice([item for item in (folder / CONFIG, folder / LINEAGE) if item.exists()])
    document = json.loads(path.read_bytes())
    place, name = document, chance.choice(sorted(document))
    if path.name == CONFIG and chance.random() < 0.6:
        name = chance.choice(FIELDS)
    while isinstance(place.get(name), dict) and place[name] and chance.random() < 0.8:
        place, name = place[name], chance.choice(sorted(place[name]))
    if chance.random() < 0.1:
        place.pop(name, None)
    else:
        place[name] = chance.choice(VALUES)
    path.write_bytes(text_of(document))
    return f"{path.name} {name}={str(place.get(name))[:30]!r}"


def _twice(folder: Path, chance: random.Random) -> str:
    path = folder / CONFIG
    path.write_bytes(path.read_bytes().rstrip()[:-1] + b', "r": 3, "lora_alpha": 99, "peft_type": "LORA"}')
    return "a name twice"


def _header(folder: Path, chance: random.Random) -> str:
    """The header of the tensors file: entries, metadata, encoding."""
    path = folder / TENSORS
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = chance.choice([key for key in header if key != "__metadata__"])
    kind = chance.choice(("entry", "metadata", "swap", "raw", "length"))
    if kind == "entry":
        field = chance.choice(("dtype", "shape", "data_offsets"))
        header[name][field] = chance.choice([*VALUES, "F32", "F8_E4M3", [0, 4], [4, 0], [2**62, 4], [True, 4], [4.0]])
    elif kind == "metadata":
        header["__metadata__"] = chance.choice([*VALUES, {"format": 5}, {"format": None}, {"format": "\x1b[2J"}])
    elif kind == "swap":
        other = chance.choice([key for key in header if key != "__metadata__"])
        header[name], header[other] = header[other], header[name]
    text = text_of(header)
    if kind == "raw":
        raw = (b"[]", b"null", b"{}", DEEP.encode(), b" " + text, b"\xef\xbb\xbf" + text, text + b"\0")
        text = chance.choice(raw)
    file = framed(text, data)
    if kind == "length":
        file = struct.pack("<Q", chance.choice((0, 1, 2**40, 2**63, 2**64 - 1))) + file[8:]
    path.write_bytes(file)
    return f"header {kind}"


def _names(folder: Path, chance: random.Random) -> str:
    """Names of tensors: wrappers, prefixes, the adapter's name, control characters, two that are one."""
    path = folder / TENSORS
    tensors = unpacked(path.read_bytes())
    at = chance.randrange(len(tensors))
    wrapper = chance.choice(WRAPPERS)
    changes: dict[str, Callable[[str], str]] = {
        "wrapped": lambda name: wrapper + name,
        "wrapped inside": lambda name: name.replace("layers.", f"layers.{wrapper}", 1),
        "no prefix": lambda name: name.removeprefix(PREFIX),
        "adapter's name": lambda name: name.replace(".weight", ".default.weight"),
        "twice the prefix": lambda name: PREFIX + name,
        "base layer": lambda name: name.replace(".lora_A", ".base_layer.lora_A"),
        "another layer": lambda name: name.replace("layers.0", "layers.7"),
        "misspelt": lambda name: name.replace("lora", "l0ra").replace("ia3_l", "ia3_1"),
        "control": lambda name: name + chance.choice(("\x1b[2J", "\u202e", "\n", " ", "")),
        "empty part": lambda name: name.replace(".self_attn", ".."),
        "embedding": lambda name: f"{PREFIX}model.embed_tokens.weight",
        "other factor": lambda name: name.replace("lora_A", "lora_embedding_A"),
        "long": lambda name: name.replace("layers", "l" * 2000),
    }
    kind = chance.choice(sorted(changes))
    everywhere = chance.random() < 0.6 and kind != "embedding"
    found = [
        tensor._replace(name=changes[kind](tensor.name)) if everywhere or number == at else tensor
        for number, tensor in enumerate(tensors)
    ]
    if chance.random() < 0.15:
        found.append(tensors[at])
    path.write_bytes(packed(list({tensor.name: tensor for tensor in found}.values()), {"format": "pt"}))
    return f"names {kind} {'all' if everywhere else 'one'}"


def _tensors(folder: Path, chance: random.Random) -> str:
    """Values, shapes and dtypes of tensors."""
    path = folder / TENSORS
    tensors = unpacked(path.read_bytes())
    at = chance.randrange(len(tensors))
    name, dtype, shape, data = tensors[at]
    count = len(data) // SIZES[dtype]
    kind = chance.choice(
        ("value", "all", "huge", "zero", "empty", "drop", "transpose", "rank", "dtype", "head", "scalar")
    )
    if kind == "value" and dtype in ("F16", "BF16", "F32", "F64"):
        odd = encoded(np.array([chance.choice((np.nan, np.inf, -np.inf))]), dtype)
        place = chance.randrange(max(1, count)) * SIZES[dtype]
        tensors[at] = tensors[at]._replace(data=data[:place] + odd + data[place + len(odd) :])
    elif kind in ("all", "huge"):
        largest = {"F16": 6e4, "BF16": 3e38, "F32": 3e38, "F64": 1e308}[dtype]
        values = np.full(count, largest if kind == "huge" else chance.choice((0.0, 1.0, np.nan)))
        tensors[at] = tensors[at]._replace(data=encoded(values, dtype))
    elif kind == "zero":
        tensors = [tensor._replace(data=bytes(len(tensor.data))) for tensor in tensors]
    elif kind == "empty":
        some = range(len(tensors)) if chance.random() < 0.5 else [at]
        for number in some:
            tensors[number] = tensors[number]._replace(shape=chance.choice(((0,), (0, 4), (2**40, 0))), data=b"")
    elif kind == "drop":
        del tensors[at]
    elif kind == "transpose":
        tensors[at] = tensors[at]._replace(shape=shape[::-1])
    elif kind == "rank" and "lora_A" in name:
        tensors[at] = tensors[at]._replace(shape=(shape[0] + 1, shape[1]), data=data + data[: len(data) // shape[0]])
    elif kind == "dtype":
        other = chance.choice(sorted(SIZES))
        tensors[at] = tensors[at]._replace(dtype=other, data=bytes(count * SIZES[other]))
    elif kind == "head":
        leaf = chance.choice(("score", "classifier.dense", "model.norm", "lm_head", "model.embed_tokens", "x"))
        values = encoded(np.array([1.0, chance.choice((2.0, np.nan))]), "F32")
        tensors.append(Tensor(f"{PREFIX}{leaf}.bias", "F32", (2,), values))
    elif kind == "scalar":
        tensors[at] = tensors[at]._replace(shape=(), data=data[: SIZES[dtype]])
    path.write_bytes(packed(list({tensor.name: tensor for tensor in tensors}.values()), {"format": "pt"}))
    return f"tensors {kind}"


def _file_system(folder: Path, chance: random.Random) -> str:
    """What stands where a file should be."""
    path = chance.choice(sorted(folder.iterdir()))
    kind = chance.choice(("missing", "folder", "dangling", "itself", "null", "zeros", "pipe", "link"))
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(folder / "nowhere")
    elif kind == "itself":
        path.symlink_to(path)
    elif kind in ("null", "zeros"):
        path.symlink_to("/dev/null" if kind == "null" else "/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (folder / "real").write_bytes(content)
        path.symlink_to(folder / "real")
    return f"{path.name} is {kind}"


def damaged(folder: Path, chance: random.Random) -> str:
    """Do one damage to an adapter directory; what it was."""
    kinds: list[tuple[Damage, int]] = [
        (_document, 32), (_tensors, 22), (_names, 18), (_header, 14), (_file_system, 4), (_twice, 1),
        (lambda path, chance: _bytes(chance.choice(sorted(path.iterdir())), chance), 12),
    ]  # fmt: skip
    [damage] = chance.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
    return damage(folder, chance)
