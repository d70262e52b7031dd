"""Step kind -> the function that does it. Heavy imports stay inside, so that planning needs no model library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Job = Mapping[str, Any]
Inputs = Mapping[str, Path]


def train(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.settings import TrainJob
    from adamergex.training import train as train_adapter

    train_adapter(TrainJob.model_validate(job), output, workdir=workdir)


def merge(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.merging import merge as merge_adapters

    weight = job["weight"]
    if weight is None:
        weight = json.loads((inputs["weight"] / "tuning.json").read_text(encoding="utf-8"))["chosen"]
    adapters = {role: path for role, path in inputs.items() if role != "weight"}
    choices = {name: job[name] for name in ("rule", "space", "modules", "rank")}
    merge_adapters(**adapters, **choices, weight=weight, output=output)


def tune(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.settings import EvaluateJob
    from adamergex.tuning import tune as tune_weight

    choices = {name: job["merge"][name] for name in ("rule", "space", "modules", "rank")}
    evaluation = EvaluateJob.model_validate(job["evaluate"])
    tune_weight(**inputs, **choices, job=evaluation, grid=job["grid"], output=output)


def evaluate(job: Job, inputs: Inputs, output: Path, workdir: Path) -> None:
    from adamergex.evaluation import evaluate as evaluate_adapter
    from adamergex.settings import EvaluateJob

    evaluate_adapter(EvaluateJob.model_validate(job), inputs.get("adapter"), output)


ACTIONS = {"train": train, "merge": merge, "tune": tune, "evaluate": evaluate}
