"""Settings of ``transfer``: YAML -> validated settings, or all problems at once with the nearest valid names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from adamergex.base_names import with_languages
from adamergex.config.methods import (
    FullConfig,
    LfSftConfig,
    MadXConfig,
    MergeConfig,
    PapersConfig,
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
    "layer_swapping",
    "language_arithmetic",
    "ties",
    "dare",
    "ties_factors",
    "dare_factors",
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
        known = ", ".join(repr(method) for method in METHODS)
        raise ValueError(f"{shown(name)} is not one of {known}{hint(name, METHODS)}")
    if ".py:" in name:
        plain(method_name(name))
    return path_text(name)


def _one_or_several(value: object) -> object:
    return () if value is None else (value,) if isinstance(value, str) else value


MethodName = Annotated[str, AfterValidator(_method)]
"""One of ``Method``, or a user's recipe: FILE.py:FUNCTION (docs/methods.md)."""


def method_name(method: str) -> str:
    """A method's name in results; for a user's recipe, the name of its function."""
    return method.rpartition(":")[2]


class TransferConfig(Settings):
    """One table: methods × languages × seeds, for one base, one task and one adapter structure."""

    title: PathText = "Cross-lingual transfer"
    base: PathText = Field(description="a name (see ``adamergex backbones``), a folder or a hub id")
    structure: Structure = Lora()
    source: Name = Field(default="en", description="the language with labels")
    proxy: Annotated[tuple[Name, ...], BeforeValidator(_one_or_several), AfterValidator(distinct)] = Field(
        default=(),
        description="one or several languages whose labelled validation sets tune λ, by their mean score",
    )
    targets: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(distinct)]
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
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(distinct)] = (0,)
    output: PathText = Field(
        default="runs/transfer", description="folder for adapters, predictions, scores and the report"
    )
    store: PathText | None = Field(
        default=None, description="folder where adapters are kept and reused; default: OUTPUT/store"
    )
    papers: PapersConfig = PapersConfig()
    folder: str = Field(".", description="base of relative paths; set to the config file's folder")

    @property
    def merges(self) -> bool:
        return any(method.startswith("adamergex") for method in self.methods)

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
    yield from _rivals(config)
    if not kind_named(config.structure.kind).adapter:
        yield f"structure.kind: '{config.structure.kind}' is not an adapter; use the method full_fine_tuning or lf_sft"
    if len({method_name(method) for method in config.methods}) < len(config.methods):
        yield "methods: two have the same name"
    for name, optimisation in (("language", config.lf_sft.language), ("task", config.lf_sft.task)):
        if problem := decaying(Sparse(), optimisation.optimisation):
            yield f"lf_sft.{name}.{problem}"
    yield from _unknown_languages(config)
    structure = kind_named(config.structure.kind)
    if not structure.low_rank and config.merge.space == "delta":
        yield f"merge.space: 'delta' is for lora, the structure is {config.structure.kind}"
    if not structure.low_rank and "adamergex_delta" in config.methods:
        yield f"methods: adamergex_delta is for lora, the structure is {config.structure.kind}"
    for name, value, default in (("span", config.merge.span, "per_layer"), ("form", config.merge.form, "left")):
        if not structure.whole and value != default:
            yield f"merge.{name}: '{value}' is for prefix, the structure is {config.structure.kind}"
    in_delta = config.merge.space == "delta" or not {"adamergex_delta", "ties", "dare"}.isdisjoint(config.methods)
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


COMBINED = ("ties", "dare", "ties_factors", "dare_factors")
"""Methods that combine two adapters by TIES or DARE."""
ON_TEXT = ("mad_x", "mad_x_no_invertible", "language_arithmetic", "mlm_source", "mlm_target", "lf_sft")
"""Methods that train on text of languages, independent of the reference task."""


def _rivals(config: TransferConfig) -> Iterator[str]:
    """Problems of merging methods other than the paper's with the structure or the reference."""
    kind = kind_named(config.structure.kind)
    for method in (method for method in COMBINED if method in config.methods):
        needed = "low_rank" if method.endswith("_factors") else "task_vectors"
        if not getattr(kind, needed):
            kinds = " and ".join(item.name for item in every() if getattr(item, needed))
            yield f"methods: {method} is for {kinds}, the structure is {kind.name}"
    if "layer_swapping" in config.methods and kind.whole:
        yield f"methods: layer_swapping is for adapters in layers, the structure is {kind.name}"
    if isinstance(config.reference, TaskReference | AdapterReference) and config.reference.text is None:
        for method in config.methods:
            if method in ON_TEXT:
                yield f"reference.text: missing; {method} trains on it"
