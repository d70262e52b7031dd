"""A progress line on standard error with the remaining time."""

from __future__ import annotations

import sys
import time

from transformers import TrainerCallback, TrainerState

from adamergex.jobs.settings import LabelledTask, TrainJob

Logs = dict[str, float] | None
_PAUSE = 15.0  # seconds between lines where standard error is not a terminal


class Progress(TrainerCallback):
    """``classification en: 120/600, loss 0.412, 0:48 left``: one updated line, or a line every 15 s in a log file."""

    def __init__(self, job: TrainJob) -> None:
        name = job.task.name if isinstance(job.task, LabelledTask) else "reference"
        self.title = f"{name} {job.language}"
        self.began = self.printed = time.monotonic()
        self.first = 0

    def on_train_begin(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        self.began, self.first = time.monotonic(), state.global_step

    def on_log(self, args: object, state: TrainerState, control: object, logs: Logs = None, **kwargs: object) -> None:
        if not logs or "loss" not in logs:
            return
        now, in_place = time.monotonic(), sys.stderr.isatty()
        if not in_place and now - self.printed < _PAUSE and state.global_step < state.max_steps:
            return
        self.printed = now
        done = max(state.global_step - self.first, 1)
        left = (now - self.began) / done * (state.max_steps - state.global_step)
        text = f"{self.title}: {state.global_step}/{state.max_steps}, loss {logs['loss']:.3f}, {clock(left)} left"
        line = f"\r{text}  " if in_place else text  # two spaces cover the rest of a longer line
        print(line, end="" if in_place and state.global_step < state.max_steps else "\n", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
