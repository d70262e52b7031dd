"""What can be chosen by name: built in, registered by a program, or offered by an installed package.

A name in a file or in settings chooses among these; it never names code. Installed packages offer through entry points
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
    """What a registry holds."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)


class Registry(Generic[Item]):
    """Items by name. Entry points are looked up where no other item has the name, and loaded once."""

    def __init__(self, group: str, built_in: Collection[str]) -> None:
        self.group, self.built_in = group, built_in
        self._registered: dict[str, Item] = {}

    def register(self, item: Item) -> Item:
        """Add an item for this process. Raises: ConfigError: its name is taken."""
        if item.name in self.built_in or self._registered.get(item.name, item) is not item:
            raise ConfigError("this name is taken", where=self.group, found=item.name, fix="choose another name")
        self._registered[item.name] = item
        return item

    @property
    def loaded(self) -> tuple[Item, ...]:
        """The items that are registered, or were found, so far."""
        return tuple(self._registered.values())

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)

    def __iter__(self) -> Iterator[str]:
        """All names, those that are built in first; packages are asked last."""
        yield from self.built_in
        yield from sorted({*self._registered, *self._offered} - {*self.built_in})

    def find(self, name: str) -> Item | None:
        """A registered or offered item; ``None`` where there is none. Raises: ConfigError: its package is broken."""
        if name not in self._registered and name in self._offered:
            self._registered[name] = self._loaded(self._offered[name])
        return self._registered.get(name)

    def _loaded(self, point: EntryPoint) -> Item:
        where = f"{point.dist.name if point.dist else 'an installed package'}: {self.group}.{point.name}"
        try:
            item: Item = point.load()
        except Exception as error:  # whatever the other package raises
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


def named_in_code(path: str) -> Any:
    """What ``module`` or ``module:attribute`` is; for paths that code holds, never for those of a file."""
    module, _, attribute = path.partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


STRUCTURES: Registry[Any] = Registry("adamergex.structures", ("lora", "ia3", "bottleneck", "prefix", "full", "sparse"))
"""The names of structures; ``adamergex.structures`` has what they stand for."""
