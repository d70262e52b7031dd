"""Prefix-tuning: trained keys and values before those of every layer. Source: 2101.00190."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from adamergex.errors import AdapterFileError
from adamergex.files.directory import FLOATS, AdapterDirectory, TensorInfo
from adamergex.files.inputs import Json
from adamergex.structures.kind import StructureKind
from adamergex.structures.layout import Layout, Site, unsupported

PROMPT = "prompt_embeddings"
"""PEFT's name of the prefix P (n, 2·layers·width): n virtual tokens; keys and values of layer 0, of layer 1, …"""
SAVED = "divergence."
"""What stands before the name of a span in the tensors of a saved divergence."""


class Shape(NamedTuple):
    """What ``adapter_config.json`` says of a prefix; a prefix of another shape is another structure."""

    num_virtual_tokens: int
    num_layers: int
    token_dim: int
    num_attention_heads: int
    num_transformer_submodules: int

    @property
    def columns(self) -> int:
        """Width of P: a key and a value of ``token_dim`` for every layer."""
        return 2 * self.num_layers * self.token_dim


def shape(config: Mapping[str, Json], where: object) -> Shape:
    """The shape in a PEFT config. Raises AdapterFileError unless all of it is there."""
    found = {name: config.get(name) for name in Shape._fields}
    if any(type(value) is not int or value < 1 for value in found.values()):
        raise AdapterFileError(
            "the config does not give the shape of the prefix",
            where=where,
            found=found,
            expected="positive numbers",
            fix="save the adapter again with save_pretrained, which writes all of them",
        )
    return Shape(**found)  # type: ignore[arg-type]


def role(name: str) -> str:
    """A tensor's name without what a training checkpoint puts before it: ``embedding.weight``, ``transform.0.bias``."""
    return re.sub(r"^prompt_encoder\.(?:[^.]+\.)?(?=(?:embedding|transform)\.)", "", name)


def layout(directory: AdapterDirectory, kind: StructureKind) -> Layout:
    """PEFT's materialised prefix, the encoder of a training checkpoint (with its projection or without), or a saved
    divergence: one site of the shape that the config gives the prefix."""
    told = shape(directory.config, directory.path)
    own = {role(name): info for name, info in directory.tensors.items()}
    saved = [info for name, info in own.items() if name.startswith(SAVED)]
    parts, wanted = _parts(directory, told, own)
    expected = (told.num_virtual_tokens, told.columns)
    for part, form in wanted.items():
        found = parts[part].shape if part in parts else None
        if found != form or parts[part].dtype not in FLOATS:
            raise AdapterFileError(
                "the prefix is not what the config says",
                where=f"{directory.tensors_path}: {part}",
                found=f"{found} {parts[part].dtype}" if found else ", ".join(directory.tensors) or "no tensors",
                expected=f"{form}, floating point",
                fix="config and tensors belong to different adapters: save the adapter again",
            )
    dtype = "F64" if saved else next(iter(parts.values())).dtype
    site = Site({PROMPT: TensorInfo(PROMPT, dtype, expected)})
    taken = {info.name for info in (*parts.values(), *saved)}
    heads = {name: info for name, info in directory.tensors.items() if name not in taken}
    for name in heads:
        if name.startswith("prompt_encoder."):
            raise unsupported(directory, "a tensor that does not belong to a prefix", name)
    return Layout(directory, kind.name, {PROMPT: site}, heads, told._asdict())


def _parts(
    directory: AdapterDirectory, told: Shape, own: Mapping[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], dict[str, tuple[int, ...]]]:
    """The tensors that make up P by role, and the shapes that they must have."""
    columns, tokens = told.columns, told.num_virtual_tokens
    wanted: dict[str, tuple[int, ...]] = {PROMPT: (tokens, columns)}
    if any(name.startswith(SAVED) for name in own):
        wanted = {}
    elif "transform.0.weight" in own:
        middle = directory.config.get("encoder_hidden_size") or own["transform.0.weight"].shape[0]
        wanted = {
            "embedding.weight": (tokens, told.token_dim),
            "transform.0.weight": (middle, told.token_dim),
            "transform.0.bias": (middle,),
            "transform.2.weight": (columns, middle),
            "transform.2.bias": (columns,),
        }
    elif "embedding.weight" in own:
        wanted = {"embedding.weight": (tokens, columns)}
    return {part: own[part] for part in wanted if part in own}, wanted


KIND = StructureKind(
    "prefix",
    "adamergex.structures.settings:Prefix",
    "adamergex.adapters.in_peft",
    peft_type="PREFIX_TUNING",
    rule="prefix",
    pattern=re.compile(rf"(?P<module>(?P<role>{PROMPT}))"),
    roles=frozenset((PROMPT,)),
    layout=layout,
    start="told",
    shape={"virtual_tokens": "num_virtual_tokens"},
    whole=True,
)
