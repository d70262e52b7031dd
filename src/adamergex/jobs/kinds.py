"""The settings class of each kind of task, and validation by ``kind``, extensible by other packages.

A package declares a kind as an entry point of the kind's name in the group ``adamergex.task_kinds``; it is loaded when
settings, a step or a lineage first name that kind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Protocol, Union

from pydantic import Discriminator, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from adamergex.files.registry import Registry
from adamergex.files.strict import Settings


class KindOfTask(Protocol):
    """The part of a ``tasks.kinds.TaskKind`` that settings need."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> type[Settings]: ...


BUILT_IN: dict[str, type[Settings]] = {}
"""Kind -> its settings class; filled by the module that defines the classes."""
KINDS: Registry[KindOfTask] = Registry("adamergex.task_kinds", BUILT_IN)


def settings_of(kind: object) -> type[Settings] | None:
    """The settings class of a kind, or None. Raises: ConfigError: the package with the kind cannot be used."""
    if not isinstance(kind, str):
        return None
    if kind in BUILT_IN:
        return BUILT_IN[kind]
    installed = KINDS.find(kind)
    return installed.settings if installed else None


def known_settings(base: type[Settings]) -> tuple[type[Settings], ...]:
    """The settings classes of all loaded kinds that derive from ``base``, built-in ones first."""
    known = (*BUILT_IN.values(), *(kind.settings for kind in KINDS.loaded))
    return tuple(settings for settings in known if issubclass(settings, base))


class OneOf:
    """Validates a field by the union that ``union`` makes for a value; members may be added after the field's class."""

    def __init__(self, union: Callable[[Any], TypeAdapter[Any]]) -> None:
        self.union = union

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: self.union(value).validate_python(value), serialization=core_schema.simple_ser_schema("any")
        )


def by_kind(base: type[Settings]) -> OneOf:
    """A field of any kind whose settings derive from ``base``."""

    def union(value: Any) -> TypeAdapter[Any]:
        settings_of(value.get("kind") if isinstance(value, dict) else None)
        return adapter_of(known_settings(base), Discriminator("kind"))

    return OneOf(union)


@cache
def adapter_of(members: tuple[Any, ...], discriminator: Discriminator) -> TypeAdapter[Any]:
    """The union of the members with a discriminator."""
    union: Any = Annotated[Union[members], discriminator]  # noqa: UP007
    return TypeAdapter(union)
