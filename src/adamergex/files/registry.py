"""Items chosen by name: built in, registered by a program, or provided by an installed package.

A name in a file or in settings chooses among these; it never names code. Packages provide items by entry points
(``[project.entry-points."adamergex.structures"]`` of their pyproject.toml).
"""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from adamergex.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from importlib.metadata import EntryPoint


class Named(Protocol):
    """An item of a registry."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)


class Registry(Generic[Item]):
    """Items by name. An entry point is looked up if no other item has the name, and loaded once."""

    def __init__(self, group: str, built_in: Collection[str]) -> None:
        self.group, self.built_in = group, built_in
        self._registered: dict[str, Item] = {}

    def register(self, item: Item) -> Item:
        """Add an item for this process. Raises: ConfigError when its name is taken."""
        if item.name in self.built_in or self._registered.get(item.name, item) is not item:
            raise ConfigError("this name is taken", where=self.group, found=item.name, fix="choose another name")
        self._registered[item.name] = item
        return item

    @property
    def loaded(self) -> tuple[Item, ...]:
        """The items that are registered or loaded so far."""
        return tuple(self._registered.values())

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)

    def __iter__(self) -> Iterator[str]:
        """All names, built-in ones first; packages are searched last."""
        yield from self.built_in
        yield from sorted({*self._registered, *self._offered} - {*self.built_in})

    def find(self, name: str) -> Item | None:
        """A registered or installed item, or ``None``. Raises: ConfigError when its package fails to load."""
        if name not in self._registered and name in self._offered:
            self._registered[name] = self._loaded(self._offered[name])
        return self._registered.get(name)

    def _loaded(self, point: EntryPoint) -> Item:
        where = f"{point.dist.name if point.dist else 'an installed package'}: {self.group}.{point.name}"
        try:
            item: Item = point.load()
        except Exception as error:  # any error of the other package
            problem = f"{type(error).__name__}: {error}"
            fix = "correct that package, or remove it"
            raise ConfigError("an installed package cannot be used", where=where, found=problem, fix=fix) from error
        if item.name != point.name:
            raise ConfigError("an entry point has another name", where=where, found=item.name, expected=point.name)
        return item

    @cached_property
    def _offered(self) -> Mapping[str, EntryPoint]:
        from importlib.metadata import entry_points  # takes 20 ms to import

        return {point.name: point for point in entry_points(group=self.group)}


def import_path(path: str) -> Any:
    """Import ``module`` or ``module:attribute``; for paths in code, never for those in a file."""
    module, _, attribute = path.partition(":")
    imported = import_module(module)
    return getattr(imported, attribute) if attribute else imported


STRUCTURES: Registry[Any] = Registry("adamergex.structures", ("lora", "ia3", "bottleneck", "prefix", "full", "sparse"))
"""The names of structures; ``adamergex.structures`` has their records."""
