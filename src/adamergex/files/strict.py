"""The rules of all settings: no unknown names, no type conversion, bounded numbers, plain names.

YAML, JSON and the records in lineages and stores all use them, so that ``steps: true``, ``r: 4.9``, ``weight: .nan``
and ``targets: [../sw]`` are refused in one place with the same messages.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from adamergex.files.names import PLAIN, is_path_part


class Settings(BaseModel):
    """Base of all settings: unknown names are refused, types are not converted, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, given: Any) -> Any:
        # YAML and JSON have only lists, which a strict tuple does not accept.
        if not isinstance(given, dict):
            return given
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def plain(name: str) -> str:
    """Check a name that becomes a part of a path. Raises: ValueError."""
    if not is_path_part(name):
        raise ValueError(f"{shown(name)} cannot be part of a file name; expected {PLAIN}")
    return name


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check that no value is listed twice. Raises: ValueError."""
    twice = next((value for number, value in enumerate(values) if value in values[:number]), None)
    if twice is not None:
        raise ValueError(f"{shown(twice)} is listed twice")
    return values


def named(values: tuple[str, ...]) -> tuple[str, ...]:
    """Check that no name is blank or listed twice. Raises: ValueError."""
    if any(not value.strip() for value in values):
        raise ValueError("a name is blank")
    return distinct(values)


def path_text(text: str) -> str:
    """Check the text of a path or model name: not blank, no controls, at most 4,096 characters. Raises: ValueError."""
    if not text.strip() or len(text) > 4096 or any(ord(character) < 32 for character in text):
        raise ValueError(f"{shown(text)} cannot be a path; expected 1 to 4,096 characters without control characters")
    return text


def shown(value: object, limit: int = 120) -> str:
    """A value as text for messages, cut to a readable length."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python converts
        return "a number of too many digits"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def hint(name: object, known: Iterable[str]) -> str:
    """ "; did you mean …?" if one of the names is similar."""
    similar = nearest(name, known)
    return f"; did you mean '{similar}'?" if similar else ""


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar name, if any; long texts are not misspelt names, and would take long to compare."""
    text = str(name) if isinstance(name, str | int) and not isinstance(name, bool) else ""
    similar = difflib.get_close_matches(text, known, 1, cutoff) if 0 < len(text) <= 100 else []
    return similar[0] if similar else None


Name: TypeAlias = Annotated[str, AfterValidator(plain)]
"""A language code, or another name that becomes a part of a path."""
Names: TypeAlias = Annotated[tuple[str, ...], AfterValidator(named)]
"""Labels, entity types, columns: not blank, no duplicates."""
PathText: TypeAlias = Annotated[str, AfterValidator(path_text)]
"""A file, a folder, a hub id or a title."""
Count: TypeAlias = Annotated[int, Field(gt=0, le=10**9)]
"""Steps, rows, tokens, segments."""
Size: TypeAlias = Annotated[int, Field(gt=0, le=2**16)]
"""Ranks, batches, virtual tokens: sizes that are allocated at once."""
Layer: TypeAlias = Annotated[int, Field(ge=0, lt=1000)]
"""A layer number, from 0, or a number of layers."""
Layers: TypeAlias = Annotated[tuple[Layer, ...], AfterValidator(distinct)]
"""Layer numbers without duplicates."""
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**32)]
"""Seeds in the range of both numpy and torch, so that two seeds give two random streams."""
Positive: TypeAlias = Annotated[float, Field(gt=0, le=1e6)]
"""Scales, epochs, factors."""
Reduction: TypeAlias = Annotated[float, Field(ge=0.01, le=1e6)]
"""Hidden width / bottleneck width."""
Rate: TypeAlias = Annotated[float, Field(gt=0, le=10)]
"""Learning rates."""
Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
"""A share between 0 and 1, exclusive."""
Penalty: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]
"""Weights of penalties and of members of a sum."""
Weight: TypeAlias = Annotated[float, Field(ge=-1000, le=1000)]
"""λ; the papers use [0, 1] or slightly more."""
Entries: TypeAlias = Annotated[int, Field(gt=0, le=10**12)] | Share
"""A number of a model's entries, or a share of them."""
