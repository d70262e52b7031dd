"""What the tensors of an adapter directory are: factors of modules, and heads; ranks and scalings as in PEFT."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from adamergex.checkpoint import FLOATS, AdapterDirectory, TensorInfo
from adamergex.errors import AdapterFileError, IncompatibleAdaptersError

KINDS = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix"}
PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.(?:(?P<factor>lora_[AB])\.weight|(?P<vector>ia3_l))")
# In a live model the adapter's name stands between: lora_A.default.weight, ia3_l.default.
_LIVE = re.compile(r"(?P<module>.+)\.(?:(?P<factor>lora_[AB])(?:\.[^.]+)?\.weight|(?P<vector>ia3_l)(?:\.[^.]+)?)")
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "lora_bias": "LoRA biases",
    "target_parameters": "LoRA on parameters",
    "trainable_token_indices": "trainable tokens",
    "layer_replication": "layer replication",
}
_BASE_CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq", "pmf")


class Site(NamedTuple):
    """One adapted module: its tensors (``lora_A`` (r, in) and ``lora_B`` (out, r), or ``ia3_l``), rank and α."""

    tensors: Mapping[str, TensorInfo]
    rank: int
    alpha: float
    scaling: float


@dataclass(frozen=True)
class Layout:
    """Kind, adapted modules by name, and all other tensors: heads, which belong to the adapter that has them."""

    directory: AdapterDirectory
    kind: str
    sites: Mapping[str, Site]
    heads: Mapping[str, TensorInfo]

    def owner(self, key: str) -> str | None:
        """The module of an adapter tensor, ``None`` for a head."""
        return self._owners.get(key)

    @cached_property
    def _owners(self) -> dict[str, str]:
        return {info.name: module for module, site in self.sites.items() for info in site.tensors.values()}


def split_key(key: str, *, live: bool = False) -> tuple[str | None, str]:
    """Tensor name -> (module, role): role is ``lora_A``, ``lora_B`` or ``ia3_l``; module ``None`` for other tensors.

    ``live``: also names as a model's state dict has them, with the adapter's name inside."""
    match = (_LIVE if live else _FACTOR).fullmatch(key)
    if not match:
        return None, key
    return match["module"].removeprefix(PREFIX), match["factor"] or match["vector"]


def structure_kind(directory: AdapterDirectory) -> str:
    """``lora``, ``ia3``, ``prefix``, ``bottleneck``, or the PEFT type in lower case."""
    config = directory.config
    if config.get("peft_type") is None and "reduction_factor" in str(config.get("config", "")):
        return "bottleneck"
    declared = str(config.get("peft_type"))
    return KINDS.get(declared, declared.lower())


def layout(directory: AdapterDirectory) -> Layout:
    """Sort the tensors of a LoRA or (IA)³ adapter into sites and heads.

    Raises:
        IncompatibleAdaptersError: a variant that is not supported (DoRA, biases, embeddings, convolutions, …).
        AdapterFileError: tensors that do not fit the config or each other.
    """
    kind = structure_kind(directory)
    if kind not in ("lora", "ia3"):
        raise IncompatibleAdaptersError(
            f"Merging {kind} adapters is not supported yet.",
            where=directory.path,
            found=directory.config.get("peft_type"),
            expected="LORA or IA3",
            fix="use LoRA or (IA)³ adapters",
        )
    _require_supported(directory)
    factors: dict[str, dict[str, TensorInfo]] = {}
    heads = {}
    for name, info in directory.tensors.items():
        module, role = split_key(name)
        if module is None or (role == "ia3_l") != (kind == "ia3"):
            _require_head(directory, name, kind)
            heads[name] = info
        else:
            factors.setdefault(module, {})[role] = info
    if not factors:
        raise AdapterFileError(
            f"The adapter has no {kind} tensors.",
            where=directory.tensors_path,
            found=", ".join(list(directory.tensors)[:4]) or "no tensors",
            expected="lora_A and lora_B weights" if kind == "lora" else "ia3_l vectors",
            fix="save the adapter again with save_pretrained",
        )
    sites = {module: _site(directory, kind, module, tensors) for module, tensors in sorted(factors.items())}
    return Layout(directory, kind, sites, heads)


def _unsupported(directory: AdapterDirectory, what: str, found: object) -> IncompatibleAdaptersError:
    return IncompatibleAdaptersError(
        f"{what} cannot be merged or stacked: not supported.",
        where=directory.path,
        found=found,
        expected="plain LoRA or (IA)³ on linear modules",
        fix="train the adapter without it",
    )


def _require_supported(directory: AdapterDirectory) -> None:
    config = directory.config
    for name, what in _UNSUPPORTED.items():
        if config.get(name):
            raise _unsupported(directory, what, f"{name}: {config[name]}")
    if config.get("bias", "none") != "none":
        raise _unsupported(directory, "Trained biases", f"bias: {config['bias']}")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_BASE_CHANGING):
        raise _unsupported(directory, "A start that changes the base's weights", f"init_lora_weights: {start}")


def _require_head(directory: AdapterDirectory, name: str, kind: str) -> None:
    if "lora_embedding" in name:
        raise _unsupported(directory, "LoRA on embeddings", name)
    if "lora_magnitude" in name:
        raise _unsupported(directory, "DoRA", name)
    if any(part.startswith(("lora", "ia3")) for part in name.split(".")):
        raise _unsupported(directory, f"A tensor that is no part of plain {kind}", name)


def _site(directory: AdapterDirectory, kind: str, module: str, tensors: dict[str, TensorInfo]) -> Site:
    for info in tensors.values():
        if info.dtype not in FLOATS:
            raise _unsupported(directory, f"Adapter tensors of dtype {info.dtype}", info.name)
        if len(info.shape) != 2:
            raise _unsupported(directory, "An adapter on a module that is not linear", f"{info.name}: {info.shape}")
    if kind == "ia3":
        return Site(tensors, 0, 0.0, 1.0)
    missing = {"lora_A", "lora_B"} - set(tensors)
    if missing:
        raise AdapterFileError(
            "A factor of a module is missing.",
            where=f"{directory.tensors_path}: {module}",
            found=", ".join(sorted(tensors)),
            expected="lora_A and lora_B",
            fix="save the adapter again with save_pretrained",
        )
    rank, alpha = ranks(directory.config, module)
    rows, columns = tensors["lora_A"].shape[0], tensors["lora_B"].shape[1]
    if not rows == columns == rank:
        raise AdapterFileError(
            "The rank of a module is not that of the config.",
            where=f"{directory.tensors_path}: {module}",
            found=f"lora_A {tensors['lora_A'].shape}, lora_B {tensors['lora_B'].shape}",
            expected=f"rank {rank} (r and rank_pattern of adapter_config.json)",
            fix="config and tensors belong to different adapters: save the adapter again",
        )
    return Site(tensors, rank, alpha, _scaling(directory, module, rank, alpha))


def _scaling(directory: AdapterDirectory, module: str, rank: int, alpha: float) -> float:
    scaling = alpha / (math.sqrt(rank) if directory.config.get("use_rslora") else rank)
    if not (math.isfinite(scaling) and scaling > 0):
        raise AdapterFileError(
            "The scaling of a module is not a positive number.",
            where=f"{directory.path}: {module}",
            found=f"alpha {alpha}, rank {rank}",
            expected="alpha > 0",
            fix="correct lora_alpha in adapter_config.json",
        )
    return scaling


def ranks(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """(rank, α) of a module, with PEFT's reading of ``rank_pattern`` and ``alpha_pattern``: the first key that matches
    the whole name or its ending after a dot, as a regular expression."""
    rank_pattern, alpha_pattern = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    try:
        rank = int(rank_pattern.get(_pattern_key(rank_pattern, module), config["r"]))
        alpha = float(alpha_pattern.get(_pattern_key(alpha_pattern, module), config["lora_alpha"]))
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise AdapterFileError(
            "Rank or alpha cannot be read from the config.",
            where=f"adapter_config.json: {module}",
            found=repr(error),
            expected="r, lora_alpha, rank_pattern, alpha_pattern as PEFT writes them",
            fix="save the adapter again with save_pretrained",
        ) from error
    if rank < 1:
        raise AdapterFileError(
            "The rank of a module is not positive.", where=module, found=rank, expected="1 or more", fix="save it again"
        )
    return rank, alpha


def _pattern_key(keys: Iterable[str], module: str) -> str:
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", module)), module)
