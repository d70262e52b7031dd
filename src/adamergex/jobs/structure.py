"""What an adapter is: its kind and shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from adamergex.jobs.strict import (
    Count,
    Entries,
    Layers,
    Names,
    Penalty,
    Positive,
    Reduction,
    Settings,
    Size,
)

Activation = Literal["relu", "gelu", "gelu_new", "silu", "swish", "tanh", "leaky_relu"]

# The settings of each kind of structure; those of LoRA and (IA)³ are _PROJECTIONS.
_OWN = {
    "bottleneck": ("layout", "reduction", "activation", "leave_out", "invertible", "dropout"),
    "prefix": ("virtual_tokens",),
    "full": (),
    "sparse": ("entries", "l1", "freeze_norms", "first_epochs", "first_steps"),
}
_PROJECTIONS = ("rank", "alpha", "dropout", "modules")


class Structure(Settings):
    """The adapter: its kind and shape. A setting of another kind is refused, and kept out of what is stored.

    LoRA and (IA)³: ``modules`` is "paper" (all attention and feed-forward projections for LoRA; key, value and
    feed-forward down-projection for (IA)³), a regular expression, or a list of name endings.
    Bottleneck: ``leave_out`` numbers layers from 0, a decoder's after its encoder's.
    Full and sparse are no adapters: they train the weights, all of them or the ``entries`` that move most (LF-SFT)."""

    kind: Literal["lora", "ia3", "bottleneck", "prefix", "full", "sparse"] = "lora"
    rank: Size = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="default: 0 for bottleneck adapters")] = 0.05
    modules: str | Annotated[Names, Field(min_length=1)] = "paper"
    virtual_tokens: Size = Field(default=20, description="prefix: keys and values before those of every layer")
    layout: Literal["pfeiffer", "houlsby"] = Field(
        default="pfeiffer", description="after the feed-forward, or after attention as well"
    )
    reduction: Reduction = Field(default=16.0, description="hidden width / bottleneck width")
    activation: Activation | None = Field(default=None, description="default: relu (pfeiffer), swish (houlsby)")
    leave_out: Layers = Field(default=(), description="layers without a bottleneck")
    invertible: bool = Field(default=False, description="with a NICE block at the embeddings; in a lowest adapter")
    entries: Entries = Field(
        default=0.0511, description="sparse: how many weights change, or which share of them (default: LF-SFT's task)"
    )
    l1: Penalty = Field(default=0.0, description="sparse: what the mean absolute difference weighs in the loss")
    freeze_norms: bool = Field(default=False, description="sparse: layer norms stay as they are")
    first_epochs: Positive | None = Field(
        default=None, description="sparse: length of the first phase, which chooses; default: as the second"
    )
    first_steps: Count | None = Field(default=None, description="sparse: the same in steps")

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("kind") != "bottleneck":
            return given
        return {"dropout": 0.0, **given}

    @model_validator(mode="after")
    def _own_settings_only(self) -> Structure:
        strange = sorted(self.model_fields_set - {"kind", *_OWN.get(self.kind, _PROJECTIONS)})
        if strange:
            raise ValueError(f"{', '.join(strange)}: not a setting of kind '{self.kind}'")
        return self

    @model_serializer(mode="wrap")
    def _own_settings(self, write: Callable[[Structure], dict[str, Any]]) -> dict[str, Any]:
        own = ("kind", *_OWN.get(self.kind, _PROJECTIONS))
        return {name: value for name, value in write(self).items() if name in own}
