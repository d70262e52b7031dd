"""Settings of ``transfer`` and ``train``: YAML -> validated, all problems at once, with the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from adamergex.errors import ConfigError
from adamergex.settings import Activation, Optimisation, Rows, Settings, Structure, decaying
from adamergex.task_config import BuiltIn, Own, TaskConfig, Where, known_fields

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def _with_zero(grid: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted({0.0, *grid}))


LANGUAGE = Optimisation(steps=50_000, learning_rate=1e-4, batch_size=64, schedule="linear", warmup=0, max_grad_norm=1.0)


def _like_a_language(value: Any) -> Any:
    return {**LANGUAGE.model_dump(), **value} if isinstance(value, dict) else value


LanguageOptimisation = Annotated[Optimisation, BeforeValidator(_like_a_language)]
"""``Optimisation`` with MAD-X's defaults: 50,000 steps (the paper's number for little text; 250,000 for much) of 64
segments at 1e-4, falling linearly, gradients cut at norm 1."""


class ReferenceConfig(Settings):
    """The reference task on unlabelled text, the same for the source and every target."""

    kind: Literal["language-modeling"] = "language-modeling"
    text: Where
    segment: PositiveInt = 512
    segments: PositiveInt | None = Field(default=None, description="default: what the shortest text has")
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    objective: Literal["auto", "span-corruption", "continuation"] = Field(
        default="auto", description="encoder-decoders only; auto: span corruption where the tokenizer has sentinels"
    )
    optimisation: Optimisation = Optimisation()


class MergeConfig(Settings):
    """How the three adapters become one. ``weight: tuned`` searches ``grid`` on the proxy language's validation set."""

    space: Literal["factors", "delta"] = Field(default="factors", description="LoRA: merge A and B, or ΔW")
    modules: str | None = Field(default=None, description="attention-qv (for LoRA), all, or a regular expression")
    rank: PositiveInt | None = Field(default=None, description="truncate delta merges to this rank")
    weight: Literal["tuned"] | float = "tuned"
    grid: Annotated[tuple[float, ...], AfterValidator(_with_zero)] = GRID


class LanguageAdapters(Settings):
    """MAD-X's language adapters: trained on ``reference.text``, once a language for all tasks and methods."""

    reduction: PositiveFloat = 2.0
    invertible: bool = Field(default=True, description="with a NICE block at the embeddings")
    segment: PositiveInt = 256
    segments: PositiveInt | None = Field(default=None, description="default: all that the language has")
    optimisation: LanguageOptimisation = LANGUAGE


class TaskAdapters(Settings):
    """MAD-X's task adapter, which stands on the source's language adapter."""

    reduction: PositiveFloat = 16.0
    optimisation: Optimisation | None = Field(default=None, description="default: task.optimisation")


LONG = Optimisation(steps=100_000, learning_rate=5e-5, batch_size=8, schedule="linear", warmup=0, max_grad_norm=1.0)
NER = LONG.model_copy(update={"steps": None, "epochs": 10.0})


class FullLanguage(Settings):
    """MLM-SRC and MLM-TRG: all weights trained on ``reference.text`` before the task."""

    segment: PositiveInt = 256
    segments: PositiveInt | None = Field(default=None, description="default: all that the language has")
    optimisation: Optimisation = LONG


class FullConfig(Settings):
    """Methods that train all weights: full_fine_tuning, mlm_source, mlm_target."""

    language: FullLanguage = FullLanguage()
    task: Optimisation | None = Field(default=None, description="default: task.optimisation at ``learning_rate``")
    learning_rate: PositiveFloat = 2e-5


class SparseLanguage(Settings):
    """LF-SFT's difference of a language. The default K is 7.67 of XLM-R base's 278 million."""

    entries: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.0276, description="how many weights change, or which share of them"
    )
    l1: Annotated[float, Field(ge=0)] = Field(default=0.1, description="of the mean absolute difference")
    first_steps: PositiveInt | None = Field(default=None, description="of the phase that chooses; default: as many")
    segment: PositiveInt = 256
    segments: PositiveInt | None = Field(default=None, description="default: all that the language has")
    optimisation: Optimisation = LONG


