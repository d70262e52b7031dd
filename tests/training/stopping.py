"""Trainings that are stopped in the middle."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class StopAfter(TrainerCallback):
    """A crash in the middle of a run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt
