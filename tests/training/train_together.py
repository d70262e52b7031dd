"""What each process of a test's team runs: ``torchrun train_together.py JOBS.json``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from adamergex import processes, training
from adamergex.settings import TrainJob


class StopAfter(TrainerCallback):
    """A crash of all processes in the middle of a run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def main(jobs: Path) -> None:
    torch.set_num_threads(1)
    for wanted in json.loads(jobs.read_text()):
        stop = [StopAfter(wanted["stop"])] if wanted["stop"] else []
        workdir = Path(wanted["workdir"]) if wanted["workdir"] else None
        with contextlib.suppress(KeyboardInterrupt):
            training.train(
                TrainJob.model_validate(wanted["job"]), Path(wanted["output"]), workdir=workdir, callbacks=stop
            )
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
