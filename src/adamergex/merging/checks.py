"""Checks that adapters can be combined. Every check raises; none repairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adamergex.errors import IncompatibleAdaptersError
from adamergex.files.directory import CHUNK, TensorReader
from adamergex.files.lineage import Lineage
from adamergex.files.tensor_names import PREFIX
from adamergex.structures.layout import Layout, Site

SAME_START = 0.3
"""Smallest mean cosine between the A factors of adapters with one start: for different seeds it is within a few
hundredths of 0, and training moves A far less than this from its start."""
_SAMPLED = 16
# Names of token and position tables and of output projections, in addition to names with "embed".
_VOCABULARY = frozenset(("wte", "wpe", "lm_head", "shared", "output_layer", "predictions", "generator_lm_head"))


class Adapter(NamedTuple):
    """An adapter in a merge: its role (task, target reference, source reference, divergence), tensors and lineage."""

    role: str
    layout: Layout
    lineage: Lineage | None

    @property
    def where(self) -> str:
        return f"{self.role} {self.layout.directory.path}"


def _differ(
    problem: str, pair: tuple[Adapter, Adapter], found: object, expected: object, fix: str
) -> IncompatibleAdaptersError:
    first, other = pair
    return IncompatibleAdaptersError(
        problem, where=f"{other.where} against {first.where}", found=found, expected=expected, fix=fix
    )


def require_fitting(adapters: Sequence[Adapter], space: str) -> None:
    """Require that all adapters match the first: kind, base, modules, shapes, dtypes; in factor space rank and scaling.

    Raises:
        IncompatibleAdaptersError: they differ.
    """
    first = adapters[0]
    for other in adapters[1:]:
        if first.layout.kind != other.layout.kind:
            raise _differ(
                "the adapters have different structures",
                (first, other),
                other.layout.kind,
                first.layout.kind,
                "combine adapters of one structure",
            )
        _require_same_base(first, other)
        require_no_trained_base(other)
        _require_same_settings(first, other)
        _require_same_modules(first, other)
        for name, site in first.layout.sites.items():
            if name in other.layout.sites:
                _require_same_site(first, other, name, (site, other.layout.sites[name]), space)


def _require_same_base(first: Adapter, other: Adapter) -> None:
    hashes = [adapter.lineage.base.get("sha256") if adapter.lineage else None for adapter in (first, other)]
    names = [adapter.layout.base_name for adapter in (first, other)]
    # A base that moved to another path is the same base, so hashes decide if both are known.
    expected, found = hashes if all(hashes) else names
    if not all(hashes) and expected == found:
        # One name may have several revisions (step1000, step143000); null is the hub's main.
        revisions = [adapter.layout.directory.config.get("revision") or "main" for adapter in (first, other)]
        expected, found = (f"{name}, revision {revision}" for name, revision in zip(names, revisions, strict=True))
    if expected != found:
        raise _differ(
            "the adapters belong to different base models",
            (first, other),
            found,
            expected,
            "train all of them on one base (if it only moved, correct base_model_name_or_path in adapter_config.json)",
        )
    orientation = [bool(adapter.layout.directory.config.get("fan_in_fan_out")) for adapter in (first, other)]
    if orientation[0] != orientation[1]:
        raise _differ(
            "fan_in_fan_out differs", (first, other), orientation[1], orientation[0], "train them with one setting"
        )


def _require_same_settings(first: Adapter, other: Adapter) -> None:
    ours, theirs = first.layout.settings, other.layout.settings
    differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if differing:
        raise _differ(
            f"{differing[0]} in the config differs",
            (first, other),
            ", ".join(f"{name} {theirs.get(name)}" for name in differing),
            ", ".join(f"{name} {ours.get(name)}" for name in differing),
            "train all of them with one configuration",
        )


def _require_same_modules(first: Adapter, other: Adapter) -> None:
    ours, theirs = set(first.layout.sites), set(other.layout.sites)
    # A saved divergence may hold only some modules; the merge checks that it has those it needs.
    missing = sorted(ours - theirs) if other.role != "divergence" else []
    extra = sorted(theirs - ours)
    if not missing and not extra:
        return
    differences = [f"missing {_some(missing)}"] * bool(missing) + [f"extra {_some(extra)}"] * bool(extra)
    fix = "train them with the same target_modules"
    if missing and {name.partition(".")[2] for name in missing} & {name.partition(".")[2] for name in extra}:
        fix = "only the beginnings of the names differ: train the references on the same family of model classes"
    targets = [adapter.layout.directory.config.get("target_modules") for adapter in (first, other)]
    raise _differ(
        "the adapters have different modules",
        (first, other),
        f"{'; '.join(differences)} (target_modules {_listed(targets[1])})",
        f"the {len(ours)} modules of the {first.role} (target_modules {_listed(targets[0])})",
        fix,
    )


def _listed(targets: object) -> str:
    return ", ".join(sorted(targets)) if isinstance(targets, list) else str(targets)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _require_same_site(first: Adapter, other: Adapter, name: str, sites: tuple[Site, Site], space: str) -> None:
    ours, theirs = sites
    saved = other.role == "divergence"
    if space == "factors" and not saved and (ours.rank, ours.scaling) != (theirs.rank, theirs.scaling):
        raise _differ(
            f"rank or alpha of {name} differs",
            (first, other),
            f"rank {theirs.rank}, alpha {theirs.alpha:g}, scaling {theirs.scaling:g}",
            f"rank {ours.rank}, alpha {ours.alpha:g}, scaling {ours.scaling:g}",
            "merge them with --space delta, which allows different ranks and alphas",
        )
    for role, info in ours.tensors.items():
        theirs_info = theirs.tensors[role]
        free = {"lora_A": 0, "lora_B": 1}[role] if space == "delta" else None
        shapes = [tuple(size for axis, size in enumerate(item.shape) if axis != free) for item in (info, theirs_info)]
        if shapes[0] != shapes[1]:
            raise _differ(
                f"the shape of {info.name} differs",
                (first, other),
                theirs_info.shape,
                info.shape,
                "train all of them on one base with one configuration",
            )
        _require_same_dtype(first, other, info.name, (info.dtype, theirs_info.dtype))


def _require_same_dtype(first: Adapter, other: Adapter, name: str, dtypes: tuple[str, str]) -> None:
    ours, theirs = dtypes
    if other.role == "divergence":
        # A divergence is saved in its compute dtype, which for prefixes is always float64.
        ours = "F64" if ours == "F64" or first.layout.structure.whole else "F32"
    if ours != theirs:
        raise _differ(f"the dtype of {name} differs", (first, other), theirs, ours, "save them in one dtype")


def require_no_trained_base(adapter: Adapter) -> None:
    """Require that a reference holds an adapter and at most a head, which a merge ignores, but no trained base modules.

    Raises: IncompatibleAdaptersError for trained or resized embeddings, an output projection, norms, …
    """
    layout = adapter.layout
    inside = {name.partition(".")[0] for name in layout.sites if "." in name}
    for name in layout.heads:
        parts = name.removeprefix(PREFIX).removeprefix("base_model.").split(".")[:-1]
        vocabulary = any("embed" in part or part in _VOCABULARY for part in parts)
        if not vocabulary and (parts[:1] == [] or parts[0] not in inside or "pooler" in parts):
            continue
        raise IncompatibleAdaptersError(
            "a reference holds trained token embeddings or an output projection: another vocabulary is another base"
            if vocabulary
            else "a reference holds trained base parameters, which are neither adapter nor head",
            where=f"{adapter.where}: {name}",
            found=f"{name}, shape {layout.heads[name].shape}",
            expected="adapter tensors, and at most a head, which is ignored",
            fix="train the references without them (modules_to_save, resize_token_embeddings)",
        )


def require_references(target: Adapter, source: Adapter | None, task: Adapter | None = None) -> None:
    """Check lineages: one reference task, two languages, and a task adapter in the source language.

    Raises:
        IncompatibleAdaptersError: the lineages contradict the method.
    """
    for adapter in (target, source, task):
        if adapter and adapter.lineage and adapter.lineage.is_divergence:
            kind = "task" if adapter is task else "reference"
            raise IncompatibleAdaptersError(
                f"a saved divergence is not a {kind} adapter",
                where=adapter.where,
                found="a divergence",
                expected=f"an adapter trained on the {'target' if adapter is task else 'reference'} task",
                fix="pass it as --divergence",
            )
    if not (target.lineage and source and source.lineage):
        return
    target_lineage, source_lineage = target.lineage, source.lineage
    if (
        target_lineage.task is not None
        and source_lineage.task is not None
        and _without_path(target_lineage.task) != _without_path(source_lineage.task)
    ):
        raise _differ(
            "the references were trained on different tasks, so their difference is not one between languages",
            (source, target),
            dict(target_lineage.task),
            dict(source_lineage.task),
            "train both references on the same task",
        )
    if target_lineage.language and target_lineage.language == source_lineage.language:
        raise _differ(
            "both references have one language",
            (source, target),
            target_lineage.language,
            "two languages",
            "pass the reference in the target language as target and the one in the source language as source",
        )
    task_language = task.lineage.language if task and task.lineage else None
    if task and task_language and source_lineage.language and task_language != source_lineage.language:
        raise _differ(
            "the task adapter and the source reference have different languages",
            (task, source),
            source_lineage.language,
            task_language,
            "pass a source reference in the language of the task adapter (swapped target and source?)",
        )


def _without_path(task: Mapping[str, Any]) -> dict[str, Any]:
    """A reference task without the path of its translations, which may differ between machines."""
    return {name: value for name, value in task.items() if name != "pivot"}


def require_same_start(adapters: Sequence[Adapter], allowed: bool) -> None:
    """Require one random start: LoRA factors and bottlenecks can only be combined if they share it.

    Lineages show the start; without them, the mean cosine between the tensors that are random at the start (A,
    down-projections) and the first adapter's (``SAME_START``). Prefixes are refused only if lineages show two starts: D
    maps one prefix to another for any start, and the starts of prefixes without lineage are unknown.

    Raises:
        IncompatibleAdaptersError: different or unknown starts.
    """
    structure = adapters[0].layout.structure
    if allowed or structure.start == "fixed":
        return
    first = adapters[0]
    for other in adapters[1:]:
        starts = [adapter.lineage.start if adapter.lineage else None for adapter in (first, other)]
        problem = "the adapters have different random starts: their tensors cannot be combined"
        if all(starts):
            same, found = starts[0] == starts[1], f"start {str(starts[1])[:12]}"
        elif structure.start == "told":
            continue
        elif "divergence" in (first.role, other.role):
            problem = "it is not known whether the adapters have one random start"
            same, found = False, "no start in the lineage of " + (other.where if not starts[1] else first.where)
        else:
            cosine = _mean_cosine(first, other)
            same, found = cosine >= SAME_START, f"mean cosine {cosine:.3f} of {structure.random_name}"
        if not same:
            expected = f"start {str(starts[0])[:12]}" if all(starts) else f"one start (cosine at least {SAME_START})"
            raise _differ(
                problem,
                (first, other),
                found,
                expected,
                ("merge them with --space delta, which needs no common start, or " if structure.low_rank else "")
                + "override with --allow-different-start",
            )


def _mean_cosine(first: Adapter, other: Adapter) -> float:
    names = sorted(first.layout.sites)
    cosines = []
    with TensorReader(first.layout.directory) as ours, TensorReader(other.layout.directory) as theirs:
        for name in names[:: -(-len(names) // _SAMPLED)]:
            role = next(role for role in first.layout.structure.random if role in first.layout.sites[name].tensors)
            info = first.layout.sites[name].tensors[role]
            size = min(info.size, CHUNK)
            values = ours.read(info, 0, size)[0]
            other_values = theirs.read(other.layout.sites[name].tensors[role], 0, size)[0]
            norms = float(np.linalg.norm(values)) * float(np.linalg.norm(other_values))
            if 0 < norms < math.inf:  # the merge reports values that are not finite
                cosines.append(float(values @ other_values) / norms)
    return sum(cosines) / len(cosines) if cosines else 0.0
