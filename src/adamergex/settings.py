"""What one job is: validated, frozen, JSON in and out. Steps of the graph carry these; so do lineages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Settings(BaseModel):
    """Base of all settings: unknown names are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Structure(Settings):
    """The adapter: its kind and shape. ``modules``: "paper" (METHOD: all attention and feed-forward projections for
    LoRA; key, value and feed-forward down-projection for (IA)³), a regular expression, or a list of name endings."""

    kind: Literal["lora", "ia3"] = "lora"
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    modules: str | tuple[str, ...] = "paper"


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
    """Train one adapter on one task in one language."""

    base: str
    structure: Structure
    task: Task
    language: str
    rows: Rows
    optimisation: Optimisation
    seed: int = 0


class EvaluateJob(Settings):
    """Predict and score one labelled set in one language. ``vanilla`` prompts the bare base."""

    base: str
    task: Classification
    language: str
    rows: Rows
    batch_tokens: PositiveInt = 8192
