"""The YAML of ``train``: one adapter, for a language or for a task, settings to validated settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from adamergex.config import read_yaml, refused, typed
from adamergex.method_config import LANGUAGE, OBJECTIVE, LanguageOptimisation
from adamergex.settings import OPTIMISED, Objective, Settings, Structure, decaying, unstackable
from adamergex.task_config import BUILT_IN, OWN, BuiltIn, TaskConfig, Where, known_fields


def _one(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class _TrainConfig(Settings):
    """What both kinds of ``train`` file say."""

    base: str = Field(description="a name (see ``adamergex backbones``), a folder or a hub id")
    language: str = Field(description="code of the text's language")
    structure: Structure
    seed: int = 0
    output: str = Field(description="folder of the adapter; must not be there yet")
    folder: str = Field(".", description="what relative paths are relative to; set to the config file's folder")


def _bottleneck(**defaults: Any) -> BeforeValidator:
    """The structure of a ``train`` file is a bottleneck adapter unless it says otherwise."""

    def complete(value: Any) -> Any:
        if not isinstance(value, dict) or value.get("kind", "bottleneck") != "bottleneck":
            return value
        return {"kind": "bottleneck", **defaults, **value}

    return BeforeValidator(complete)


class LanguageTraining(_TrainConfig):
    """A ``train`` file of kind language: an adapter that learns to model a language from raw text.

    Masked LM on encoders, causal LM on decoders, span corruption or continuation on encoder-decoders. The default is
    MAD-X's language adapter."""

    kind: Literal["language"]
    text: Where
    structure: Annotated[Structure, _bottleneck(reduction=2.0, invertible=True)] = Structure(
        kind="bottleneck", reduction=2.0, invertible=True
    )
    segment: PositiveInt = 256
    segments: PositiveInt | None = Field(default=None, description="default: all that the text has")
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    objective: Objective = Field(default="auto", description=OBJECTIVE)
    optimisation: LanguageOptimisation = LANGUAGE

    @model_validator(mode="before")
    @classmethod
    def _as_the_structure_has_it(cls, values: Any) -> Any:
        structure = values.get("structure") if isinstance(values, dict) else None
        own = OPTIMISED.get(str(structure.get("kind"))) if isinstance(structure, dict) else None
        given = values.get("optimisation", {}) if own else None
        return {**values, "optimisation": {**own, **given}} if own and isinstance(given, dict) else values


class TaskTraining(_TrainConfig):
    """A ``train`` file of kind task: an adapter that learns a labelled task, alone or on frozen adapters."""

    kind: Literal["task"]
    task: TaskConfig = Field(description="as in ``transfer``; rows of one's own need only ``train``")
    below: Annotated[tuple[str, ...], BeforeValidator(_one)] = Field(
        default=(), description="folder of the frozen language adapter; of several, the lowest first"
    )
    structure: Annotated[Structure, _bottleneck()] = Structure(kind="bottleneck")

    @model_validator(mode="before")
    @classmethod
    def _trained_only(cls, values: Any) -> Any:
        task = values.get("task") if isinstance(values, dict) else None
        if isinstance(task, dict) and "train" in task:
            return {**values, "task": {"test": task["train"], **task}}
        return values


TRAININGS: dict[str, type[LanguageTraining | TaskTraining]] = {"language": LanguageTraining, "task": TaskTraining}


def parse_training(settings: Any, where: str = "settings") -> LanguageTraining | TaskTraining:
    """Validated settings of ``train``.

    Raises:
        ConfigError: one error that lists every problem.
    """
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in TRAININGS:
        near = difflib.get_close_matches(str(kind), TRAININGS, 1)
        found = "kind: missing" if kind is None else f"kind: {kind!r} is none of {', '.join(TRAININGS)}"
        raise refused(where, [found + (f"; did you mean '{near[0]}'?" if near else "; language or task")])
    config = typed(TRAININGS[kind], settings)
    if isinstance(config, list):
        raise refused(where, list(_said(kind, settings, config)))
    if problems := list(_contradictions(config)):
        raise refused(where, problems)
    return config


def _contradictions(config: LanguageTraining | TaskTraining) -> Iterator[str]:
    if isinstance(config, TaskTraining) and isinstance(config.task, BuiltIn):
        yield from config.task.placed(Path(config.folder)).problems()
    below = config.below if isinstance(config, TaskTraining) else ()
    optimisation = config.task.optimisation if isinstance(config, TaskTraining) else config.optimisation
    if problem := unstackable(config.structure, below) or decaying(config.structure, optimisation):
        yield problem


def _said(kind: str, settings: dict[str, Any], problems: list[str]) -> Iterator[str]:
    """The problems as the user made them: nothing on the test rows that ``TaskTraining`` filled in, and what stands
    beside ``task`` but belongs into it is told so."""
    task = settings.get("task")
    filled_in = kind == "task" and not (isinstance(task, dict) and "test" in task)
    inside = {name for tag in (*OWN, BUILT_IN) for name in known_fields(tag).model_fields} if kind == "task" else set()
    for problem in problems:
        place = problem.partition(":")[0]
        if filled_in and (place == "task.test" or place.startswith("task.test.")):
            continue
        misplaced = place in inside - TaskTraining.model_fields.keys() and ": no such setting" in problem
        yield f"{place}: belongs under 'task'" if misplaced else problem


def load_training(path: Path) -> LanguageTraining | TaskTraining:
    """The settings of a ``train`` file; relative paths in it are relative to its folder. Raises: ConfigError."""
    return parse_training(read_yaml(path), str(path))