class SparseTask(Settings):
    """LF-SFT's difference of the task. The default K is 14.2 of XLM-R base's 278 million."""

    entries: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.0511, description="how many weights change, or which share of them"
    )
    l1: Annotated[float, Field(ge=0)] = 0.0
    first_epochs: PositiveFloat | None = Field(default=3.0, description="of the phase that chooses; default: as many")
    first_steps: PositiveInt | None = Field(default=None, description="the same in steps")
    optimisation: Optimisation = NER


class LfSftConfig(Settings):
    """The sparse differences of lf_sft (2110.07560)."""

    language: SparseLanguage = SparseLanguage()
    task: SparseTask = SparseTask()


class MadXConfig(Settings):
    """The adapters of mad_x and its ablations (2005.00052); ``structure`` is for the other methods."""

    layout: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    activation: Activation | None = Field(default=None, description="default: relu (pfeiffer), swish (houlsby)")
    leave_out: tuple[NonNegativeInt, ...] = Field(
        default=(), description="layers without an adapter, from 0; MAD-X 2.0 leaves out the last one"
    )
    language: LanguageAdapters = LanguageAdapters()
    task: TaskAdapters = TaskAdapters()


Method = Literal[
    "vanilla",
    "english_tuning",
    "average",
    "adamergex",
    "adamergex_delta",
    "adamergex_cross",
    "mad_x",
    "mad_x_no_invertible",
    "mad_x_task_only",
    "full_fine_tuning",
    "mlm_source",
    "mlm_target",
    "lf_sft",
    "xlt",
    "xlt_english_tuning",
]
METHODS: tuple[str, ...] = get_args(Method)


def _method(name: str) -> str:
    if name not in METHODS and ".py:" not in name:
        near = difflib.get_close_matches(name, METHODS, 1)
        known = ", ".join(repr(method) for method in METHODS)
        raise ValueError(f"{name!r} is none of {known}" + (f"; did you mean '{near[0]}'?" if near else ""))
    return name


MethodName = Annotated[str, AfterValidator(_method)]
"""One of ``Method``, or a recipe of the user's: FILE.py:FUNCTION (docs/methods.md)."""


def method_name(method: str) -> str:
    """What a method is called in results: a user's recipe by its function."""
    return method.rpartition(":")[2]


class TransferConfig(Settings):
    """One table: methods × languages × seeds, for one base, one task and one adapter structure."""

    title: str = "Cross-lingual transfer"
    base: str = Field(description="nano, nano-causal, a folder or a hub id")
    structure: Structure = Structure()
    source: str = Field(default="en", description="the language with labels")
    proxy: str | None = Field(default=None, description="the language whose labelled validation set tunes λ")
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = (
        "vanilla",
        "english_tuning",
        "average",
        "adamergex",
    )
    task: TaskConfig = Field(description="the target task, labelled in the source language")
    reference: ReferenceConfig
    merge: MergeConfig = MergeConfig()
    mad_x: MadXConfig = MadXConfig()
    full: FullConfig = FullConfig()
    lf_sft: LfSftConfig = LfSftConfig()
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    output: str = Field(default="runs/transfer", description="folder for adapters, predictions, scores and the report")
    store: str | None = Field(
        default=None, description="where adapters are kept and found again; default: OUTPUT/store"
    )
    folder: str = Field(".", description="what relative paths are relative to; set to the config file's folder")

    @property
    def merges(self) -> bool:
        return any(method.startswith("adamergex") for method in self.methods)


Model = TypeVar("Model", bound=BaseModel)


def parse(settings: Any, where: str = "settings") -> TransferConfig:
    """Validated settings.

    Raises:
        ConfigError: one error that lists every problem.
    """
    found = validated(settings)
    if isinstance(found, list):
        raise refused(where, found)
    return found


def validated(settings: Any) -> TransferConfig | list[str]:
    """Validated settings, or a sentence for each of their problems."""
    found = typed(TransferConfig, settings)
    return found if isinstance(found, list) else list(_contradictions(found)) or found


def typed(model: type[Model], settings: Any) -> Model | list[str]:
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        return [_sentence(problem, model) for problem in error.errors()]


