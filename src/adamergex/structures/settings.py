"""The settings of structures, one class per kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_serializer, model_validator

from adamergex.files.inputs import Json
from adamergex.files.registry import STRUCTURES
from adamergex.files.strict import Count, Entries, Layers, Names, Penalty, Positive, Reduction, Settings, Size
from adamergex.structures import every, find

Activation = Literal["relu", "gelu", "gelu_new", "silu", "swish", "tanh", "leaky_relu"]


class Structure(Settings):
    """The adapter: its kind and shape. ``kind`` chooses one of the classes below; without it this is ``Lora``.

    A setting of another kind is refused."""

    kind: str = Field(description="lora (default), ia3, bottleneck, prefix, full, sparse, or one of another package")

    def __new__(cls, **given: Any) -> Structure:
        return super().__new__(settings_class(given.get("kind", "lora")) if cls is Structure else cls)

    @model_validator(mode="wrap")
    @classmethod
    def _validate_kind(cls, given: Any, check: ModelWrapValidatorHandler[Structure]) -> Structure:
        if not isinstance(given, dict):
            return given if isinstance(given, Structure) else check(given)
        if cls is Structure:
            return settings_class(given.get("kind", "lora")).model_validate(given)
        unknown = given.keys() - cls.model_fields.keys()
        misplaced = sorted(unknown & every_setting()) if unknown else []
        settings = check({name: value for name, value in given.items() if name not in misplaced})
        if misplaced:
            raise ValueError(f"{', '.join(misplaced)}: not a setting of kind '{settings.kind}'")
        return settings

    @model_serializer
    def _serialize_all_fields(self) -> dict[str, object]:
        # A field annotated with Structure would otherwise be serialized with its kind only.
        return {name: getattr(self, name) for name in type(self).model_fields}

    @property
    def context(self) -> int:
        """The number of positions in the model's context that the adapter takes."""
        return 0

    def described(self) -> dict[str, Json]:
        """The structure as a lineage records it."""
        return self.model_dump(mode="json")


class OnProjections(Structure):
    """Settings of structures on projections. ``modules`` is "paper" (the papers' choice), "all-linear", a regular
    expression, or a list of name endings."""

    modules: str | Annotated[Names, Field(min_length=1)] = "paper"


class _OfRank(OnProjections):
    rank: Size = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05


class Lora(_OfRank):
    """LoRA. ``modules``: "paper" (all attention and feed-forward projections), "all-linear", a regular expression, or
    a list of name endings."""

    kind: Literal["lora"] = "lora"


class Ia3(_OfRank):
    """(IA)³. ``modules``: "paper" (key, value and feed-forward down-projection), "all-linear", a regular expression,
    or a list of name endings. The other settings have no effect."""

    kind: Literal["ia3"] = "ia3"

    def described(self) -> dict[str, Json]:
        """The structure as a lineage records it."""
        return {name: value for name, value in super().described().items() if name in ("kind", "modules")}


class Bottleneck(Structure):
    """A bottleneck adapter. ``leave_out`` numbers layers from 0, a decoder's after its encoder's."""

    kind: Literal["bottleneck"] = "bottleneck"
    layout: Literal["pfeiffer", "houlsby"] = Field(
        default="pfeiffer", description="after the feed-forward, or after attention as well"
    )
    reduction: Reduction = Field(default=16.0, description="hidden width / bottleneck width")
    activation: Activation | None = Field(default=None, description="default: relu (pfeiffer), swish (houlsby)")
    leave_out: Layers = Field(default=(), description="layers without a bottleneck")
    invertible: bool = Field(default=False, description="with a NICE block at the embeddings; in a lowest adapter")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Prefix(Structure):
    """A prefix."""

    kind: Literal["prefix"] = "prefix"
    virtual_tokens: Size = Field(default=20, description="keys and values before those of every layer")

    @property
    def context(self) -> int:
        """The number of positions in the model's context that the adapter takes."""
        return self.virtual_tokens


class Full(Structure):
    """No adapter: all weights train."""

    kind: Literal["full"] = "full"


class Sparse(Structure):
    """No adapter: the ``entries`` that move most train (LF-SFT), chosen in a first phase."""

    kind: Literal["sparse"] = "sparse"
    entries: Entries = Field(
        default=0.0511, description="how many weights change, or which share of them (default: LF-SFT's task)"
    )
    l1: Penalty = Field(default=0.0, description="what the mean absolute difference weighs in the loss")
    freeze_norms: bool = Field(default=False, description="layer norms stay as they are")
    first_epochs: Positive | None = Field(
        default=None, description="length of the first phase, which chooses; default: as the second"
    )
    first_steps: Count | None = Field(default=None, description="the same in steps")


def settings_class(name: object) -> type[Structure]:
    """The settings class of a kind. Raises: ValidationError, at ``kind``, for an unknown kind."""
    kind = find(name) if isinstance(name, str) else None
    if kind is not None:
        return kind.settings_class
    *most, last = map(repr, STRUCTURES)
    wrong: Any = {"type": "literal_error", "loc": ("kind",), "input": name}
    raise ValidationError.from_exception_data(
        "Structure", [wrong | {"ctx": {"expected": f"{', '.join(most)} or {last}"}}]
    )


def every_setting() -> set[str]:
    """The names of all kinds' settings."""
    return {name for kind in every() for name in kind.settings_class.model_fields}
