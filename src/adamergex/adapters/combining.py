"""TIES and DARE of a task adapter and a reference: on task vectors (``merging.task_vectors``), or as PEFT does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from adamergex.adapters import peft_backed
from adamergex.adapters.saving import save_tensors
from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.files import lineage as lineages
from adamergex.files import tensor_files
from adamergex.files.directory import TENSORS, TensorReader
from adamergex.files.hashing import file_sha256
from adamergex.files.lineage import Lineage
from adamergex.files.outputs import staged_directory
from adamergex.merging.checks import Adapter, require_fitting, require_references, require_same_start
from adamergex.merging.merge import ranked
from adamergex.merging.prepare import opened
from adamergex.merging.records import merged_lineage, parents, write_beside
from adamergex.merging.report import MergeReport, ModuleChange
from adamergex.merging.stream_delta import ReferenceFactors
from adamergex.merging.stream_vectors import VectorMerge, write_gates
from adamergex.merging.task_vectors import MIXED, mixer
from adamergex.structures import every

FACTORS = "_factors"
METHODS = {**MIXED, **{f"{method}{FACTORS}": weights for method, weights in MIXED.items()}}
"""The methods and their default weights."""
LARGEST = 4_000_000_000
"""An exact result of more bytes than this needs a rank."""
Tensors = dict[str, torch.Tensor]


class Combination(NamedTuple):
    """The validated settings of a combination of two adapters."""

    method: str
    density: float
    weights: tuple[float, float]
    seed: int
    rank: int | None


def combine(
    *,
    task: Path | str,
    target_reference: Path | str,
    method: str,
    density: float,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    rank: int | None = None,
    output: Path | str,
) -> MergeReport:
    """Combine A[T,s] and A[R,g] by TIES (2306.01708) or DARE (2311.03099), module by module, with the task's heads.

    ``ties``, ``dare`` work on task vectors. A LoRA's task vector is ΔW = s·B·A, of any rank, alpha and start; the
    mixture no longer has low rank, so the result is one LoRA of full rank, exact up to rounding, or the best
    approximation of rank ``rank``, with its relative error in the report. An (IA)³'s task vector is l − 1, as in the
    experiments of TIES. ``ties_factors``, ``dare_factors`` work on A and on B, each with √weight, as PEFT's
    ``add_weighted_adapter`` does (LoRAs of one shape and start). This is not the mixture of ΔW: the random start of A
    is trimmed and dropped too, and where A is shared, two weights of 1/2 add both ΔW instead of averaging them.

    TIES: keep the ``density`` largest entries of each, elect a sign, average those that agree. DARE: keep each entry
    with probability ``density``, times 1/density, and take the weighted sum; the draws come from ``seed``.
    Raises: ConfigError, AdapterFileError, IncompatibleAdaptersError.
    """
    settings = _settings(method, density, weights, seed, rank)
    adapters = list(opened(task=task, target_reference=target_reference))
    task_adapter, reference = adapters
    layout, factors = task_adapter.layout, method.endswith(FACTORS)
    structure = layout.structure
    if not (structure.low_rank if factors else structure.task_vectors):
        kinds = [kind.name for kind in every() if (kind.low_rank if factors else kind.task_vectors)]
        raise IncompatibleAdaptersError(
            f"{method} is not for this structure",
            where=task_adapter.where,
            found=layout.kind,
            expected=" or ".join(kinds),
            fix="choose another rule: the files of other structures do not tell what training added",
        )
    if rank is not None and (not structure.low_rank or factors):
        raise ConfigError(
            "a rank applies to the ΔW of LoRA only",
            where="rank",
            found=f"{rank}, {method} of {layout.kind}",
            fix="omit it",
        )
    space = "delta" if structure.low_rank and not factors else "factors"
    require_references(reference, None, task_adapter)
    require_fitting(adapters, space)
    with staged_directory(output) as stage:
        if factors:
            require_same_start(adapters, allowed=False)
            changes, config = _write_factors(stage, adapters, settings)
        else:
            changes, config = _write_vectors(stage, adapters, settings)
        report = MergeReport(
            layout.kind, method, space, "all", settings.weights[1], rank, tuple(changes), tuple(layout.heads),
            tuple(reference.layout.heads),
        )  # fmt: skip
        write_beside(stage, report, config, _lineage(adapters, report, settings, config))
    return report


def _settings(method: str, density: float, weights: Sequence[float] | None, seed: int, rank: int | None) -> Combination:
    defaults: Sequence[float] = METHODS.get(method, ())
    values = tuple(map(float, defaults if weights is None else weights))
    fits = method in METHODS and len(values) == 2 and all(0 <= weight < math.inf for weight in values)
    if not fits or not 0 < density <= 1 or (rank is not None and rank < 1):
        raise ConfigError(
            "the settings of the combination are not valid",
            where="merge",
            found=f"method {method}, density {density}, weights {values}, rank {rank}",
            expected=f"one of {', '.join(METHODS)}, a density in (0, 1], two weights of 0 or more, a rank of 1 or more",
            fix="correct merge.combine",
        )
    return Combination(method, float(density), (values[0], values[1]), seed, rank)


Written = tuple[list[ModuleChange], Mapping[str, Any]]
"""The change of each module, and the config of the result."""


def _write_vectors(stage: Path, adapters: Sequence[Adapter], settings: Combination) -> Written:
    """Write the mixture of two task vectors."""
    layout, reference_layout = (adapter.layout for adapter in adapters)
    mix, config = mixer(settings.method, settings.density, settings.weights, settings.seed), layout.directory.config
    path = stage / TENSORS
    with ExitStack() as stack:
        task, reference = (stack.enter_context(TensorReader(adapter.layout.directory)) for adapter in adapters)
        if not layout.structure.low_rank:
            return write_gates(path, layout, task, (reference, reference_layout), mix), config
        merger = VectorMerge(
            averaging=True,
            weight=1.0,
            rank=settings.rank,
            layout=layout,
            chosen=frozenset(layout.sites),
            task=task,
            divergence=ReferenceFactors((reference, reference_layout), None),
            mix=mix,
        )
        if settings.rank is None and merger.bytes > LARGEST:
            raise ConfigError(
                f"the exact {settings.method} of these adapters is too large",
                where=adapters[0].where,
                found=f"{merger.bytes / 1e9:.0f} GB: every ΔW at full rank",
                expected=f"at most {LARGEST / 1e9:.0f} GB, or a rank",
                fix="set merge.rank, 64 for instance; the report gives the error of the truncation",
            )
        return merger.write(path), ranked(config, merger.shapes)


def _write_factors(stage: Path, adapters: Sequence[Adapter], settings: Combination) -> Written:
    """Write PEFT's combination of factors. PEFT folds the scaling into them; here it stays in the config."""
    task_adapter = adapters[0]
    stored = [tensor_files.read_directory(adapter.layout.directory.path) for adapter in adapters]
    roots = [math.sqrt(weight) for weight in settings.weights]
    method = settings.method.removesuffix(FACTORS)
    merged, changes = _combined(task_adapter, stored, method, roots, settings.density, settings.seed)
    save_tensors({name: tensor.contiguous() for name, tensor in sorted(merged.items())}, stage / TENSORS)
    return changes, task_adapter.layout.directory.config


