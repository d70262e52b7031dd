"""Settings of ``transfer``: YAML -> validated settings, or all problems at once with the nearest valid names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from adamergex.base_names import with_languages
from adamergex.config.methods import (
    METHODS,
    FullConfig,
    LfSftConfig,
    MadXConfig,
    MergeConfig,
    PapersConfig,
    Traits,
)
from adamergex.config.problems import invalid_settings, typed
from adamergex.config.references import AdapterReference, ReferenceConfig, TaskReference
from adamergex.config.table_checks import head_start_problems, weight_problems
from adamergex.config.task import BuiltinTask, CustomTask, TaskConfig, measurable
from adamergex.errors import ConfigError, NothingMergedError
from adamergex.files import inputs
from adamergex.files.strict import (
    Name,
    PathText,
    Seed,
    Settings,
    distinct,
    hint,
    path_text,
    plain,
    shown,
)
from adamergex.jobs.settings import Rows, Sparse, decaying
from adamergex.merging.select import select
from adamergex.structures import every, kind_named
from adamergex.structures.settings import Lora, Structure


def _method(name: str) -> str:
    if name not in METHODS and ".py:" not in name:
        known = ", ".join(repr(method) for method in METHODS)
        raise ValueError(f"{shown(name)} is not one of {known}{hint(name, METHODS)}")
    if ".py:" in name:
        plain(method_name(name))
    return path_text(name)


def _one_or_several(value: object) -> object:
    return () if value is None else (value,) if isinstance(value, str) else value


MethodName = Annotated[str, AfterValidator(_method)]
"""One of ``METHODS``, or a user's recipe: FILE.py:FUNCTION (docs/methods.md)."""


def method_name(method: str) -> str:
    """A method's name in results; for a user's recipe, the name of its function."""
    return method.rpartition(":")[2]


class TransferConfig(Settings):
    """One table: methods × languages × seeds, for one base, one task and one adapter structure."""

    title: PathText = Field(default="Cross-lingual transfer", description="title of the report")
    base: PathText = Field(description="a name listed by ``adamergex backbones``, a folder or a hub id")
    structure: Structure = Field(default=Lora(), description="the adapter structure")
    source: Name = Field(default="en", description="the language of the labelled training rows")
    proxy: Annotated[tuple[Name, ...], BeforeValidator(_one_or_several), AfterValidator(distinct)] = Field(
        default=(),
        description="one or more languages whose labelled validation sets tune λ; the scores of several are averaged",
    )
    targets: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(distinct)] = Field(
        description="the languages to transfer to"
    )
    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = Field(
        default=("vanilla", "english_tuning", "average", "adamergex"),
        description="names of methods, or FILE.py:FUNCTION for your own",
    )
    task: TaskConfig = Field(description="the target task, labelled in the source language")
    reference: ReferenceConfig = Field(description="the reference task, or given references")
    merge: MergeConfig = Field(default=MergeConfig(), description="merging and the selection of λ")
    mad_x: MadXConfig = Field(default=MadXConfig(), description="adapters of mad_x and related methods")
    full: FullConfig = Field(default=FullConfig(), description="methods that train all weights")
    lf_sft: LfSftConfig = Field(default=LfSftConfig(), description="sparse differences of lf_sft")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=(0,), description="every method runs once per seed"
    )
    output: PathText = Field(
        default="runs/transfer", description="folder of adapters, predictions, scores and the report"
    )
    store: PathText | None = Field(
        default=None, description="folder of the reusable results of all steps; default: OUTPUT/store"
    )
    papers: PapersConfig = Field(default=PapersConfig(), description="the papers' numbers that the report shows")
    folder: str = Field(".", description="folder of relative paths; set to the settings file's folder")

    @property
    def merges(self) -> bool:
        """Whether a shipped method of the table has a λ to choose."""
        return any(traits.tunes for traits in self.traits.values())

    @property
    def traits(self) -> dict[str, Traits]:
        """What the shipped methods of the table ask for, by name."""
        return {method: METHODS[method] for method in self.methods if method in METHODS}

    def tuned_on(self, target: str) -> tuple[str, ...]:
        """The languages whose validation sets tune the λ of a target."""
        return self.others(target) if self.merge.leave_one_out else self.proxy

    def others(self, target: str) -> tuple[str, ...]:
        """The other targets."""
        return tuple(language for language in self.targets if language != target)


def parse(settings: object, where: str = "settings") -> TransferConfig:
    """Validated settings.

    Raises:
        ConfigError: one error that lists every problem.
    """
    config = validated(settings)
    if isinstance(config, list):
        raise invalid_settings(where, config)
    return config


def validated(settings: object) -> TransferConfig | list[str]:
    """Validated settings, or a sentence for each of their problems."""
    config = typed(TransferConfig, settings)
    return config if isinstance(config, list) else list(_contradictions(config)) or config


def load(path: Path) -> TransferConfig:
    """The settings of a YAML file; relative paths in it are relative to its folder.

    Raises:
        ConfigError: the file is missing, cannot be read, is not valid YAML, or has problems.
    """
    return parse(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, object]:
    """The unchecked content of a settings file, with the folder that its paths are relative to.

    Raises:
        ConfigError: the file is missing, cannot be read, is not valid YAML, or is not a mapping.
    """
    settings = inputs.read_yaml(path, what="the settings file", error=ConfigError)
    if not isinstance(settings, dict):
        raise ConfigError(
            "the settings file is not a mapping", where=path, found=type(settings).__name__, expected="name: value"
        )
    return {"folder": str(path.parent), **settings}


