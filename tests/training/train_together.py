"""What each process of a test's team runs: ``torchrun train_together.py JOBS.json``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch
from stopping import StopAfter

from adamergex.jobs.settings import TrainJob
from adamergex.training import processes, train


def main(jobs: Path) -> None:
    torch.set_num_threads(1)
    for wanted in json.loads(jobs.read_text()):
        stop = [StopAfter(wanted["stop"])] if wanted["stop"] else []
        workdir = Path(wanted["workdir"]) if wanted["workdir"] else None
        with contextlib.suppress(KeyboardInterrupt):
            train.train(TrainJob.model_validate(wanted["job"]), Path(wanted["output"]), workdir=workdir, callbacks=stop)
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
