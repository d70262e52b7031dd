"""Prefix-tuning: trained keys and values before those of the text in every layer. Source: 2101.00190."""

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
"""The prefix of tensor names in a saved divergence."""


class Shape(NamedTuple):
    """The shape of a prefix in ``adapter_config.json``; prefixes of different shapes cannot be combined."""

    num_virtual_tokens: int
    num_layers: int
    token_dim: int
    num_attention_heads: int
    num_transformer_submodules: int

    @property
    def columns(self) -> int:
        """Width of P: a key and a value of ``token_dim`` per layer."""
        return 2 * self.num_layers * self.token_dim


def shape(config: Mapping[str, Json], where: object) -> Shape:
    """The shape in a PEFT config. Raises: AdapterFileError when it is not complete."""
    values = {name: config.get(name) for name in Shape._fields}
    if any(type(value) is not int or value < 1 for value in values.values()):
        raise AdapterFileError(
            "the config lacks the shape of the prefix",
            where=where,
            found=values,
            expected="positive numbers",
            fix="save the adapter again with save_pretrained, which writes all of them",
        )
    return Shape(**values)  # type: ignore[arg-type]


def role(name: str) -> str:
    """A tensor's name without a training checkpoint's prefix: ``embedding.weight``, ``transform.0.bias``."""
    return re.sub(r"^prompt_encoder\.(?:[^.]+\.)?(?=(?:embedding|transform)\.)", "", name)


def layout(directory: AdapterDirectory, kind: StructureKind) -> Layout:
    """One site with the shape in the config, for PEFT's materialised prefix, the encoder of a training checkpoint (with
    or without a projection), or a saved divergence."""
    declared = shape(directory.config, directory.path)
    by_role = {role(name): info for name, info in directory.tensors.items()}
    saved = [info for name, info in by_role.items() if name.startswith(SAVED)]
    parts, shapes = _parts(directory, declared, by_role)
    for part, expected in shapes.items():
        stored = parts[part].shape if part in parts else None
        if stored != expected or parts[part].dtype not in FLOATS:
            raise AdapterFileError(
                "the prefix does not have the shape in the config",
                where=f"{directory.tensors_path}: {part}",
                found=f"{stored} {parts[part].dtype}" if stored else ", ".join(directory.tensors) or "no tensors",
                expected=f"{expected}, floating point",
                fix="config and tensors belong to different adapters: save the adapter again",
            )
    dtype = "F64" if saved else next(iter(parts.values())).dtype
    site = Site({PROMPT: TensorInfo(PROMPT, dtype, (declared.num_virtual_tokens, declared.columns))})
    taken = {info.name for info in (*parts.values(), *saved)}
    heads = {name: info for name, info in directory.tensors.items() if name not in taken}
    for name in heads:
        if name.startswith("prompt_encoder."):
            raise unsupported(directory, "a tensor that does not belong to a prefix", name)
    return Layout(directory, kind.name, {PROMPT: site}, heads, declared._asdict())


def _parts(
    directory: AdapterDirectory, declared: Shape, by_role: Mapping[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], dict[str, tuple[int, ...]]]:
    """The tensors of P by role, and their expected shapes."""
    columns, tokens = declared.columns, declared.num_virtual_tokens
    shapes: dict[str, tuple[int, ...]] = {PROMPT: (tokens, columns)}
    if any(name.startswith(SAVED) for name in by_role):
        shapes = {}
    elif "transform.0.weight" in by_role:
        hidden = directory.config.get("encoder_hidden_size") or by_role["transform.0.weight"].shape[0]
        shapes = {
            "embedding.weight": (tokens, declared.token_dim),
            "transform.0.weight": (hidden, declared.token_dim),
            "transform.0.bias": (hidden,),
            "transform.2.weight": (columns, hidden),
            "transform.2.bias": (columns,),
        }
    elif "embedding.weight" in by_role:
        shapes = {"embedding.weight": (tokens, columns)}
    return {part: by_role[part] for part in shapes if part in by_role}, shapes


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
