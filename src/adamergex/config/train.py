"""The YAML of ``train``: one adapter for a language or a task, or a masked-LM head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from adamergex.config.methods import LANGUAGE, LanguageOptimisation
from adamergex.config.problems import invalid_settings, typed
from adamergex.config.references import OBJECTIVE
from adamergex.config.task import (
    BUILT_IN,
    BuiltinTask,
    TaskConfig,
    Where,
    custom_forms,
    known_fields,
    measurable,
    task_kind_name,
)
from adamergex.config.transfer import read_yaml
from adamergex.files.strict import Count, Name, PathText, Seed, Settings, Share, distinct, hint, shown
from adamergex.jobs.settings import (
    Bottleneck,
    Objective,
    Optimisation,
    Structure,
    decaying,
    unprobed,
    unstackable,
)
from adamergex.structures import find


def _one(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class _TrainConfig(Settings):
    """Common settings of both kinds of ``train`` file for adapters."""

    base: PathText = Field(description="a name listed by ``adamergex backbones``, a folder or a hub id")
    language: Name = Field(description="language code of the rows")
    structure: Structure
    seed: Seed = 0
    output: PathText = Field(description="folder of the adapter; must not exist yet")
    folder: str = Field(".", description="folder of relative paths; set to the settings file's folder")


def _bottleneck(**defaults: object) -> BeforeValidator:
    """Default to a bottleneck adapter as the structure of a ``train`` file."""

    def complete(value: object) -> object:
        if not isinstance(value, dict) or value.get("kind", "bottleneck") != "bottleneck":
            return value
        return {"kind": "bottleneck", **defaults, **value}

    return BeforeValidator(complete)


class LanguageTraining(_TrainConfig):
    """A ``train`` file of kind language: an adapter trained on raw text of a language.

    Masked LM on encoders, causal LM on decoders, span corruption or continuation on encoder-decoders. The default is
    MAD-X's language adapter."""

    kind: Literal["language"]
    text: Where = Field(description="raw text")
    structure: Annotated[Structure, _bottleneck(reduction=2.0, invertible=True)] = Bottleneck(
        reduction=2.0, invertible=True
    )
    segment: Count = Field(default=256, description="tokens per segment")
    segments: Count | None = Field(default=None, description="number of segments; default: all of the text")
    mask_rate: Share = 0.15
    objective: Objective = Field(default="auto", description=OBJECTIVE)
    optimisation: LanguageOptimisation = LANGUAGE

    @model_validator(mode="before")
    @classmethod
    def _as_the_structure_has_it(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        structure = values.get("structure")
        kind = find(str(structure.get("kind"))) if isinstance(structure, dict) else None
        defaults = kind.optimisation if kind else None
        settings = values.get("optimisation", {})
        if not defaults or not isinstance(settings, dict):
            return values
        return {**values, "optimisation": {**defaults, **settings}}


class TaskTraining(_TrainConfig):
    """A ``train`` file of kind task: an adapter trained on a labelled task, alone or on frozen adapters."""

    kind: Literal["task"]
    task: TaskConfig = Field(description="as in ``transfer``; your own rows need only ``train``")
    base_adapters: Annotated[tuple[PathText, ...], BeforeValidator(_one)] = Field(
        default=(), description="folders of the frozen adapters below this one, lowest first"
    )
    structure: Annotated[Structure, _bottleneck()] = Bottleneck()

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, values: object) -> object:
        """Accept ``below``, the former name of ``base_adapters``."""
        if isinstance(values, dict) and "below" in values:
            if "base_adapters" in values:
                raise ValueError("below is the former name of base_adapters; leave one of them out")
            return {("base_adapters" if name == "below" else name): value for name, value in values.items()}
        return values

    @model_validator(mode="before")
    @classmethod
    def _trained_only(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(task := values.get("task"), dict) and "train" in task:
            return {**values, "task": {"test": task["train"], **task}}
        return values


HEAD = Optimisation(steps=500, learning_rate=1e-3, warmup=0.05, max_grad_norm=1.0)


def _like_a_head(value: object) -> object:
    return {**HEAD.model_dump(), **value} if isinstance(value, dict) else value


class Recovery(Settings):
    """A low-rank change of the body, trained with the head and folded into the weights.

    ``hold``: loss coefficient of the distance between a text's mean vectors before and after, relative to the variance
    of these vectors; with 0 the encoder may forget anything that masked LM does not need."""

    rank: Count = Field(default=16, description="rank of the low-rank change")
    alpha: PositiveFloat = Field(default=32.0, description="the change is scaled by alpha / rank")
    hold: NonNegativeFloat = Field(default=1.0, description="weight of the distance between old and new mean vectors")


class MaskedLmHeadTraining(Settings):
    """A ``train`` file of kind masked-lm-head: creates a base directory from an encoder without a masked-LM head.

    The body is frozen unless ``recovery`` is given. All languages have equal weight, independent of their text size."""

    kind: Literal["masked-lm-head"]
    base: PathText = Field(description="a name listed by ``adamergex backbones``, a folder or a hub id")
    languages: Annotated[tuple[Name, ...], Field(min_length=1), BeforeValidator(_one), AfterValidator(distinct)] = (
        Field(description="languages of the text")
    )
    text: Where = Field(description="raw text")
    segment: Count = Field(default=64, description="tokens per segment")
    segments: Count | None = Field(
        default=None, description="number of segments per language; default: all of its text"
    )
    mask_rate: Share = 0.15
    recovery: Recovery | None = Field(default=None, description="also change the body of the base")
    optimisation: Annotated[Optimisation, BeforeValidator(_like_a_head)] = HEAD
    seed: Seed = 0
    output: PathText = Field(description="folder of the new base; must not exist yet")
    folder: PathText = Field(".", description="folder of relative paths; set to the settings file's folder")


Training = LanguageTraining | TaskTraining | MaskedLmHeadTraining
TRAININGS: dict[str, type[Training]] = {
    "language": LanguageTraining,
    "task": TaskTraining,
    "masked-lm-head": MaskedLmHeadTraining,
}


def parse_training(settings: object, where: str = "settings") -> Training:
    """Validated settings of ``train``.

    Raises:
        ConfigError: one error that lists every problem.
    """
    settings = settings if isinstance(settings, Mapping) else {}
    kind = settings.get("kind")
    if not isinstance(kind, str) or kind not in TRAININGS:
        problem = "kind: missing" if kind is None else f"kind: {shown(kind)} is not one of {', '.join(TRAININGS)}"
        raise invalid_settings(where, [problem + (hint(kind, TRAININGS) or f"; one of {', '.join(TRAININGS)}")])
    filled_in, of_task = None, set[str]()
    if kind == "task":
        task = settings.get("task")
        filled_in = None if isinstance(task, dict) and "test" in task else "task.test"
        of_task = {name for tag in (*custom_forms(), BUILT_IN) for name in known_fields(tag).model_fields}
    config = typed(TRAININGS[kind], settings, filled_in, of_task)
    if isinstance(config, list):
        raise invalid_settings(where, config)
    if problems := list(_contradictions(config)):
        raise invalid_settings(where, problems)
    return config


def _contradictions(config: Training) -> Iterator[str]:
    if isinstance(config, MaskedLmHeadTraining):
        if problem := unprobed("masked LM", config.optimisation):
            yield problem
        if config.recovery is not None and (config.optimisation.accumulation > 1 or config.optimisation.batch_tokens):
            yield "optimisation: recovery.hold compares whole batches; leave accumulation and batch_tokens out"
        return
    if isinstance(config, TaskTraining):
        task = config.task.placed(Path(config.folder))
        problems = list(task.problems()) if isinstance(task, BuiltinTask) else []
        yield from problems or measurable(task)
    base_adapters = config.base_adapters if isinstance(config, TaskTraining) else ()
    optimisation = config.task.optimisation if isinstance(config, TaskTraining) else config.optimisation
    if problem := unstackable(config.structure, base_adapters) or decaying(config.structure, optimisation):
        yield problem
    kind = task_kind_name(config.task.placed(Path(config.folder))) if isinstance(config, TaskTraining) else "text"
    if kind and (problem := unprobed(kind, optimisation)):
        yield f"task.{problem}" if isinstance(config, TaskTraining) else problem


def load_training(path: Path) -> Training:
    """The settings of a ``train`` file; relative paths in it are relative to its folder. Raises: ConfigError."""
    return parse_training(read_yaml(path), str(path))
