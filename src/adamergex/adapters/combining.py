"""TIES and DARE of a task adapter and a reference: of task vectors (``merging.task_vectors``), or as in PEFT."""

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
"""Bytes of an exact result above which a rank must be given."""
Tensors = dict[str, torch.Tensor]


class Settings(NamedTuple):
    """How two adapters are combined, checked."""

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
    """A[T,s] and A[R,g] combined by TIES (2306.01708) or DARE (2311.03099), module by module; heads are the task's.

    ``ties``, ``dare``: on task vectors. Of LoRA that is ΔW = s·B·A of any ranks, alphas and starts; the mixture is
    no longer of low rank, so the result is one LoRA of full rank, exact up to rounding, or of ``rank``, the best
    approximation, whose relative error is in the report. Of (IA)³ it is l − 1, as in TIES' own experiments.
    ``ties_factors``, ``dare_factors``: on A and on B, each with √weight, as PEFT's ``add_weighted_adapter`` (LoRA of
    one shape and start). That is not the mixture of ΔW: the random start of A is trimmed and dropped too, and where A
    is shared, two weights of 1/2 add the ΔW of both instead of averaging them.

    TIES: keep the ``density`` largest entries of each, elect a sign, mean of those that agree. DARE: keep each entry
    with probability ``density``, times 1/density; weighted sum; drawn from ``seed``.
    Raises: ConfigError, AdapterFileError, IncompatibleAdaptersError.
    """
    chosen = _settings(method, density, weights, seed, rank)
    adapters = list(opened(task=task, target_reference=target_reference))
    own, other = adapters
    structure, factors = own.layout.structure, method.endswith(FACTORS)
    if not (structure.low_rank if factors else structure.task_vectors):
        kinds = [kind.name for kind in every() if (kind.low_rank if factors else kind.task_vectors)]
        raise IncompatibleAdaptersError(
            f"{method} is not for this structure",
            where=own.where,
            found=own.layout.kind,
            expected=" or ".join(kinds),
            fix="choose another rule: what training added to other structures is not known from their files",
        )
    if rank is not None and (not structure.low_rank or factors):
        raise ConfigError(
            "a rank is for the ΔW of LoRA", where="rank", found=f"{rank}, {method} of {own.layout.kind}", fix="omit it"
        )
    space = "delta" if structure.low_rank and not factors else "factors"
    require_references(other, None, own)
    require_fitting(adapters, space)
    with staged_directory(output) as stage:
        if method.endswith(FACTORS):
            require_same_start(adapters, allowed=False)
            changes, config = _write_factors(stage, adapters, chosen)
        else:
            changes, config = _write_vectors(stage, adapters, chosen)
        summary = MergeReport(
            own.layout.kind, method, space, "all", chosen.weights[1], rank, tuple(changes), tuple(own.layout.heads),
            tuple(other.layout.heads),
        )  # fmt: skip
        write_beside(stage, summary, config, _lineage(adapters, summary, chosen, config))
    return summary


def _settings(method: str, density: float, weights: Sequence[float] | None, seed: int, rank: int | None) -> Settings:
    default: Sequence[float] = METHODS.get(method, ())
    chosen = tuple(map(float, default if weights is None else weights))
    fits = method in METHODS and len(chosen) == 2 and all(0 <= weight < math.inf for weight in chosen)
    if not fits or not 0 < density <= 1 or (rank is not None and rank < 1):
        raise ConfigError(
            "this combination cannot be made",
            where="merge",
            found=f"method {method}, density {density}, weights {chosen}, rank {rank}",
            expected=f"one of {', '.join(METHODS)}, a density in (0, 1], two weights of 0 or more, a rank of 1 or more",
            fix="correct merge.combine",
        )
    return Settings(method, float(density), (chosen[0], chosen[1]), seed, rank)


Written = tuple[list[ModuleChange], Mapping[str, Any]]


def _write_vectors(stage: Path, adapters: Sequence[Adapter], chosen: Settings) -> Written:
    """The tensors of a mixture of task vectors; what happened to each module, and the config."""
    own, other = adapters
    mix, config = mixer(chosen.method, chosen.density, chosen.weights, chosen.seed), own.layout.directory.config
    path = stage / TENSORS
    with ExitStack() as stack:
        task, reference = (stack.enter_context(TensorReader(adapter.layout.directory)) for adapter in adapters)
        if not own.layout.structure.low_rank:
            return write_gates(path, own.layout, task, (reference, other.layout), mix), config
        merger = VectorMerge(
            averaging=True,
            weight=1.0,
            rank=chosen.rank,
            layout=own.layout,
            chosen=frozenset(own.layout.sites),
            task=task,
            divergence=ReferenceFactors((reference, other.layout), None),
            mix=mix,
        )
        if chosen.rank is None and merger.bytes > LARGEST:
            raise ConfigError(
                f"the exact {chosen.method} of these adapters is too large",
                where=own.where,
                found=f"{merger.bytes / 1e9:.0f} GB: every ΔW at full rank",
                expected=f"at most {LARGEST / 1e9:.0f} GB, or a rank",
                fix="set merge.rank, 64 for instance; the report says what that cuts off",
            )
        return merger.write(path), ranked(config, merger.shapes)


def _write_factors(stage: Path, adapters: Sequence[Adapter], chosen: Settings) -> Written:
    """The tensors of PEFT's combination of factors. PEFT folds its scaling into them; here it stays in the config."""
    own = adapters[0]
    stored = [tensor_files.read_directory(adapter.layout.directory.path) for adapter in adapters]
    roots = [math.sqrt(weight) for weight in chosen.weights]
    merged, changes = _combined(own, stored, chosen.method.removesuffix(FACTORS), roots, chosen.density, chosen.seed)
    contents = {name: tensor.contiguous() for name, tensor in sorted(merged.items())}
    save_tensors(contents, stage / TENSORS)
    return changes, own.layout.directory.config


def _combined(
    own: Adapter, stored: Sequence[Tensors], method: str, roots: list[float], density: float, seed: int
) -> tuple[Tensors, list[ModuleChange]]:
    """The tensors of the result, in float32 and rounded once; what happened to each module, in sorted order."""
    merged, changes = dict(stored[0]), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module, site in sorted(own.layout.sites.items()):
            norms = torch.zeros(3, dtype=torch.float64)
            changed = False
            for role in ("lora_A", "lora_B"):
                name = site.tensors[role].name
                task, reference = (tensors[name].float() for tensors in stored)
                result = peft_backed.combined(method, [task, reference], roots, density)
                merged[name] = result.to(stored[0][name].dtype)
                norms += torch.stack([part.double().square().sum() for part in (task, reference, result - task)])
                changed = changed or not torch.equal(merged[name], stored[0][name])
            first, second, third = norms.sqrt().tolist()
            changes.append(ModuleChange(module, True, changed, first, second, third))
    return merged, changes


def _lineage(adapters: list[Adapter], summary: MergeReport, chosen: Settings, config: Mapping[str, Any]) -> Lineage:
    own, other = adapters
    origins = parents(adapters, [file_sha256(adapter.layout.directory.tensors_path) for adapter in adapters])
    made = merged_lineage(own, [other], origins, summary, config)
    drawn = {"seed": chosen.seed} if chosen.method.startswith("dare") else {}
    return replace(
        made,
        start=None,
        merge={**(made.merge or {}), "density": chosen.density, "weights": list(chosen.weights), **drawn},
        versions=lineages.package_versions(("adamergex", "numpy", "torch", "peft")),
    )