def _contradictions(config: TransferConfig) -> Iterator[str]:
    task: CustomTask | BuiltinTask | None = config.task.placed(Path(config.folder))
    if isinstance(task, BuiltinTask) and (problems := list(task.problems())):
        yield from problems
        task = None  # skips further checks of the task
    yield from measurable(task) if task is not None else ()
    if isinstance(config.reference, TaskReference):
        labelled = config.reference.task.placed(Path(config.folder))
        problems = [f"reference.{line}" for line in labelled.problems()] if isinstance(labelled, BuiltinTask) else []
        yield from problems or measurable(labelled, "reference.task")
    yield from _expressions(config)
    if config.source in config.targets:
        yield f"targets: '{config.source}' is the source; it needs no transfer"
    yield from weight_problems(config, task)
    yield from head_start_problems(config, task)
    yield from _unsuited_methods(config)
    if not kind_named(config.structure.kind).adapter:
        yield f"structure.kind: '{config.structure.kind}' is not an adapter; use the method full_fine_tuning or lf_sft"
    if len({method_name(method) for method in config.methods}) < len(config.methods):
        yield "methods: two have the same name"
    learned = [("task", config.task.optimisation), ("reference", getattr(config.reference, "optimisation", None))]
    for name, optimisation in learned:
        if optimisation is not None and (problem := decaying(config.structure, optimisation)):
            yield f"{name}.{problem}"
    for name, optimisation in (("language", config.lf_sft.language), ("task", config.lf_sft.task)):
        if problem := decaying(Sparse(), optimisation.optimisation):
            yield f"lf_sft.{name}.{problem}"
    yield from _unknown_languages(config)
    structure = kind_named(config.structure.kind)
    if not structure.low_rank and config.merge.space == "delta":
        yield f"merge.space: 'delta' is for lora, the structure is {config.structure.kind}"
    for name, value, default in (("span", config.merge.span, "per_layer"), ("form", config.merge.form, "left")):
        if not structure.whole and value != default:
            yield f"merge.{name}: '{value}' is for prefix, the structure is {config.structure.kind}"
    in_delta = config.merge.space == "delta" or any(traits.delta for traits in config.traits.values())
    if config.merge.rank is not None and not (in_delta and structure.low_rank):
        yield "merge.rank: truncates delta merges only (ties and dare too), of lora; set merge.space to delta"
    sources = [] if task is None else [("task.test", task.rows("test"))]
    if isinstance(config.reference, TaskReference) and not isinstance(config.reference.task, BuiltinTask):
        sources.append(("reference.task.train", config.reference.task.train))
    if isinstance(config.reference, AdapterReference):
        yield from _adapter_problems(config.reference)
    for name, rows in (*sources, ("reference.text", config.reference.text)):
        if isinstance(rows, Rows) and rows.path is not None and "{language}" not in rows.path:
            yield f"{name}: '{rows.path}' has no {{language}} in it, so every language would read the same file"


def _adapter_problems(reference: AdapterReference) -> Iterator[str]:
    if "{language}" not in reference.adapters and reference.adapters not in with_languages():
        yield (
            f"reference.adapters: {shown(reference.adapters)} has no {{language}} in it, and no language vectors ship "
            f"under this name{hint(reference.adapters, with_languages())}"
        )


def _expressions(config: TransferConfig) -> Iterator[str]:
    """Problems of the module selection and of the swapped layers that hold for any model."""
    try:
        select(["x"], config.merge.modules or "all")
    except ConfigError as error:
        yield f"merge.modules: {error.problem} ({error.found})"
    except NothingMergedError:
        pass  # depends on the model's modules
    if not config.merge.swap.bottom + config.merge.swap.top and "layer_swapping" in config.methods:
        yield "merge.swap: no layer is swapped; set bottom or top"


def _unknown_languages(config: TransferConfig) -> Iterator[str]:
    """Languages in ``steps_by_language`` that the table does not use."""
    known = dict.fromkeys((config.source, *config.targets, *config.proxy))
    for place in ("mad_x", "full", "lf_sft"):
        for language in getattr(config, place).language.steps_by_language:
            if language not in known:
                near = hint(language, known) or f", which are {', '.join(known)}"
                yield f"{place}.language.steps_by_language: {shown(language)} is not one of the table's languages{near}"


def _unsuited_methods(config: TransferConfig) -> Iterator[str]:
    """Methods that the structure or the reference task rules out."""
    kind = kind_named(config.structure.kind)
    for method, traits in config.traits.items():
        if traits.needs and not getattr(kind, traits.needs):
            kinds = " and ".join(item.name for item in every() if getattr(item, traits.needs))
            yield f"methods: {method} is for {kinds}, the structure is {kind.name}"
    if "layer_swapping" in config.methods and kind.whole:
        yield f"methods: layer_swapping is for adapters in layers, the structure is {kind.name}"
    if isinstance(config.reference, TaskReference | AdapterReference) and config.reference.text is None:
        for method, traits in config.traits.items():
            if traits.on_text:
                yield f"reference.text: missing; {method} trains on it"
