"""Settings -> steps: what must be trained, tuned, merged and evaluated for a whole table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from adamergex.config.references import AdapterReference, AlignmentReference, TaskReference, TextReference
from adamergex.config.table_checks import ORACLE
from adamergex.config.task import BuiltinTask, CustomTask
from adamergex.config.train import LanguageTraining, MaskedLmHeadTraining, TaskTraining
from adamergex.config.transfer import TransferConfig, method_name
from adamergex.errors import ConfigError, DataError
from adamergex.graph.steps import Step
from adamergex.jobs.merge import TuneJob
from adamergex.jobs.settings import (
    AnyRows,
    LanguageModeling,
    Rows,
    Target,
    Task,
    TrainJob,
)
from adamergex.merging.rules.registry import rule_for, with_settings
from adamergex.methods import Recipe, recipe
from adamergex.methods.cell import Cell, Facts, Stack
from adamergex.methods.given import GivenAdapter, pattern_of, read_given
from adamergex.tables.sketch import needs_references, sketched

if TYPE_CHECKING:
    from adamergex.training.masked_lm_head import HeadSettings


def absolute(config: TransferConfig) -> TransferConfig:
    """The settings with paths that no longer depend on the settings file's folder."""
    folder = Path(config.folder)
    text = config.reference.text
    placed: dict[str, object] = {"text": None if text is None else _placed(folder, text)}
    if isinstance(config.reference, TaskReference):
        placed["task"] = config.reference.task.placed(folder)
    if isinstance(config.reference, AlignmentReference) and config.reference.pivot is not None:
        placed["pivot"] = _placed(folder, config.reference.pivot)
    if isinstance(config.reference, AdapterReference):
        placed["adapters"] = pattern_of(config.reference.adapters, folder)
    reference = config.reference.model_copy(update=placed)
    base = _placed_base(folder, config.base)
    methods = tuple(str((folder / name).absolute()) if ":" in name else name for name in config.methods)
    update = {"task": config.task.placed(folder), "reference": reference, "base": base, "methods": methods}
    return config.model_copy(update=update)


def train_job(config: LanguageTraining | TaskTraining) -> TrainJob:
    """What a ``train`` file asks for. Raises: DataError for training rows with fewer than two labels."""
    folder = Path(config.folder)
    task: Task
    rows: AnyRows
    base_adapters: tuple[str, ...] = ()
    if isinstance(config, TaskTraining):
        placed = config.task.placed(folder)
        found = placed.rows("train")
        assert found is not None  # every task is trained on something
        rows, task = found, _task(placed, config.language)
        optimisation = placed.optimisation.of(config.structure)
        base_adapters = tuple(str((folder / path).absolute()) for path in config.base_adapters)
    else:
        rows, optimisation = _placed(folder, config.text), config.optimisation
        task = LanguageModeling(
            segment=config.segment,
            segments=config.segments,
            mask_rate=config.mask_rate,
            objective=config.objective,
        )
    return TrainJob(
        base=_placed_base(folder, config.base),
        structure=config.structure,
        task=task,
        language=config.language,
        rows=rows,
        optimisation=optimisation,
        seed=config.seed,
        base_adapters=base_adapters,
    )


def head_settings(config: MaskedLmHeadTraining) -> HeadSettings:
    """What a ``train`` file of kind masked-lm-head asks for."""
    from adamergex.training.masked_lm_head import HeadSettings

    folder, recovery = Path(config.folder), config.recovery
    return HeadSettings(
        base=_placed_base(folder, config.base),
        languages=config.languages,
        text=_placed(folder, config.text),
        task=LanguageModeling(segment=config.segment, segments=config.segments, mask_rate=config.mask_rate),
        optimisation=config.optimisation,
        seed=config.seed,
        **({} if recovery is None else recovery.model_dump()),
    )


def _placed(folder: Path, rows: Rows) -> Rows:
    return rows if rows.path is None else rows.model_copy(update={"path": str((folder / rows.path).absolute())})


def _placed_base(folder: Path, base: str) -> str:
    return str((folder / base).absolute()) if (folder / base).is_dir() else base


