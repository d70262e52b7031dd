"""Step kind -> the function that does it. Heavy imports stay inside, so that planning needs no model library."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from adamergex.graph.steps import Step

Job = Mapping[str, Any]
Inputs = Mapping[str, Path]


def train(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.jobs.settings import TrainJob
    from adamergex.training.train import train as train_adapter

    below = [str(inputs["below"])] if "below" in inputs else []
    train_adapter(TrainJob.model_validate({**job, "below": below}), output, workdir=workdir, progress=True)


def import_given(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.methods.given import copy_given

    copy_given(job["path"], output)


def merge(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.merging import merge as merge_adapters
    from adamergex.merging.layers import Swap

    if "density" in job:
        from adamergex.adapters.combining import combine

        given: dict[str, Any] = {name: job[name] for name in ("density", "weights", "rank")}
        given["seed"] = job.get("seed", 0)
        combine(
            task=inputs["task"], target_reference=inputs["target_reference"], method=job["rule"], output=output, **given
        )
        return
    weight = job["weight"]
    if weight is None:
        from adamergex.files.records import read_search

        found = read_search(inputs["weight"])
        weight = found.layers or found.chosen
    elif isinstance(weight, Mapping):
        weight = Swap(**weight)
    merge_adapters(
        task=inputs["task"],
        target_reference=inputs["target_reference"],
        source_reference=inputs.get("source_reference"),
        weight=weight,
        output=output,
        **_spec(job),
    )


def tune(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.jobs.settings import EvaluateJob

    search: Callable[..., Any]
    if "granularity" in job:
        from adamergex.search.entropy import minimise

        search = partial(minimise, granularity=job["granularity"])
    else:
        from adamergex.search.tuning import tune as search
    search(
        task=inputs["task"],
        target_reference=inputs["target_reference"],
        source_reference=inputs.get("source_reference"),
        job=EvaluateJob.model_validate(job["evaluate"]),
        grid=job["grid"],
        output=output,
        **_spec(job["merge"]),
        **({"answers": True} if job.get("answers") else {}),
    )


def _spec(job: Job) -> dict[str, Any]:
    """How a job merges; what it does not say has its default."""
    from adamergex.merging.prepare import MergeSpec

    return {item.name: job[item.name] for item in fields(MergeSpec) if item.name in job}


def choose(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.search.weight_choice import choose as choose_weight

    searches = {language: inputs[language] for language in job["languages"]}
    choose_weight(searches, one_standard_error=job["one_standard_error"], output=output)


def evaluate(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.evaluation import evaluate as evaluate_adapter
    from adamergex.jobs.settings import EvaluateJob

    stack = [inputs[name] for name in ("below", "adapter") if name in inputs]
    evaluate_adapter(EvaluateJob.model_validate(job), stack or None, output)


ACTIONS = {"train": train, "import": import_given, "merge": merge, "tune": tune, "choose": choose, "evaluate": evaluate}


def backbone_group(step: Step) -> Hashable:
    """Steps of one group can use one loaded backbone: the same base under the same head."""
    job = step.job.get("evaluate", step.job)
    task = job.get("task", {})
    bare = "base" in job and "structure" not in job and not step.inputs
    return job.get("base"), task.get("kind"), tuple(task.get("labels") or ()), bare
