"""What a step other than a training or an evaluation is given: merges, searches of λ, and choices among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_serializer

from adamergex.files.strict import Layer, Name, Settings
from adamergex.jobs.settings import EvaluateJob

RuleSettings = dict[str, bool | int | float | str]
"""What a rule's own settings are set to."""


class SwapConfig(Settings):
    """Layers that layer_swapping takes from the target's reference (2410.01335)."""

    bottom: Layer = 1
    top: Layer = 1
    transition: Layer = Field(default=0, description="averaged layers beside the bottom and beside the top")


class MergeJob(Settings):
    """Merge adapters with the λ ``weight``; None: that of a search, which is an input. With a ``density`` it combines
    two by TIES or DARE, whose ``seed`` it is."""

    rule: str
    space: str
    modules: str | None
    rank: int | None
    weight: int | float | SwapConfig | None
    span: str | None = None
    form: str | None = None
    density: float | None = None
    weights: tuple[float, float] | None = None
    seed: int | None = None
    settings: RuleSettings = {}

    @model_serializer(mode="wrap")
    def _without_unused(self, write: Callable[[MergeJob], dict[str, object]]) -> dict[str, object]:
        # Written only where they are used, so that other merges keep the keys that they had before.
        unused = ["span", "form", "density", "seed", "settings", *(["weights"] if self.density is None else [])]
        return {name: value for name, value in write(self).items() if value not in (None, {}) or name not in unused}


class TuneJob(Settings):
    """Search the λ of a merge: by scores, with ``answers`` for a choice from several searches, or (``granularity``) by
    the entropy of predictions."""

    merge: MergeJob
    grid: tuple[float, ...]
    evaluate: EvaluateJob
    answers: bool = False
    granularity: Literal["all", "layer"] | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, write: Callable[[TuneJob], dict[str, object]]) -> dict[str, object]:
        return {name: value for name, value in write(self).items() if value or name not in ("answers", "granularity")}


class ChooseJob(Settings):
    """Choose the λ of several languages' searches."""

    languages: tuple[Name, ...]
    one_standard_error: bool