def _task(config: CustomTask | BuiltinTask, language: str) -> Target:
    """The task with its labels, or entity types, which may be those of the training rows in a language."""
    from adamergex.tasks.kinds import kind_of
    from adamergex.tasks.rows import read, source

    if not config.open_labels:
        return config.task(())
    rows, open_task = config.rows("train"), config.task(())
    open_labels = kind_of(open_task).labels
    assert rows is not None and open_labels is not None  # every task is trained on something; the kind has labels
    labels = open_labels.of(read(open_task, rows, language))
    if len(labels) < open_labels.needs:
        raise DataError(
            open_labels.too_few,
            where=source(rows, language),
            found=list(labels),
            fix="check the training rows and their column mapping",
        )
    return config.task(labels)


def facts(config: TransferConfig, languages: Iterable[str] | None = None) -> Facts:
    """What the model and the data say: hash of the base, labels, how much text every language has.

    ``languages``: those whose references are compared; default: the table's own.
    """
    from adamergex.backbones.base_files import base_sha256
    from adamergex.data.reader import content_hash
    from adamergex.tasks import running
    from adamergex.tasks.kinds import kind_of
    from adamergex.tasks.rows import read, source

    task = _task(config.task, config.source)
    for method in config.methods:  # before anything is trained
        asks, bare = recipe(method).asks, sketched(config, method, config.targets[0])[1] is None
        found = running.model_kind(task if asks is None else asks(task, config.source), config.base, bare=bare)
        if asks is not None and found not in ("causal-lm", "sequence-to-sequence"):
            raise ConfigError(
                f"{method} is a prompt, which needs a generating model",
                where="methods",
                found=f"{config.base}, a {found} model",
                expected="a decoder or an encoder-decoder",
                fix=f"leave out {method}, or choose another base",
            )
    labelled = config.reference.task if isinstance(config.reference, TaskReference) else None
    reference = _task(labelled, config.source) if labelled and needs_references(config) else None
    known: dict[str, str] = {}

    def content(task: Task, rows: AnyRows, language: str, labelled: bool = True) -> str:
        place = f"{task.model_dump_json()} {language} {labelled} {rows.model_dump_json()}"
        if place not in known:
            found = read(task, rows, language, labelled)
            if labelled:
                kind_of(task).check_rows(task, found, source(rows, language))
            known[place] = content_hash(found)
        return known[place]

    segments, sha256 = _segments(config, languages), base_sha256(config.base)
    return Facts(
        base_sha256=sha256, task=task, segments=segments, content=content, reference=reference,
        given=_given(config, sha256),
    )  # fmt: skip


def _given(config: TransferConfig, base_sha256: str) -> Callable[[str], GivenAdapter] | None:
    """What checks the given reference of a language, each once."""
    reference = config.reference
    if not isinstance(reference, AdapterReference):
        return None
    pattern, structure = reference.adapters, config.structure

    @cache
    def given(language: str) -> GivenAdapter:
        return read_given(pattern, language, base=config.base, base_sha256=base_sha256, structure=structure)

    return given


def languages_of(config: TransferConfig) -> tuple[str, ...]:
    """The languages whose references a table may need: source, targets, proxies."""
    return tuple(dict.fromkeys((config.source, *config.targets, *config.proxy)))


def _segments(config: TransferConfig, languages: Iterable[str] | None) -> int | None:
    """As many segments as the language with the least text has: the reference task must be the same everywhere."""
    if not isinstance(config.reference, TextReference):
        return None
    if config.reference.segments is not None or not needs_references(config):
        return config.reference.segments
    from adamergex.backbones.loading import family, load_config, tokenizer
    from adamergex.tasks.language_modeling import count_segments
    from adamergex.tasks.rows import read

    pieces, masked = tokenizer(config.base), family(load_config(config.base)) != "decoder"
    chosen = dict.fromkeys(languages or languages_of(config))
    text = config.reference.text
    texts = {language: [str(row["text"]) for row in read(LanguageModeling(), text, language)] for language in chosen}
    segment = config.reference.segment
    counts = {name: count_segments(own, pieces, segment, masked=masked) for name, own in texts.items()}
    if min(counts.values()) < 1:
        raise DataError(
            "too little text for one segment",
            where=text.path or text.hub,
            found=f"segments of {segment} tokens: {counts}",
            fix="give more text or a smaller reference.segment",
        )
    return min(counts.values())


