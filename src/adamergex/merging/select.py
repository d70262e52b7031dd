"""Selects the modules that a merge changes; the others are copied from the task adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable

from adamergex.errors import ConfigError, NothingMergedError
from adamergex.files.patterns import Patterns
from adamergex.merging.rules.rule import Rule
from adamergex.structures import kind_named

_QUERY = ("q_proj", "query", "query_proj", "q_lin", "q", "to_q", "wq", "linear_q")
_VALUE = ("v_proj", "value", "value_proj", "v_lin", "v", "to_v", "wv", "linear_v")
_QUERY_VALUE = frozenset(_QUERY + _VALUE)
_FUSED = frozenset(["c_attn", "query_key_value", "qkv_proj", "qkv", "Wqkv", "W_pack", "in_proj", "in_proj_weight"])


def default_selection(kind: str, rule: Rule) -> str:
    """Attention query and value for LoRA, because the feed-forward part holds the task ability (2402.18913, §4.1); all
    modules for other structures, and for the average, which is one of whole adapters (2306.14870)."""
    return kind_named(kind).selection if rule.needs_source else "all"


def select(names: Iterable[str], modules: str) -> frozenset[str]:
    """The modules to merge, from the module names of an adapter.

    ``modules``: ``attention-qv``, ``all``, or a regular expression that must match a whole module name or its whole
    ending after a dot, as in PEFT: ``v_proj``, ``layers\\.1\\..*``.

    Raises:
        NothingMergedError: nothing matched.
        ConfigError: not a regular expression, or one that takes too long; or ``attention-qv`` for a model that fuses
            query and value in one projection.
    """
    known = sorted(names)
    if modules == "all":
        return frozenset(known)
    if modules == "attention-qv":
        fused = [name for name in known if _leaf(name) in _FUSED]
        if fused:
            raise _fused(fused)
        chosen = frozenset(name for name in known if _leaf(name) in _QUERY_VALUE)
    else:
        what = "the module selection"
        patterns = Patterns([modules], ending=True, what=what, error=ConfigError, where="modules")
        chosen = frozenset(patterns.matching(known))
    if not chosen:
        raise NothingMergedError(
            "no module matches the selection",
            where=f"modules {modules}",
            found=", ".join(_kinds(known)),
            expected="at least one module of the task adapter",
            fix="choose all, or a regular expression that matches some of these",
        )
    return chosen


def _fused(fused: list[str]) -> ConfigError:
    return ConfigError(
        "query and value are fused with the key in one projection, so they cannot be selected alone",
        where="modules attention-qv",
        found=", ".join(_kinds(fused)),
        expected="separate query and value projections",
        fix=f"choose all, or name the fused projection: --modules {_leaf(fused[0])}",
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _kinds(names: Iterable[str]) -> list[str]:
    """Module names without layer numbers, without duplicates: readable even for 224 names."""
    return sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names})
