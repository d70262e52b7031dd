"""LoRA: ΔW = s·B·A beside the frozen weights of linear modules. Source: 2106.09685."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from adamergex.errors import AdapterFileError
from adamergex.files.directory import CONFIG, AdapterDirectory, TensorInfo
from adamergex.structures.kind import StructureKind
from adamergex.structures.layout import Layout, Site
from adamergex.structures.projections import linear_modules
from adamergex.structures.targets import Ranks


def layout(directory: AdapterDirectory, kind: StructureKind) -> Layout:
    """A, B, rank and scaling of every module. Raises: as ``structures.layout.layout``."""
    modules, heads = linear_modules(directory, kind)
    ranks = Ranks(directory.config, directory.path / CONFIG)
    return Layout(directory, kind.name, {name: _site(directory, ranks, name, modules[name]) for name in modules}, heads)


def _site(directory: AdapterDirectory, ranks: Ranks, module: str, tensors: dict[str, TensorInfo]) -> Site:
    missing = {"lora_A", "lora_B"} - set(tensors)
    if missing:
        raise AdapterFileError(
            "a factor of a module is missing",
            where=f"{directory.tensors_path}: {module}",
            found=", ".join(sorted(tensors)),
            expected="lora_A and lora_B",
            fix="save the adapter again with save_pretrained",
        )
    rank, alpha = ranks(module)
    require_rank(
        rank, {role: info.shape for role, info in sorted(tensors.items())}, f"{directory.tensors_path}: {module}"
    )
    return Site(tensors, rank, alpha, _scaling(directory, module, rank, alpha))


def require_rank(rank: float, shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """The factors of a module against the config: A (r, in), B (out, r). Raises: AdapterFileError."""
    if any(shape[0 if role == "lora_A" else 1] != rank for role, shape in shapes.items()):
        raise AdapterFileError(
            "the rank of a module differs from the config",
            where=where,
            found=", ".join(f"{role} {shape}" for role, shape in shapes.items()),
            expected=f"rank {rank} (r and rank_pattern of adapter_config.json)",
            fix="config and tensors belong to different adapters: save the adapter again",
        )


def _scaling(directory: AdapterDirectory, module: str, rank: int, alpha: float) -> float:
    scaling = alpha / (math.sqrt(rank) if directory.config.get("use_rslora") else rank)
    if not (math.isfinite(scaling) and scaling > 0):
        raise AdapterFileError(
            "the scaling of a module is not a positive number",
            where=f"{directory.path}: {module}",
            found=f"alpha {alpha}, rank {rank}",
            expected="alpha > 0",
            fix="correct lora_alpha in adapter_config.json",
        )
    return scaling


KIND = StructureKind(
    "lora",
    "adamergex.structures.settings:Lora",
    "adamergex.adapters.in_peft",
    peft_type="LORA",
    trained_on=("query", "key", "value", "output", "up", "down"),
    rule="additive",
    selection="attention-qv",
    pattern=re.compile(r"(?P<module>.+)\.(?P<role>lora_[AB])\.weight"),
    # A live model's names contain the adapter's name: lora_A.default.weight.
    live=re.compile(r"(?P<module>.+)\.(?P<role>lora_[AB])(?:\.[^.]+)?\.weight"),
    roles=frozenset(("lora_A", "lora_B")),
    tensors="lora_A and lora_B weights",
    layout=layout,
    random=("lora_A",),
    random_name="the A factors",
    shape={"rank": "r", "alpha": "lora_alpha"},
    low_rank=True,
    task_vectors=True,
)