def searched_on(search: Step, cell: Cell) -> str:
    """The languages that a cell's search of λ looks at."""
    if isinstance(search.job, TuneJob):
        return search.job.evaluate.language
    if cell.config.merge.leave_one_out:
        return f"all targets but {cell.target}"
    return ", ".join(search.inputs)


Place = tuple[str, str, int]
"""Method, target language, seed."""


class Plan:
    """The steps of a whole table: an evaluation for every method, language and seed, and the searches of λ.

    With ``merge.oracle`` every cell whose λ can be chosen has another beside it, of the method's name and ``ORACLE``.
    """

    def __init__(self, config: TransferConfig, known: Facts) -> None:
        for rule, settings in config.merge.rules.items():  # recipes' files, which may register rules, are loaded
            with_settings(rule_for(rule, config.structure.kind), settings)
        self.config = config
        self.metric = known.task.metric
        self.adapters: dict[Place, Stack] = {}
        self.evaluations: dict[Place, Step] = {}
        self.tunings: dict[Place, Step] = {}  # by method, what is searched on, seed
        self.oracles: dict[Place, Step] = {}  # searches on the cell's own test set
        self.ways: dict[Place, dict[str, Step]] = {}  # of cells with an oracle: way -> search
        for seed in config.seeds:
            for method in config.methods:
                for language in config.targets:
                    self._add(method, Cell(config, known, language, seed))

    def _add(self, method: str, cell: Cell) -> None:
        name, way = method_name(method), recipe(method)
        place = (name, cell.target, cell.seed)
        stack = cell.adapter(way.build)
        self.adapters[place] = stack
        self.evaluations[place] = cell.evaluate(stack, cell.target, way.asks)
        if stack and "weight" in stack[-1].inputs:
            search = stack[-1].inputs["weight"]
            self.tunings[name, searched_on(search, cell), cell.seed] = search
        if cell.config.merge.oracle:
            self._add_oracle(place, cell, way)

    def _add_oracle(self, place: Place, cell: Cell, way: Recipe) -> None:
        bound = cell.oracle(way.build)
        if bound is None:
            return
        name, language, seed = place
        self.adapters[name + ORACLE, language, seed] = (bound,)
        self.evaluations[name + ORACLE, language, seed] = cell.evaluate((bound,), language, way.asks)
        self.oracles[place] = bound.inputs["weight"]
        settings, (stack, *_) = cell.config.merge, self.adapters[place]
        own = {} if "weight" not in stack.inputs else {
            "entropy" if settings.weight == "entropy" else "leave_one_out" if settings.leave_one_out else "proxy":
            stack.inputs["weight"]
        }  # fmt: skip
        self.ways[place] = own | cell.compared(way.build)

    @property
    def wanted(self) -> list[Step]:
        merged = [step for stack in self.adapters.values() for step in stack]
        return [*self.evaluations.values(), *self.searches, *merged, *self.trainings]

    @property
    def searches(self) -> list[Step]:
        """All searches of λ, those of single languages before the choices that are made from them."""
        compared = (step for ways in self.ways.values() for step in ways.values())
        found = [*self.tunings.values(), *self.oracles.values(), *compared]
        inner = (one for step in found if step.kind == "choose" for one in step.inputs.values())
        return list(dict.fromkeys((*inner, *found)))

    @property
    def trainings(self) -> list[Step]:
        found: dict[str, Step] = {}

        def visit(step: Step) -> None:
            if step.kind == "train":
                found[step.key] = step
            for other in step.inputs.values():
                visit(other)

        for stack in (*self.adapters.values(), tuple(self.searches)):
            for step in stack:
                visit(step)
        return list(found.values())
