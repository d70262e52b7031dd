"""Structures of adapters: one file each, registered once. numpy only; what puts them on a model is in ``adapters``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from adamergex.files.inputs import Json
from adamergex.files.registry import STRUCTURES
from adamergex.structures.kind import StructureKind

register = STRUCTURES.register
"""Add a ``StructureKind`` for this process; an installed package offers it as an entry point of its own name in the
group ``adamergex.structures``, so that the command line knows it too. Raises: ConfigError: its name is taken."""


def find(name: str) -> StructureKind | None:
    """The structure of a name; ``None`` where there is none."""
    if name in STRUCTURES.built_in:
        kind: StructureKind = import_module(f"{__name__}.{name}").KIND
        return kind
    return STRUCTURES.find(name)


def kind_named(name: str) -> StructureKind:
    """The structure of a name that is known to be one."""
    found = find(name)
    assert found is not None, name
    return found


def every() -> Iterator[StructureKind]:
    """All structures, those that are built in first."""
    return map(kind_named, STRUCTURES)


def held(config: Mapping[str, Json]) -> StructureKind | None:
    """The structure that an ``adapter_config.json`` is of."""
    return next((kind for kind in every() if kind.holds(config)), None)


def structure_kind(config: Mapping[str, Json]) -> str:
    """The name of the structure that an ``adapter_config.json`` is of; of unknown ones the PEFT type in lower case."""
    kind = held(config)
    return kind.name if kind else str(config.get("peft_type")).lower()
