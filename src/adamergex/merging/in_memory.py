"""The same rules on tensors of a resident model (numpy arrays or torch tensors), for the search of λ."""

from __future__ import annotations

from collections.abc import Mapping

from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.merging.layout import split_key
from adamergex.merging.rule import Array, Rule
from adamergex.merging.rules import rule_for
from adamergex.merging.select import default_selection, select

Tensors = Mapping[str, Array]


def merged_tensors(
    task: Tensors,
    target: Tensors,
    source: Tensors | None,
    weight: float,
    *,
    kind: str = "lora",
    rule: str = "adaptive",
    modules: str | None = None,
) -> dict[str, Array]:
    """The factor-space merge of tensors by name, as PEFT's state dict has them (with or without the adapter's name).

    New tensors for the selected modules, the task's own objects for all others; λ = 0 gives the task's own objects
    throughout. Computed in the tensors' dtype: give float32. References may lack the task's heads.

    Raises:
        ConfigError, IncompatibleAdaptersError, NothingMergedError: as ``merging.merge``.
    """
    chosen_rule, sites = rule_for(rule, kind), _sites(task)
    chosen = select(sites, modules or default_selection(kind, chosen_rule))
    merged = dict(task)
    if weight == 0.0:
        return merged
    for module in sorted(chosen):
        for key in sites[module].values():
            divergence = chosen_rule.divergence(_same(key, task, target), _source(chosen_rule, key, task, source))
            merged[key] = chosen_rule.shift(task[key], divergence, weight)
    return merged


def merged_deltas(
    task: Tensors,
    target: Tensors,
    source: Tensors | None,
    weight: float,
    *,
    scaling: float | Mapping[str, float],
    rule: str = "adaptive",
    modules: str | None = None,
) -> dict[str, Array]:
    """The delta-space merge: module -> ΔW (out, in) = c·s·B·A + λ(s·B_g·A_g − s·B_s·A_s), of every module of the task.

    ``scaling``: α/r (or α/√r), one for all or by module; the three adapters share it. ``average``: c = 1 − λ and no
    source; else c = 1. Modules outside the selection keep the task's ΔW.

    Raises:
        ConfigError, IncompatibleAdaptersError, NothingMergedError: as ``merging.merge``.
    """
    chosen_rule, sites = rule_for(rule, "lora"), _sites(task)
    if chosen_rule.name == "multiplicative":
        raise ConfigError(
            "A ratio of weight differences has no low rank.", where="rule", found=rule, expected="additive or average"
        )
    chosen = select(sites, modules or default_selection("lora", chosen_rule))
    deltas = {}
    for module, keys in sorted(sites.items()):
        scale = scaling if isinstance(scaling, int | float) else scaling[module]
        own = _product(keys, task, task) * scale
        if module in chosen and weight != 0.0:
            reference = None if source is None else _product(keys, task, source) * scale
            divergence = chosen_rule.divergence(_product(keys, task, target) * scale, reference)
            own = chosen_rule.shift(own, divergence, weight)
        deltas[module] = own
    return deltas


def _sites(tensors: Tensors) -> dict[str, dict[str, str]]:
    sites: dict[str, dict[str, str]] = {}
    for key in tensors:
        module, role = split_key(key, live=True)
        if module is not None:
            sites.setdefault(module, {})[role] = key
    return sites


def _product(keys: Mapping[str, str], task: Tensors, tensors: Tensors) -> Array:
    return _same(keys["lora_B"], task, tensors) @ _same(keys["lora_A"], task, tensors)


def _source(rule: Rule, key: str, task: Tensors, source: Tensors | None) -> Array:
    if not rule.needs_source:
        return None
    if source is None:
        raise ConfigError(
            "The rule needs a source reference.",
            where=f"rule {rule.name}",
            found="none",
            fix="give the source's tensors",
        )
    return _same(key, task, source)


def _same(key: str, task: Tensors, other: Tensors) -> Array:
    if key not in other or other[key].shape != task[key].shape:
        raise IncompatibleAdaptersError(
            "A reference lacks a tensor of the task, or has it in another shape.",
            where=key,
            found=tuple(other[key].shape) if key in other else "no such tensor",
            expected=tuple(task[key].shape),
            fix="train all of them with one configuration",
        )
    return other[key]