def _combined(
    adapter: Adapter, stored: Sequence[Tensors], method: str, roots: list[float], density: float, seed: int
) -> tuple[Tensors, list[ModuleChange]]:
    """The combined tensors, computed in float32 and rounded once, and the change of each module in sorted order."""
    merged, changes = dict(stored[0]), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module, site in sorted(adapter.layout.sites.items()):
            norms = torch.zeros(3, dtype=torch.float64)
            changed = False
            for role in ("lora_A", "lora_B"):
                name = site.tensors[role].name
                task, reference = (tensors[name].float() for tensors in stored)
                result = peft_backed.combined(method, [task, reference], roots, density)
                merged[name] = result.to(stored[0][name].dtype)
                norms += torch.stack([part.double().square().sum() for part in (task, reference, result - task)])
                changed = changed or not torch.equal(merged[name], stored[0][name])
            changes.append(ModuleChange(module, True, changed, *norms.sqrt().tolist()))
    return merged, changes


def _lineage(adapters: list[Adapter], report: MergeReport, settings: Combination, config: Mapping[str, Any]) -> Lineage:
    task_adapter, reference = adapters
    origins = parents(adapters, [file_sha256(adapter.layout.directory.tensors_path) for adapter in adapters])
    lineage = merged_lineage(task_adapter, [reference], origins, report, config)
    drawn = {"seed": settings.seed} if settings.method.startswith("dare") else {}
    return replace(
        lineage,
        start=None,
        merge={**(lineage.merge or {}), "density": settings.density, "weights": list(settings.weights), **drawn},
        versions=lineages.package_versions(("adamergex", "numpy", "torch", "peft")),
    )