def load(path: Path) -> TransferConfig:
    """The settings of a YAML file; relative paths in it are relative to its folder.

    Raises:
        ConfigError: the file is missing, is no YAML, or has problems.
    """
    return parse(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A settings file as it stands, with the folder that its relative paths start from.

    Raises:
        ConfigError: the file is missing, is no YAML, or holds no mapping.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such settings file", where=path, fix="check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("the settings file is no YAML", where=path, found=str(error)) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            "the settings file holds no mapping", where=path, found=type(settings).__name__, expected="name: value"
        )
    return {"folder": str(path.parent), **settings}


def refused(where: str, problems: list[str]) -> ConfigError:
    """One error for all problems of a settings file."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError(f"{count} in the settings:\n" + "\n".join(f"  - {line}" for line in problems), where=where)


def _contradictions(config: TransferConfig) -> Iterator[str]:
    task: Own | BuiltIn | None = config.task.placed(Path(config.folder))
    if isinstance(task, BuiltIn) and (problems := list(task.problems())):
        yield from problems
        task = None  # nothing more can be said of it
    if config.source in config.targets:
        yield f"targets: '{config.source}' is the source; it needs no transfer"
    if len(set(config.targets)) < len(config.targets):
        yield "targets: a language stands twice"
    if config.merge.weight == "tuned" and config.merges:
        if config.proxy is None:
            yield "proxy: missing; it is the language whose validation set tunes λ (or set merge.weight to a number)"
        elif task is not None and task.rows("validation") is None:
            yield "task.validation: missing; λ is tuned on it in the proxy language (or set merge.weight to a number)"
    if config.proxy == config.source:
        yield f"proxy: '{config.source}' is the source; λ would be tuned where no transfer happens"
    if config.structure.kind in ("full", "sparse"):
        yield f"structure.kind: '{config.structure.kind}' is no adapter; name the method full_fine_tuning or lf_sft"
    if len({method_name(method) for method in config.methods}) < len(config.methods):
        yield "methods: two have the same name"
    for name, optimisation in (("language", config.lf_sft.language), ("task", config.lf_sft.task)):
        if problem := decaying(Structure(kind="sparse"), optimisation.optimisation):
            yield f"lf_sft.{name}.{problem}"
    if config.structure.kind != "lora" and config.merge.space == "delta":
        yield f"merge.space: 'delta' is for lora, the structure is {config.structure.kind}"
    if config.structure.kind != "lora" and "adamergex_delta" in config.methods:
        yield f"methods: adamergex_delta is for lora, the structure is {config.structure.kind}"
    if config.merge.rank is not None and config.merge.space != "delta" and "adamergex_delta" not in config.methods:
        yield "merge.rank: truncates delta merges only; set merge.space to delta"
    found = [] if task is None else [("task.test", task.rows("test"))]
    for name, where in (*found, ("reference.text", config.reference.text)):
        if isinstance(where, Rows) and where.path is not None and "{language}" not in where.path:
            yield f"{name}: '{where.path}' has no {{language}} in it, so every language would read the same file"


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    # Inside the task, pydantic puts the form of it (see task_config.tag_of) into the place.
    inside = problem["loc"][:1] == ("task",) and len(problem["loc"]) > 1
    place = ".".join(str(part) for index, part in enumerate(problem["loc"]) if not (inside and index == 1))
    if problem["type"] == "union_tag_invalid":
        kinds, tag = problem["ctx"]["expected_tags"], problem["ctx"]["tag"]
        near = difflib.get_close_matches(tag, kinds.replace("'", "").split(", "), 1)
        return f"{place}.kind: '{tag}' is none of {kinds}" + (f"; did you mean '{near[0]}'?" if near else "")
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _names_at(model, problem["loc"][:-1]), 1)
        return f"{place}: no such setting" + (f"; did you mean '{near[0]}'?" if near else "")
    if problem["type"] == "missing":
        return f"{place}: missing"
    if problem["type"] == "literal_error":
        expected = problem["ctx"]["expected"]
        options = [option.strip("' ") for option in expected.replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(problem["input"]), options, 1)
        return f"{place}: {problem['input']!r} is none of {expected}" + (f"; did you mean '{near[0]}'?" if near else "")
    if problem["type"] == "value_error":  # a sentence of ours, which names what it found
        return f"{place}: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"])
    return f"{place}: {problem['msg']} (found {problem['input']!r})"


def _names_at(model: type[BaseModel], place: tuple[Any, ...]) -> list[str]:
    """The settings that exist at a place, by walking the models."""
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
    return list(model.model_fields)
