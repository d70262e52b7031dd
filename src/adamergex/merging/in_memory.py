"""The same rules on tensors of a resident model (numpy arrays or torch tensors), for the search of λ."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.merging.arguments import prefix_choices
from adamergex.merging.rules import prefix
from adamergex.merging.rules.registry import rule_for, with_settings
from adamergex.merging.rules.rule import Array, Rule, Setting
from adamergex.merging.select import default_selection, select
from adamergex.merging.stream_prefix import to_odd
from adamergex.merging.stream_whole import applied
from adamergex.structures import kind_named
from adamergex.structures.prefix import PROMPT

Tensors = Mapping[str, Array]


def merged_tensors(
    task: Tensors,
    target: Tensors,
    source: Tensors | None,
    weight: float | Mapping[str, Array],
    *,
    kind: str = "lora",
    rule: str = "adaptive",
    modules: str | None = None,
    layers: int | None = None,
    span: str | None = None,
    form: str | None = None,
    settings: Mapping[str, Setting] | None = None,
) -> dict[str, Array]:
    """The factor-space merge of tensors by name, as PEFT's state dict has them (with or without the adapter's name).

    ``weight``: one, or by module (numbers, or scalars of the tensors' library). New tensors for the selected modules,
    the task's own objects for all others; one weight of 0 gives the task's own objects throughout. Computed in the
    tensors' dtype: give float32; a prefix (materialised, of ``layers`` layers) is computed in float64 and rounded to
    that dtype. References may lack the task's heads.

    Raises:
        ConfigError, IncompatibleAdaptersError, NothingMergedError: as ``merging.merge``.
    """
    chosen_rule, sites = with_settings(rule_for(rule, kind), settings or {}), _sites(task, kind)
    span, form = prefix_choices(kind, chosen_rule, span, form)
    merged = dict(task)
    if span is not None:
        if isinstance(weight, Mapping):
            raise ConfigError("a prefix takes one weight", where="weight", found="weights by module", expected="one")
        if form == "literal":
            chosen_rule = prefix.LITERAL
        elif weight == 0.0:
            return merged
        key, places = _prompt(task, layers, span)
        chosen = select(places, modules or "all")
        others = [_same(key, task, target), _source(chosen_rule, key, task, source)]
        merged[key] = _merged_prefix(task[key], others, weight, chosen_rule, {name: places[name] for name in chosen})
        return merged
    chosen = select(sites, modules or default_selection(kind, chosen_rule))
    if isinstance(weight, int | float) and weight == 0.0:
        return merged
    for module in sorted(chosen):
        own = weight[module] if isinstance(weight, Mapping) else weight
        for key in sites[module].values():
            if chosen_rule.function is not None:
                given = (task[key], _same(key, task, target), _source(chosen_rule, key, task, source))
                merged[key] = _like(applied(chosen_rule.function, tuple(map(_array, given)), own), task[key])
                continue
            divergence = chosen_rule.divergence(_same(key, task, target), _source(chosen_rule, key, task, source))
            merged[key] = chosen_rule.shift(task[key], divergence, own)
    return merged


def _prompt(task: Tensors, layers: int | None, span: str) -> tuple[str, dict[str, slice]]:
    if PROMPT not in task or layers is None:
        raise ConfigError(
            "a prefix is merged whole, and by layers",
            where="task",
            found=f"layers {layers}, tensors {', '.join(task)}",
            expected=f"{PROMPT}, and how many layers it has",
            fix="give materialised prefixes, and num_layers of their config as layers",
        )
    return PROMPT, prefix.spans(layers, task[PROMPT].shape[1], span)


def _merged_prefix(task: Array, others: list[Array], weight: float, rule: Rule, places: Mapping[str, slice]) -> Array:
    own, target, *rest = (_double(tensor) for tensor in (task, *others) if tensor is not None)
    merged = own.copy()
    for columns in places.values():
        source = rest[0][:, columns] if rest else None
        values = rule.divergence(target[:, columns], source)
        if rule.neutral is None or (values != rule.neutral).any():
            merged[:, columns] = rule.shift(own[:, columns], values, weight)
    return _like(merged, task)


def _double(tensor: Array) -> Array:
    """float64 numpy values of an array or a torch tensor, on any device."""
    return np.array(tensor.detach().cpu().double() if hasattr(tensor, "detach") else tensor, np.float64)


def _array(tensor: Array) -> Array:
    return tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor


def _like(values: Array, tensor: Array) -> Array:
    if not hasattr(tensor, "new_tensor"):
        return values.astype(tensor.dtype)
    # torch rounds float64 to 16 bits through float32, that is twice.
    return tensor.new_tensor(to_odd(values) if tensor.element_size() == 2 else values)


def _sites(tensors: Tensors, kind: str) -> dict[str, dict[str, str]]:
    structure, sites = kind_named(kind), dict[str, dict[str, str]]()
    for key in tensors:
        module, role = structure.split(key, live=True)
        if module is not None:
            sites.setdefault(module, {})[role] = key
    return sites


def _source(rule: Rule, key: str, task: Tensors, source: Tensors | None) -> Array:
    if not rule.needs_source:
        return None
    if source is None:
        raise ConfigError(
            "the rule needs a source reference",
            where=f"rule {rule.name}",
            found="none",
            fix="give the source's tensors",
        )
    return _same(key, task, source)


def _same(key: str, task: Tensors, other: Tensors) -> Array:
    if key not in other or other[key].shape != task[key].shape:
        raise IncompatibleAdaptersError(
            "a reference lacks a tensor of the task, or has it in another shape",
            where=key,
            found=tuple(other[key].shape) if key in other else "no such tensor",
            expected=tuple(task[key].shape),
            fix="train all of them with one configuration",
        )
    return other[key]
