"""Which modules a merge touches; the others are copied from the task adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable

from adamergex.errors import ConfigError, NothingMergedError

DEFAULT = {"lora": "attention-qv"}
"""Kind -> default selection: for LoRA attention query and value only, because the feed-forward part holds the ability
for the task (2402.18913, section 4.1); everything of every other structure."""

_QUERY_VALUE = frozenset(
    "q_proj v_proj query value query_proj value_proj q_lin v_lin q v to_q to_v wq wv linear_q linear_v".split()
)
_FUSED = frozenset("c_attn query_key_value qkv_proj qkv Wqkv W_pack in_proj in_proj_weight".split())


def select(names: Iterable[str], modules: str | None, kind: str) -> frozenset[str]:
    """The modules to merge, of the module names of an adapter.

    ``modules``: ``attention-qv``, ``all``, or a regular expression that must match a whole module name or its whole
    ending after a dot, as in PEFT: ``v_proj``, ``layers\\.1\\..*``. ``None`` takes the default of the structure.

    Raises:
        NothingMergedError: nothing matched.
        ConfigError: not a regular expression; or ``attention-qv`` where query and value are fused in one projection.
    """
    known = sorted(names)
    selection = modules or DEFAULT.get(kind, "all")
    if selection == "all":
        return frozenset(known)
    if selection == "attention-qv":
        fused = [name for name in known if _leaf(name) in _FUSED]
        if fused:
            raise _fused(fused)
        chosen = frozenset(name for name in known if _leaf(name) in _QUERY_VALUE)
    else:
        pattern = _compile(selection)
        chosen = frozenset(name for name in known if pattern.fullmatch(name))
    if not chosen:
        raise NothingMergedError(
            "No module matches the selection.",
            where=f"modules {selection}",
            found=", ".join(_kinds(known)),
            expected="at least one module of the task adapter",
            fix="choose all, or a regular expression that matches some of these",
        )
    return chosen


def _compile(selection: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({selection})")
    except re.error as error:
        raise ConfigError(
            "The module selection is not a regular expression.",
            where="modules",
            found=f"{selection} ({error})",
            expected="attention-qv, all, or a regular expression",
            fix="escape special characters with a backslash",
        ) from error


def _fused(fused: list[str]) -> ConfigError:
    return ConfigError(
        "Query and value are fused with the key in one projection here, so they cannot be selected alone.",
        where="modules attention-qv",
        found=", ".join(_kinds(fused)),
        expected="separate query and value projections",
        fix=f"choose all, or name the fused projection: --modules {_leaf(fused[0])}",
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _kinds(names: Iterable[str]) -> list[str]:
    """Module names with their numbers left out, each once: what a person recognises of 224 names."""
    return sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names})
