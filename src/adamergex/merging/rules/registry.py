"""The rules by name, and the rule that each structure takes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper

from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.files.lineage_fields import SETTING, is_setting
from adamergex.files.registry import Registry
from adamergex.merging.rules import additive, average, multiplicative, prefix
from adamergex.merging.rules.rule import Array, Rule, Setting
from adamergex.structures import every, find

RULES = {rule.name: rule for rule in (additive.RULE, multiplicative.RULE, average.RULE)}
"""The rules that ``--rule`` names."""
_OF_PREFIXES = {prefix.RULE.name: prefix.RULE}
_MORE: Registry[Rule] = Registry("adamergex.rules", ("adaptive", *RULES, *_OF_PREFIXES))
register = _MORE.register
"""Add a ``Rule`` for this process; an installed package offers it as an entry point of its own name in the group
``adamergex.rules``, so that the command line knows it too. Raises: ConfigError: its name is taken."""


def rule(function: Callable[..., Array]) -> Rule:
    """A function as a rule of its own name: (task, target reference, source reference, weight, *, …) -> merged.

    It is called for every tensor of the chosen modules, with whole numpy arrays, float32 (float64 where stored so); it
    leaves them as they are and returns an array of the task's shape. Merges in space factors, not of prefixes. Its
    keyword-only parameters are settings of a merge by this rule; a default's type is the setting's.

    Raises: ConfigError: a setting without a default that is a truth value, a number or a text.
    """
    keywords = [item for item in inspect.signature(function).parameters.values() if item.kind is item.KEYWORD_ONLY]
    for item in keywords:
        if not (_NAME(item.name) and is_setting(item.default)):
            raise ConfigError(
                "a rule's setting needs a plain name and a default",
                where=f"rule {function.__name__}",
                found=str(item),
                expected=f"a name of letters, digits and _; a default: {SETTING}",
                fix="correct the keyword-only parameter",
            )
    settings = {item.name: item.default for item in keywords}
    return Rule(function.__name__, _no_divergence, _no_divergence, function=function, settings=settings)


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}").fullmatch


def with_settings(chosen: Rule, given: Mapping[str, Setting]) -> Rule:
    """The rule with these settings, and the defaults of the others. Raises: ConfigError: a name or type it lacks."""
    known = chosen.settings if chosen.function is not None else {}
    complete = dict(known)
    if not isinstance(given, Mapping):
        raise ConfigError(
            "settings are given by name", where="settings", found=type(given).__name__, expected="a mapping"
        )
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f"rule {chosen.name} has no such setting",
                where="settings",
                found=str(name)[:80],
                expected=", ".join(known) or "none",
                fix="correct the name, or leave it out",
            )
        kind = type(known[name])
        if not is_setting(value) or not (type(value) is kind or (kind is float and type(value) is int)):
            raise ConfigError(
                f"a setting of rule {chosen.name} has another type, or is too large",
                where=f"settings.{name}",
                found=repr(value) if is_setting(value) else type(value).__name__,
                expected=f"{kind.__name__}, like its default {known[name]!r}; {SETTING}",
                fix="correct the value",
            )
        complete[name] = kind(value)
    if chosen.function is None or not known:
        return chosen
    bound = update_wrapper(partial(chosen.function, **complete), chosen.function)
    return chosen._replace(function=bound, settings=complete)


def _no_divergence(*_: Array, **__: Array) -> Array:
    raise AssertionError("a rule of whole tensors has no divergence")


def rule_named(name: str) -> Rule | None:
    """The rule of a name that users choose."""
    return RULES.get(name) or _MORE.find(name)


def rule_for(name: str, kind: str) -> Rule:
    """The rule ``name``; of ``adaptive``, the one of the structure ``kind`` (2402.18913, section 3.2).

    Raises:
        ConfigError: no such rule.
        IncompatibleAdaptersError: the structure cannot be merged yet.
    """
    structure = find(kind)
    if structure is None or structure.rule is None:
        raise IncompatibleAdaptersError(
            f"merging {kind} adapters is not supported yet",
            found=kind,
            expected=" or ".join(sorted(item.name for item in every() if item.rule)),
            fix="merge LoRA, (IA)³, prefix or bottleneck adapters",
        )
    chosen = structure.rule if name == "adaptive" else name
    chosen_rule = rule_named(chosen) or (_OF_PREFIXES.get(chosen) if name == "adaptive" else None)
    if chosen_rule is None:
        raise ConfigError(
            "there is no such rule",
            where="rule",
            found=chosen,
            expected=", ".join(name for name in _MORE if name not in _OF_PREFIXES),
            fix="use adaptive: the rule of the paper for the structure",
        )
    return chosen_rule
