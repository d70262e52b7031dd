"""Changes to a study's settings from outside its file: ``NAME=VALUE``, the name dotted, the value YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from adamergex.errors import ConfigError
from adamergex.files.inputs import Malformed, parse_yaml
from adamergex.files.strict import nearest, shown


class Change(NamedTuple):
    """A value and its place in the settings; None takes the setting away."""

    place: tuple[str, ...]
    value: object

    def of(self, settings: Mapping[str, object]) -> dict[str, object]:
        """The settings with this change; mappings on the way are made where there are none.

        Raises:
            ConfigError: something else than a mapping is on the way.
        """
        return _changed(settings, self.place, self)


def parse_change(text: str) -> Change:
    """``task.optimisation.steps=3``, ``targets=[sw, tr]``, ``tasks.xlsum=null``.

    Raises:
        ConfigError: no name, no value, or a value that is not valid YAML.
    """
    name, equals, value = text.partition("=")
    place = tuple(name.strip().split("."))
    if not equals or not value.strip() or not all(place):
        raise ConfigError(
            "this sets nothing", where="--set", found=text, expected="NAME=VALUE, as in task.optimisation.steps=3"
        )
    try:
        return Change(place, parse_yaml(value))
    except Malformed as problem:
        raise ConfigError("the value is not valid YAML", where=f"--set {text}", found=problem) from None


def check_removal(settings: Iterable[Mapping[str, object]], change: Change) -> None:
    """That what a change takes away is in one of the settings: a misspelt name would leave it in place.

    Raises:
        ConfigError: it is in none.
    """
    if change.value is not None:
        return
    inner: list[object] = list(settings)
    for depth, name in enumerate(change.place):
        mappings = [item for item in inner if isinstance(item, Mapping)]
        inner = [item[name] for item in mappings if name in item]
        if not inner:
            known = list(dict.fromkeys(str(other) for item in mappings for other in item))
            near = nearest(name, known)
            raise ConfigError(
                "there is nothing to remove",
                where=f"--set {'.'.join(change.place)}=null",
                found=f"no '{'.'.join(change.place[: depth + 1])}'",
                expected=f"perhaps '{near}'" if near else f"one of {', '.join(known) or 'nothing'}",
            )


def _changed(settings: Mapping[str, object], place: tuple[str, ...], change: Change) -> dict[str, object]:
    name, *rest = place
    result = dict(settings)
    if rest:
        inner = result.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            raise ConfigError(
                f"'{name}' holds no settings of its own",
                where=f"--set {'.'.join(change.place)}",
                found=shown(inner),
                fix=f"set {name} as a whole: '{name}={{…}}'",
            )
        result[name] = _changed(inner or {}, tuple(rest), change)
    elif change.value is None:
        result.pop(name, None)
    else:
        result[name] = change.value
    return result
