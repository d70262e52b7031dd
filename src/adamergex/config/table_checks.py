"""What a table's settings contradict beyond single fields: how λ is chosen, and how heads start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from adamergex.config.references import AdapterReference, TaskReference
from adamergex.config.task import BuiltinTask, CustomTask, kind_of
from adamergex.jobs.settings import Optimisation, unprobed
from adamergex.structures import kind_named
from adamergex.tasks import kinds

if TYPE_CHECKING:
    from adamergex.config.transfer import TransferConfig

ORACLE = "_oracle"
"""What follows a method's name where its λ is chosen on the target's own test set."""


def weight_problems(config: TransferConfig, task: CustomTask | BuiltinTask | None) -> Iterator[str]:
    """What is wrong with how λ is chosen. ``task``: None where it is wrong itself."""
    merge = config.merge
    if config.source in config.proxy:
        yield f"proxy: '{config.source}' is the source; λ would be tuned where no transfer happens"
    ways = {"leave_one_out" if merge.leave_one_out else "proxy"} if merge.weight == "tuned" else set()
    ways |= {"entropy"} if merge.weight == "entropy" else set()
    if config.merges or any(":" in method for method in config.methods):
        yield from _of_ways(config, task, ways if config.merges else set(), set(merge.compare))
    elif merge.oracle:
        yield "merge.oracle: no method of the table has a λ to choose"
    if merge.leave_one_out and merge.weight != "tuned":
        yield "merge.leave_one_out: is a way to tune λ; leave merge.weight out, or set it to tuned"
    if merge.one_standard_error and merge.weight != "tuned":
        yield "merge.one_standard_error: is a way to tune λ; leave merge.weight out, or set it to tuned"
    if merge.compare and not merge.oracle:
        yield "merge.compare: is shown against the oracle; set merge.oracle to true"
    yield from (f"merge.compare: '{way}' is the table's own way already" for way in merge.compare if way in ways)
    if merge.leave_one_out and config.proxy and "proxy" not in merge.compare:
        yield "proxy: not used, merge.leave_one_out tunes λ on the other targets; leave one of them out"
    if merge.oracle:
        names = [method.rpartition(":")[2] for method in config.methods]
        yield from (f"methods: '{name}' is what the oracle of another is called" for name in names
                    if name.endswith(ORACLE) and name.removesuffix(ORACLE) in names)  # fmt: skip
    if merge.weight != "entropy" and merge.granularity != "all":
        yield "merge.granularity: a λ per layer is found by entropy only; set merge.weight to entropy"


def _of_ways(
    config: TransferConfig, task: CustomTask | BuiltinTask | None, own: set[str], compared: set[str]
) -> Iterator[str]:
    """What the table's own way of choosing λ, and those that are compared with it, lack."""
    ways = own | compared
    if "proxy" in ways and not config.proxy:
        yield "proxy: missing; it is the language whose validation set tunes λ (or set merge.weight to a number)"
    if "leave_one_out" in ways and len(config.targets) < 2:
        yield "targets: merge.leave_one_out tunes λ on the other targets, and there is no other"
    tuned = "leave_one_out" in ways or ("proxy" in ways and config.proxy)
    if tuned and task is not None and task.rows("validation") is None:
        where = "the proxy language" if "proxy" in ways else "the other targets"
        yield f"task.validation: missing; λ is tuned on it in {where} (or set merge.weight to a number)"
    if "entropy" in ways:
        yield from _of_entropy(config, task)


def _of_entropy(config: TransferConfig, task: CustomTask | BuiltinTask | None) -> Iterator[str]:
    merge, structure = config.merge, kind_named(config.structure.kind)
    place = "merge.weight" if merge.weight == "entropy" else "merge.compare"
    if task is not None:
        found = task.task(()) if not task.open_labels else None
        name = found.kind if found is not None else getattr(task, "kind", "classification")
        if kinds.kind_of(name).options is None or getattr(found, "answer_by", "likelihood") == "generate":
            yield f"{place}: 'entropy' needs a task whose answers are choices, this one is {name}"
        if task.rows(merge.unlabelled) is None:
            yield f"merge.unlabelled: there is no task.{merge.unlabelled}"
    if not 0 <= merge.grid[0] <= merge.grid[-1] <= 1:
        yield "merge.grid: entropy is minimised over λ in [0, 1]"
    delta = merge.space == "delta" or any(traits.tunes and traits.delta for traits in config.traits.values())
    if merge.granularity == "layer" and (delta or structure.whole):
        yield f"merge.granularity: a λ per layer is for factors, here is {'space delta' if delta else 'a prefix'}"


def head_start_problems(config: TransferConfig, task: CustomTask | BuiltinTask | None) -> Iterator[str]:
    """Probes where nothing has a head. ``task``: None where it is wrong itself."""
    reference, text = config.reference, "text"
    places: list[tuple[str, Optimisation | None, str | None]] = [
        ("mad_x.language.", config.mad_x.language.optimisation, text),
        ("full.language.", config.full.language.optimisation, text),
        ("lf_sft.language.", config.lf_sft.language.optimisation, text),
    ]
    if isinstance(reference, TaskReference):
        places.append(("reference.task.", reference.optimisation, kind_of(reference.task.placed(Path(config.folder)))))
    elif not isinstance(reference, AdapterReference):
        places.append(("reference.", reference.optimisation, reference.kind))
    if task is not None:
        kind = kind_of(task)
        places += [("task.", config.task.optimisation, kind), ("mad_x.task.", config.mad_x.task.optimisation, kind)]
        places += [("full.task.", config.full.task, kind), ("lf_sft.task.", config.lf_sft.task.optimisation, kind)]
    for place, optimisation, kind in places:
        if optimisation is not None and kind is not None and (problem := unprobed(kind, optimisation)):
            yield place + (problem.removeprefix("optimisation.") if place == "full.task." else problem)
