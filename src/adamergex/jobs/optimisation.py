"""Settings of a training: length, rates, start of the head, precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, model_serializer, model_validator

from adamergex.files.strict import Count, Positive, Rate, Settings, Size
from adamergex.structures import kind_named
from adamergex.structures.settings import Sparse, Structure

HeadStart = Literal["random", "probe"]
Precision = Literal["auto", "float32", "bfloat16"]
Attention = Literal["auto", "eager", "sdpa"]


class Optimisation(Settings):
    """Optimisation settings. ``steps`` overrides ``epochs``."""

    epochs: Positive = Field(default=3.0, description="passes over the training rows")
    steps: Count | None = Field(default=None, description="number of steps, instead of epochs")
    learning_rate: Rate = Field(default=2e-4, description="default for (IA)³: 5e-4")
    batch_size: Size = Field(default=16, description="rows per step, for any number of processes")
    accumulation: Count = Field(
        default=1, description="parts a step's batch is computed in, one after the other: same result, less memory"
    )
    batch_tokens: Count | None = Field(
        default=None, description="instead of accumulation: parts of at most this many tokens, padding included"
    )
    checkpointing: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="recompute activations in the backward pass: less memory, a third more time; auto: on CUDA",
    )
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05, description="share of the steps; default for (IA)³: 0.03"
    )
    max_grad_norm: Positive = Field(default=0.3, description="gradients are clipped to this norm")
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    checkpoint_every: Count = Field(default=500, description="steps between checkpoints")
    head_start: HeadStart = Field(
        default="random",
        description="start of a new classification head on an encoder: random, or (probe) a logistic regression of the "
        "training labels on the features before training (2202.10054)",
    )
    probe_c: Positive = Field(
        default=0.01, description="C of the probe, as in scikit-learn: min C·Σ loss + ½‖w‖² on standardised features"
    )
    precision: Precision = Field(
        default="auto",
        description="of the computation; trained tensors stay float32. auto: bfloat16 on CUDA, else float32",
    )
    attention: Attention = Field(
        default="auto", description="attention implementation in training; auto: the model's default, usually sdpa"
    )

    @model_serializer(mode="wrap")
    def _without_unused(self, write: Callable[[Optimisation], dict[str, object]]) -> dict[str, object]:
        # Omitted if unused, so that earlier trainings keep their keys.
        unused: dict[str, object] = {"precision": "auto", "attention": "auto", "checkpointing": "auto"}
        unused |= {"accumulation": 1}
        unused |= {"head_start": "random", "probe_c": self.probe_c} if self.head_start == "random" else {}
        return {name: value for name, value in write(self).items() if unused.get(name) != value}

    @model_validator(mode="after")
    def _used(self) -> Optimisation:
        if "probe_c" in self.model_fields_set and self.head_start == "random":
            raise ValueError("probe_c is for head_start: probe")
        if self.batch_tokens is not None and self.accumulation > 1:
            raise ValueError("accumulation: batch_tokens says how a batch is divided; leave one of them out")
        return self

    def of(self, structure: Structure) -> Optimisation:
        """The settings with the structure's defaults for omitted fields."""
        defaults = kind_named(structure.kind).optimisation
        return self.model_copy(update={name: defaults[name] for name in defaults.keys() - self.model_fields_set})


def first_phase(structure: Structure, optimisation: Optimisation) -> Optimisation:
    """Settings of the first phase of sparse fine-tuning, which trains all weights before selecting some."""
    if not isinstance(structure, Sparse) or (structure.first_steps is None and structure.first_epochs is None):
        return optimisation
    epochs = structure.first_epochs or optimisation.epochs
    return optimisation.model_copy(update={"steps": structure.first_steps, "epochs": epochs})


def decaying(structure: Structure, optimisation: Optimisation) -> str | None:
    """A problem of weight decay with a structure, or None."""
    if optimisation.weight_decay and not kind_named(structure.kind).weight_decay:
        return "optimisation.weight_decay: would change weights that sparse fine-tuning must not change; set it to 0"
    divided = "accumulation" if optimisation.accumulation > 1 else "batch_tokens" if optimisation.batch_tokens else None
    if divided and isinstance(structure, Sparse) and structure.l1:
        return (
            f"optimisation.{divided}: the penalty l1 would count once per part; set structure.l1 to 0, or leave it out"
        )
    if optimisation.checkpointing == "on" and kind_named(structure.kind).whole:
        return "optimisation.checkpointing: a layer that is computed again does not see a prefix; set it to off"
    return None
