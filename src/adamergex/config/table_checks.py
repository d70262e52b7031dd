"""Checks of a table's settings across fields: how λ is chosen, and how heads start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from adamergex.config.references import AdapterReference, TaskReference
from adamergex.config.task import BuiltinTask, CustomTask, task_kind_name
from adamergex.jobs.settings import Optimisation, unprobed
from adamergex.structures import kind_named
from adamergex.tasks import kinds

if TYPE_CHECKING:
    from adamergex.config.transfer import TransferConfig

ORACLE = "_oracle"
"""The suffix of a method's name whose λ is chosen on the target's own test set."""


def weight_problems(config: TransferConfig, task: CustomTask | BuiltinTask | None) -> Iterator[str]:
    """Problems of how λ is chosen. ``task``: None if it is invalid itself."""
    merge = config.merge
    if config.source in config.proxy:
        yield f"proxy: '{config.source}' is the source; λ would be tuned where no transfer happens"
    own = {"leave_one_out" if merge.leave_one_out else "proxy"} if merge.weight == "tuned" else set()
    own |= {"entropy"} if merge.weight == "entropy" else set()
    if config.merges or any(":" in method for method in config.methods):
        yield from _search_problems(config, task, (own if config.merges else set()) | set(merge.compare))
    elif merge.oracle:
        yield "merge.oracle: no method of the table has a λ to choose"
    if merge.leave_one_out and merge.weight != "tuned":
        yield "merge.leave_one_out: applies only to a tuned λ; omit merge.weight, or set it to tuned"
    if merge.one_standard_error and merge.weight != "tuned":
        yield "merge.one_standard_error: applies only to a tuned λ; omit merge.weight, or set it to tuned"
    if merge.compare and not merge.oracle:
        yield "merge.compare: is shown against the oracle; set merge.oracle to true"
    yield from (f"merge.compare: '{name}' is already how the table chooses λ" for name in merge.compare if name in own)
    if merge.leave_one_out and config.proxy and "proxy" not in merge.compare:
        yield "proxy: not used, merge.leave_one_out tunes λ on the other targets; omit one of them"
    if merge.oracle:
        names = [method.rpartition(":")[2] for method in config.methods]
        yield from (f"methods: '{name}' is the name of another method's oracle" for name in names
                    if name.endswith(ORACLE) and name.removesuffix(ORACLE) in names)  # fmt: skip
    if merge.weight != "entropy" and merge.granularity != "all":
        yield "merge.granularity: only entropy finds a λ per layer; set merge.weight to entropy"


def _search_problems(
    config: TransferConfig, task: CustomTask | BuiltinTask | None, searches: set[str]
) -> Iterator[str]:
    """Problems of the searches for λ that the table uses or compares: proxy, leave_one_out, entropy."""
    if "proxy" in searches and not config.proxy:
        yield "proxy: missing; it is the language whose validation set tunes λ (or set merge.weight to a number)"
    if "leave_one_out" in searches and len(config.targets) < 2:
        yield "targets: merge.leave_one_out tunes λ on the other targets, and there is no other"
    tuned = "leave_one_out" in searches or ("proxy" in searches and config.proxy)
    if tuned and task is not None and task.rows("validation") is None:
        where = "the proxy language" if "proxy" in searches else "the other targets"
        yield f"task.validation: missing; λ is tuned on it in {where} (or set merge.weight to a number)"
    if "entropy" in searches:
        yield from _entropy_problems(config, task)


def _entropy_problems(config: TransferConfig, task: CustomTask | BuiltinTask | None) -> Iterator[str]:
    merge, structure = config.merge, kind_named(config.structure.kind)
    place = "merge.weight" if merge.weight == "entropy" else "merge.compare"
    if task is not None:
        target = task.task(()) if not task.open_labels else None
        name = target.kind if target is not None else getattr(task, "kind", "classification")
        if kinds.kind_of(name).options is None or getattr(target, "answer_by", "likelihood") == "generate":
            yield f"{place}: 'entropy' needs a task whose answers are choices, this one is {name}"
        if task.rows(merge.unlabelled) is None:
            yield f"merge.unlabelled: there is no task.{merge.unlabelled}"
    if not 0 <= merge.grid[0] <= merge.grid[-1] <= 1:
        yield "merge.grid: entropy is minimised over λ in [0, 1]"
    delta = merge.space == "delta" or any(traits.tunes and traits.delta for traits in config.traits.values())
    if merge.granularity == "layer" and (delta or structure.whole):
        yield f"merge.granularity: a λ per layer is for factors, here is {'space delta' if delta else 'a prefix'}"


def head_start_problems(config: TransferConfig, task: CustomTask | BuiltinTask | None) -> Iterator[str]:
    """Problems of probes for tasks without a head. ``task``: None if it is invalid itself."""
    reference, text = config.reference, "text"
    places: list[tuple[str, Optimisation | None, str | None]] = [
        ("mad_x.language.", config.mad_x.language.optimisation, text),
        ("full.language.", config.full.language.optimisation, text),
        ("lf_sft.language.", config.lf_sft.language.optimisation, text),
    ]
    if isinstance(reference, TaskReference):
        kind = task_kind_name(reference.task.placed(Path(config.folder)))
        places.append(("reference.task.", reference.optimisation, kind))
    elif not isinstance(reference, AdapterReference):
        places.append(("reference.", reference.optimisation, reference.kind))
    if task is not None:
        kind = task_kind_name(task)
        places += [("task.", config.task.optimisation, kind), ("mad_x.task.", config.mad_x.task.optimisation, kind)]
        places += [("full.task.", config.full.task, kind), ("lf_sft.task.", config.lf_sft.task.optimisation, kind)]
    for place, optimisation, kind in places:
        if optimisation is not None and kind is not None and (problem := unprobed(kind, optimisation)):
            yield place + (problem.removeprefix("optimisation.") if place == "full.task." else problem)
