"""Problems of settings as sentences."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adamergex.config.references import REFERENCES, TextReference
from adamergex.config.task import known_fields
from adamergex.errors import ConfigError
from adamergex.files.strict import hint, shown
from adamergex.structures.settings import Structure, every_setting

Model = TypeVar("Model", bound=BaseModel)


def typed(
    model: type[Model], settings: object, filled_in: str | None = None, of_task: Collection[str] = ()
) -> Model | list[str]:
    """Validated settings, or a sentence for each problem, without those at ``filled_in``, a place that the user did not
    write. ``of_task``: settings that belong under 'task', if they are written next to it."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        kept = [item for item in error.errors() if filled_in is None or not _inside(place_of(item["loc"]), filled_in)]
        return _sentences(kept, model, of_task)


def _inside(place: str, outer: str) -> bool:
    return place == outer or place.startswith(f"{outer}.")


SHOWN_PROBLEMS = 40
"""Maximum number of problems in one message."""


def invalid_settings(where: str, problems: list[str]) -> ConfigError:
    """One error for all problems of a settings file."""
    several = list(dict.fromkeys(problems))
    count = "1 problem" if len(several) == 1 else f"{len(several):,} problems"
    lines = [f"  - {line}" for line in several[:SHOWN_PROBLEMS]]
    lines += [f"  and {len(several) - SHOWN_PROBLEMS:,} more"] if len(several) > SHOWN_PROBLEMS else []
    return ConfigError(f"{count} in the settings:\n" + "\n".join(lines), where=where)


def _sentences(problems: Sequence[ErrorDetails], model: type[BaseModel], of_task: Collection[str]) -> list[str]:
    """One sentence per place; pydantic reports a union as one problem per member."""
    locations = [problem["loc"] for problem in problems]
    sentences: dict[str, str] = {}
    for problem in problems:
        here = problem["loc"]
        if problem["type"] == "too_short" and any(
            len(inner) > len(here) and inner[: len(here)] == here for inner in locations
        ):
            continue  # pydantic reports a list with invalid items as too short
        place, sentence = place_of(here), _sentence(problem, model)
        if problem["type"] == "extra_forbidden" and place in of_task:
            sentence = f"{place}: belongs under 'task'"
        if place and place in sentences:
            sentences[place] += f"; or: {sentence.removeprefix(f'{place}: ')}"
        else:
            sentences[place or sentence] = sentence
    return list(sentences.values())


def _sentence(problem: ErrorDetails, model: type[BaseModel]) -> str:
    place, kind, context = place_of(problem["loc"]), problem["type"], problem.get("ctx", {})
    if kind == "union_tag_invalid":
        kinds = context["expected_tags"]
        options = kinds.replace("'", "").split(", ")
        return f"{place}.kind: {shown(context['tag'])} is not one of {kinds}{hint(context['tag'], options)}"
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{place}: no such setting{hint(problem['loc'][-1], _names_at(model, problem['loc'][:-1]))}"
    if kind == "missing":
        return f"{place}: missing"
    if kind == "literal_error":
        expected = context["expected"]
        options = [option.strip("' ") for option in expected.replace(" or ", ", ").split(", ")]
        return f"{place}: {shown(problem['input'])} is not one of {expected}{hint(problem['input'], options)}"
    if kind == "value_error":  # our own sentence, which includes the value
        return f"{place}: {context['error']}" if place else str(context["error"])
    return f"{place}: {problem['msg']} (found {shown(problem['input'])})"


def place_of(place: tuple[object, ...]) -> str:
    """A place in the settings as the user wrote it, without pydantic's names of union members."""
    parts = [str(part) for part in _without_forms(place) if not _MEMBER.match(str(part))]
    return ".".join(part if len(part) <= 60 else f"{part[:60]}…" for part in parts)


_MEMBER = re.compile(r"(?:literal|constrained-|function-|tuple\[|\[key\]|str$|int$|float$)")


def _without_forms(place: tuple[object, ...]) -> tuple[object, ...]:
    """A place without the form of a task or reference (see ``config.task.tag_of``), which pydantic inserts."""
    if place[:1] == ("reference",):
        return place[:1] + _without_forms(place[2:])
    return place[:1] + place[2:] if place[:1] == ("task",) else place


def _names_at(model: type[BaseModel], place: tuple[object, ...]) -> list[str]:
    """The names of the settings at a place, from the models."""
    if place[:1] == ("reference",) and len(place) > 1:
        model, place = REFERENCES.get(str(place[1]), TextReference), place[2:]
    if place[:1] == ("task",) and len(place) > 1:
        model, place = known_fields(str(place[1])), place[2:]
    for part in place:
        if not isinstance(part, str) or part not in model.model_fields:
            return list(model.model_fields)
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        nested = [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]
        if not nested:
            return list(model.model_fields)
        model = nested[0]
    return sorted(every_setting()) if model is Structure else list(model.model_fields)
