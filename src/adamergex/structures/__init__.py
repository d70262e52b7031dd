"""Structures of adapters, one file per structure. numpy only; ``adapters`` puts them on a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from adamergex.files.inputs import Json
from adamergex.files.registry import STRUCTURES
from adamergex.structures.kind import StructureKind

register = STRUCTURES.register
"""Add a ``StructureKind`` for this process. An installed package provides one as an entry point with the structure's
name in the group ``adamergex.structures``, for the command line too. Raises: ConfigError when the name is taken."""


def find(name: str) -> StructureKind | None:
    """The structure with this name, or ``None``."""
    if name in STRUCTURES.built_in:
        kind: StructureKind = import_module(f"{__name__}.{name}").KIND
        return kind
    return STRUCTURES.find(name)


def kind_named(name: str) -> StructureKind:
    """The structure with this name, which must exist."""
    kind = find(name)
    assert kind is not None, name
    return kind


def every() -> Iterator[StructureKind]:
    """All structures, built-in ones first."""
    return map(kind_named, STRUCTURES)


def kind_of_config(config: Mapping[str, Json]) -> StructureKind | None:
    """The structure of an ``adapter_config.json``."""
    return next((kind for kind in every() if kind.holds(config)), None)


def structure_kind(config: Mapping[str, Json]) -> str:
    """The name of the structure of an ``adapter_config.json``; for unknown ones the PEFT type in lower case."""
    kind = kind_of_config(config)
    return kind.name if kind else str(config.get("peft_type")).lower()
