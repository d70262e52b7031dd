"""What one job is: validated, frozen, JSON in and out. Steps of the graph carry these; so do lineages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_serializer,
    model_validator,
)


class Settings(BaseModel):
    """Base of all settings: unknown names are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Activation = Literal["relu", "gelu", "gelu_new", "silu", "swish", "tanh", "leaky_relu"]

# The settings of each kind of structure; those of LoRA and (IA)³ are _PROJECTIONS.
_OWN = {
    "bottleneck": ("layout", "reduction", "activation", "leave_out", "invertible", "dropout"),
    "prefix": ("virtual_tokens",),
}
_PROJECTIONS = ("rank", "alpha", "dropout", "modules")


class Structure(Settings):
    """The adapter: its kind and shape. A setting of another kind is refused, and kept out of what is stored.

    LoRA and (IA)³: ``modules`` is "paper" (METHOD: all attention and feed-forward projections for LoRA; key, value and
    feed-forward down-projection for (IA)³), a regular expression, or a list of name endings.
    Bottleneck: ``leave_out`` numbers layers from 0, a decoder's after its encoder's."""

    kind: Literal["lora", "ia3", "bottleneck", "prefix"] = "lora"
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="default: 0 for bottleneck adapters")] = 0.05
    modules: str | tuple[str, ...] = "paper"
    virtual_tokens: PositiveInt = Field(default=20, description="prefix: keys and values before those of every layer")
    layout: Literal["pfeiffer", "houlsby"] = Field(
        default="pfeiffer", description="after the feed-forward, or after attention as well"
    )
    reduction: PositiveFloat = Field(default=16.0, description="hidden width / bottleneck width")
    activation: Activation | None = Field(default=None, description="default: relu (pfeiffer), swish (houlsby)")
    leave_out: tuple[NonNegativeInt, ...] = Field(default=(), description="layers without a bottleneck")
    invertible: bool = Field(default=False, description="with a NICE block at the embeddings; in a lowest adapter")

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


class Rows(Settings):
    """Where rows come from: one local file (jsonl, csv, tsv, parquet, txt; ``.gz`` too) or a hub dataset.

    ``columns`` maps our names (text, label) to the file's. ``limit`` keeps the first rows."""

    path: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    columns: dict[str, str] = Field(default_factory=dict)
    limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Rows:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either 'path' (a local file) or 'hub' (a dataset id)")
        return self


class Classification(Settings):
    """One label a text. Encoders: a head. Decoders and encoder-decoders: the prompt, and the label words scored by
    log-likelihood."""

    kind: Literal["classification"] = "classification"
    name: str = "classification"
    labels: tuple[str, ...]
    words: dict[str, str] = Field(default_factory=dict, description="label -> what a decoder says for it")
    prompt: str = "{text}\nTopic:"
    max_length: PositiveInt = 256


class LanguageModeling(Settings):
    """The reference task on unlabelled text: masked LM on encoders, causal LM on decoders; on encoder-decoders
    ``objective``, which by default is span corruption where the tokenizer has sentinels (T5), else continuation.

    The text is cut into ``segments`` segments of ``segment`` pieces of the model's tokenizer."""

    kind: Literal["language-modeling"] = "language-modeling"
    segment: PositiveInt = 512
    segments: PositiveInt | None = None
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    objective: Literal["auto", "span-corruption", "continuation"] = "auto"


Task = Annotated[Classification | LanguageModeling, Field(discriminator="kind")]


class Optimisation(Settings):
    """How long and how fast. ``steps`` overrides ``epochs``."""

    epochs: PositiveFloat = 3.0
    steps: PositiveInt | None = None
    learning_rate: PositiveFloat = 2e-4
    batch_size: PositiveInt = 16
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    max_grad_norm: PositiveFloat = 0.3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    checkpoint_every: PositiveInt = 500


class TrainJob(Settings):
    """Train one adapter on one task in one language.

    ``below``: directories of adapters that stay frozen under it, the lowest first (MAD-X: the language's)."""

    base: str
    structure: Structure
    task: Task
    language: str
    rows: Rows
    optimisation: Optimisation
    seed: int = 0
    below: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _stackable(self) -> TrainJob:
        if problem := unstackable(self.structure, self.below):
            raise ValueError(problem)
        return self


def unstackable(structure: Structure, below: Sequence[str]) -> str | None:
    """What is wrong with training a structure on frozen adapters, if anything is."""
    if below and structure.kind != "bottleneck":
        return f"below: only a bottleneck adapter stands on others; structure.kind is {structure.kind}"
    if below and structure.invertible:
        return "structure.invertible: only the lowest adapter's acts, and 'below' names a lower one"
    return None


class EvaluateJob(Settings):
    """Predict and score one labelled set in one language. ``vanilla`` prompts the bare base."""

    base: str
    task: Classification
    language: str
    rows: Rows
    batch_tokens: PositiveInt = 8192
