"""What all settings obey: no unknown names, types meant as written, bounded numbers, plain names.

YAML, JSON and the records in lineages and stores all pass through here, so that ``steps: true``, ``r: 4.9``,
``weight: .nan`` and ``targets: [../sw]`` are refused in one place and by one voice.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from adamergex.files.names import PLAIN, is_path_part


class Settings(BaseModel):
    """Base of all settings: unknown names are refused, types are meant as written, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, given: Any) -> Any:
        # YAML and JSON have lists only, which a strict tuple does not take.
        if not isinstance(given, dict):
            return given
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def plain(name: str) -> str:
    """A name that may become a part of a path. Raises: ValueError."""
    if not is_path_part(name):
        raise ValueError(f"{shown(name)} cannot be part of a file name; expected {PLAIN}")
    return name


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values of which none is listed twice. Raises: ValueError."""
    twice = next((value for number, value in enumerate(values) if value in values[:number]), None)
    if twice is not None:
        raise ValueError(f"{shown(twice)} is listed twice")
    return values


def named(values: tuple[str, ...]) -> tuple[str, ...]:
    """Names of which none is blank or listed twice. Raises: ValueError."""
    if any(not value.strip() for value in values):
        raise ValueError("a name is blank")
    return distinct(values)


def path_text(text: str) -> str:
    """The text of a path or model name: not blank, no control characters, at most 4,096 long. Raises: ValueError."""
    if not text.strip() or len(text) > 4096 or any(ord(character) < 32 for character in text):
        raise ValueError(f"{shown(text)} cannot be a path; expected 1 to 4,096 characters, none of them a control one")
    return text


def shown(value: object, limit: int = 120) -> str:
    """A value as messages show it, cut to a readable length."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of too many digits"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def hint(name: object, known: Iterable[str]) -> str:
    """ "; did you mean …?" where one of the names is near."""
    near = nearest(name, known)
    return f"; did you mean '{near}'?" if near else ""


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that is most like ``name``, if one is; long texts are no misspelt names, and would take long."""
    text = str(name) if isinstance(name, str | int) and not isinstance(name, bool) else ""
    near = difflib.get_close_matches(text, known, 1, cutoff) if 0 < len(text) <= 100 else []
    return near[0] if near else None


Name: TypeAlias = Annotated[str, AfterValidator(plain)]
"""A language's code, or another name that becomes a part of a path."""
Names: TypeAlias = Annotated[tuple[str, ...], AfterValidator(named)]
"""Labels, entity types, columns: none blank, none twice."""
PathText: TypeAlias = Annotated[str, AfterValidator(path_text)]
"""A file, a folder, a hub id or a title."""
Count: TypeAlias = Annotated[int, Field(gt=0, le=10**9)]
"""Steps, rows, pieces, segments."""
Size: TypeAlias = Annotated[int, Field(gt=0, le=2**16)]
"""Ranks, batches, virtual tokens: what is allocated at once."""
Layer: TypeAlias = Annotated[int, Field(ge=0, lt=1000)]
"""The number of a layer, from 0, or a number of layers."""
Layers: TypeAlias = Annotated[tuple[Layer, ...], AfterValidator(distinct)]
"""Numbers of layers, each once."""
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy and torch both take as it is: two seeds are two random streams."""
Positive: TypeAlias = Annotated[float, Field(gt=0, le=1e6)]
"""Scales, epochs, factors."""
Reduction: TypeAlias = Annotated[float, Field(ge=0.01, le=1e6)]
"""Hidden width / bottleneck width."""
Rate: TypeAlias = Annotated[float, Field(gt=0, le=10)]
"""Learning rates."""
Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
"""A share that is neither nothing nor all."""
Penalty: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]
"""Weights of penalties and of members of a sum."""
Weight: TypeAlias = Annotated[float, Field(ge=-1000, le=1000)]
"""λ; the methods' papers stay within [0, 1] or a little above."""
Entries: TypeAlias = Annotated[int, Field(gt=0, le=10**12)] | Share
"""How many weights of a model, or which share of them."""
