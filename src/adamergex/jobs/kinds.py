"""The settings class of each kind of task, and validation by ``kind``, open to kinds of other packages.

A package adds a kind under the entry point group ``adamergex.task_kinds``: the name is the kind, the value a module
that calls ``tasks.kinds.register``. It is imported when settings, a step or a lineage first name that kind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Union

from pydantic import Discriminator, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from adamergex.errors import AdamergexError, ConfigError
from adamergex.files.strict import Settings

GROUP = "adamergex.task_kinds"
_SETTINGS: dict[str, type[Settings]] = {}


def add_settings(settings: type[Settings]) -> None:
    """Make a kind known by its settings, whose field ``kind`` has it as default.

    Raises: ConfigError: another settings class has that kind.
    """
    kind = settings.model_fields["kind"].default
    if _SETTINGS.setdefault(kind, settings) is not settings:
        known = _SETTINGS[kind]
        raise ConfigError(
            "two kinds of task have the same name",
            where=f"{settings.__module__}.{settings.__name__}",
            found=repr(kind),
            expected=f"another name than that of {known.__module__}.{known.__name__}",
            fix="rename it",
        )


def settings_of(kind: object) -> type[Settings] | None:
    """The settings class of a kind, or None. Raises: ConfigError: the package that has the kind cannot be imported."""
    if not isinstance(kind, str):
        return None
    if kind not in _SETTINGS:
        for point in entry_points(group=GROUP, name=kind):
            try:
                point.load()
            except AdamergexError:
                raise
            except Exception as error:  # whatever the package raises
                raise ConfigError(
                    f"the package of the task kind {kind!r} cannot be imported",
                    where=point.value,
                    found=f"{type(error).__name__}: {error}",
                    fix="correct or uninstall it",
                ) from error
    return _SETTINGS.get(kind)


def known_settings(base: type[Settings]) -> tuple[type[Settings], ...]:
    """The settings classes of all kinds that derive from ``base``, shipped ones first."""
    return tuple(settings for settings in _SETTINGS.values() if issubclass(settings, base))


class OneOf:
    """Validates a field by the union that ``union`` makes for a value: its members may come after the field's class."""

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
    """The union of the members, which the discriminator tells apart."""
    union: Any = Annotated[Union[members], discriminator]  # noqa: UP007
    return TypeAdapter(union)
