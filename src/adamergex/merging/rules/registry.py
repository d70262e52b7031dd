"""The rules by name, and the rule that each structure takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper

from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.files.registry import Registry
from adamergex.merging.rules import additive, average, multiplicative, prefix
from adamergex.merging.rules.rule import Array, Rule, Setting
from adamergex.structures import every, find

RULES = {rule.name: rule for rule in (additive.RULE, multiplicative.RULE, average.RULE)}
"""The rules that ``--rule`` names."""
_OF_PREFIXES = {prefix.RULE.name: prefix.RULE}
_MORE: Registry[Rule] = Registry("adamergex.rules", (*RULES, *_OF_PREFIXES))
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
        if not isinstance(item.default, Setting):
            raise ConfigError(
                "a rule's setting needs a default: true, false, a number or a text",
                where=f"rule {function.__name__}",
                found=str(item),
                fix="give the keyword-only parameter a default",
            )
    settings = {item.name: item.default for item in keywords}
    return Rule(function.__name__, _no_divergence, _no_divergence, function=function, settings=settings)


def with_settings(chosen: Rule, given: Mapping[str, Setting]) -> Rule:
    """The rule with these settings, and the defaults of the others. Raises: ConfigError: a name or type it lacks."""
    for name, value in given.items():
        default = chosen.settings.get(name)
        if default is None:
            raise ConfigError(
                f"rule {chosen.name} has no such setting",
                where="settings",
                found=name,
                expected=", ".join(chosen.settings) or "none",
                fix="correct the name, or leave it out",
            )
        if type(value) is not type(default) and not (type(default) is float and type(value) is int):
            raise ConfigError(
                f"a setting of rule {chosen.name} has another type",
                where=f"settings.{name}",
                found=repr(value),
                expected=f"{type(default).__name__}, like its default {default!r}",
                fix="correct the value",
            )
    if chosen.function is None or not chosen.settings:
        return chosen
    complete = {**chosen.settings, **given}
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
    own = structure.rule if name == "adaptive" else name
    found = rule_named(own) or (_OF_PREFIXES.get(own) if name == "adaptive" else None)
    if found is None:
        raise ConfigError(
            "there is no such rule",
            where="rule",
            found=own,
            expected=", ".join(["adaptive", *(name for name in _MORE if name not in _OF_PREFIXES)]),
            fix="use adaptive: the rule of the paper for the structure",
        )
    return found
