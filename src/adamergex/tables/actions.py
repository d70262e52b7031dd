"""Step kind -> the function that does it. Heavy imports stay inside, so that planning needs no model library."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adamergex.graph.steps import Step
from adamergex.graph.worker import Action
from adamergex.jobs.merge import ChooseJob, MergeJob, SwapConfig, TuneJob
from adamergex.jobs.settings import EvaluateJob, TrainJob

if TYPE_CHECKING:
    from adamergex.methods.given import GivenAdapter

Inputs = Mapping[str, Path]
_SPEC = {"rule", "space", "modules", "rank", "span", "form", "settings"}


def train(job: TrainJob, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.training.train import train as train_adapter

    base_adapters = (str(inputs["base_adapter"]),) if "base_adapter" in inputs else ()
    train_adapter(TrainJob(**{**dict(job), "base_adapters": base_adapters}), output, workdir=workdir, progress=True)


def import_given(job: GivenAdapter, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.methods.given import copy_given

    copy_given(job.path, output)


def merge(job: MergeJob, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.merging import merge as merge_adapters
    from adamergex.merging.layers import Swap, Weight

    if job.density is not None:
        from adamergex.adapters.combining import combine

        combine(
            task=inputs["task"],
            target_reference=inputs["target_reference"],
            method=job.rule,
            density=job.density,
            weights=job.weights,
            rank=job.rank,
            seed=job.seed or 0,
            output=output,
        )
        return
    weight: Weight
    if job.weight is None:
        from adamergex.files.records import read_search

        found = read_search(inputs["weight"])
        weight = found.layers or found.chosen
    else:
        weight = Swap(**dict(job.weight)) if isinstance(job.weight, SwapConfig) else job.weight
    merge_adapters(
        task=inputs["task"],
        target_reference=inputs["target_reference"],
        source_reference=inputs.get("source_reference"),
        weight=weight,
        output=output,
        **job.model_dump(include=_SPEC),
    )


def tune(job: TuneJob, inputs: Inputs, output: Path, workdir: Path) -> None:
    from functools import partial

    from adamergex.merging.prepare import MergeSpec

    search: Callable[..., object]
    if job.granularity is not None:
        from adamergex.search.entropy import minimise

        search = partial(minimise, granularity=job.granularity)
    else:
        from adamergex.search.tuning import tune as scored

        search = partial(scored, answers=job.answers)
    search(
        task=inputs["task"],
        target_reference=inputs["target_reference"],
        source_reference=inputs.get("source_reference"),
        job=job.evaluate,
        grid=job.grid,
        output=output,
        spec=MergeSpec(**dict(job.merge.model_dump(include=_SPEC))),
    )


def choose(job: ChooseJob, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.search.weight_choice import choose as choose_weight

    searches = {language: inputs[language] for language in job.languages}
    choose_weight(searches, one_standard_error=job.one_standard_error, output=output)


def evaluate(job: EvaluateJob, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.evaluation import evaluate as evaluate_adapter

    stack = [inputs[name] for name in ("base_adapter", "adapter") if name in inputs]
    evaluate_adapter(job, stack or None, output)


ACTIONS: dict[str, Action] = {
    "train": train, "import": import_given, "merge": merge, "tune": tune, "choose": choose, "evaluate": evaluate,
}  # fmt: skip


def backbone_group(step: Step) -> Hashable:
    """Steps of one group can use one loaded backbone: the same base under the same head."""
    job = step.job.evaluate if isinstance(step.job, TuneJob) else step.job
    if not isinstance(job, TrainJob | EvaluateJob):
        return None, None, (), False
    labels = getattr(job.task, "labels", ())
    return job.base, job.task.kind, labels, isinstance(job, EvaluateJob) and not step.inputs
