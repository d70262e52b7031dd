"""Changes to a study's settings on the command line: ``NAME=VALUE`` with a dotted name and a YAML value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from adamergex.errors import ConfigError
from adamergex.files.inputs import Malformed, parse_yaml
from adamergex.files.strict import nearest, shown


class SettingChange(NamedTuple):
    """A value and its place in the settings; None removes the setting."""

    place: tuple[str, ...]
    value: object

    def of(self, settings: Mapping[str, object]) -> dict[str, object]:
        """The settings with this change; missing mappings on the path are created.

        Raises:
            ConfigError: the path leads through a value that is not a mapping.
        """
        return _changed(settings, self.place, self)


def parse_change(text: str) -> SettingChange:
    """``task.optimisation.steps=3``, ``targets=[sw, tr]``, ``tasks.xlsum=null``.

    Raises:
        ConfigError: no name, no value, or a value that is not valid YAML.
    """
    name, equals, value = text.partition("=")
    place = tuple(name.strip().split("."))
    if not equals or not value.strip() or not all(place):
        raise ConfigError(
            "not a setting", where="--set", found=text, expected="NAME=VALUE, as in task.optimisation.steps=3"
        )
    try:
        return SettingChange(place, parse_yaml(value))
    except Malformed as problem:
        raise ConfigError("the value is not valid YAML", where=f"--set {text}", found=problem) from None


def check_removal(settings: Iterable[Mapping[str, object]], change: SettingChange) -> None:
    """Check that a removed setting exists, since a misspelt name would leave it in place.

    Raises:
        ConfigError: none of the settings has it.
    """
    if change.value is not None:
        return
    current: list[object] = list(settings)
    for depth, name in enumerate(change.place):
        mappings = [item for item in current if isinstance(item, Mapping)]
        current = [item[name] for item in mappings if name in item]
        if not current:
            known = list(dict.fromkeys(str(key) for item in mappings for key in item))
            near = nearest(name, known)
            raise ConfigError(
                "there is nothing to remove",
                where=f"--set {'.'.join(change.place)}=null",
                found=f"no '{'.'.join(change.place[: depth + 1])}'",
                expected=f"perhaps '{near}'" if near else f"one of {', '.join(known) or 'nothing'}",
            )


def _changed(settings: Mapping[str, object], place: tuple[str, ...], change: SettingChange) -> dict[str, object]:
    name, *rest = place
    result = dict(settings)
    if rest:
        inner = result.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            raise ConfigError(
                f"'{name}' has no settings inside",
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
