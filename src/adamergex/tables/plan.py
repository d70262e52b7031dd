"""Settings -> steps: everything to train, tune, merge and evaluate for a table."""

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
    """The settings with paths made absolute, independent of the settings file's folder."""
    folder = Path(config.folder)
    text = config.reference.text
    paths: dict[str, object] = {"text": None if text is None else _absolute_rows(folder, text)}
    if isinstance(config.reference, TaskReference):
        paths["task"] = config.reference.task.placed(folder)
    if isinstance(config.reference, AlignmentReference) and config.reference.pivot is not None:
        paths["pivot"] = _absolute_rows(folder, config.reference.pivot)
    if isinstance(config.reference, AdapterReference):
        paths["adapters"] = pattern_of(config.reference.adapters, folder)
    reference = config.reference.model_copy(update=paths)
    base = _absolute_base(folder, config.base)
    methods = tuple(str((folder / name).absolute()) if ":" in name else name for name in config.methods)
    update = {"task": config.task.placed(folder), "reference": reference, "base": base, "methods": methods}
    return config.model_copy(update=update)


def train_job(config: LanguageTraining | TaskTraining) -> TrainJob:
    """The job of a ``train`` file. Raises: DataError for training rows with fewer than two labels."""
    folder = Path(config.folder)
    task: Task
    rows: AnyRows
    base_adapters: tuple[str, ...] = ()
    if isinstance(config, TaskTraining):
        task_config = config.task.placed(folder)
        train_rows = task_config.rows("train")
        assert train_rows is not None  # every task has training rows
        rows, task = train_rows, _task(task_config, config.language)
        optimisation = task_config.optimisation.of(config.structure)
        base_adapters = tuple(str((folder / path).absolute()) for path in config.base_adapters)
    else:
        rows, optimisation = _absolute_rows(folder, config.text), config.optimisation
        task = LanguageModeling(
            segment=config.segment,
            segments=config.segments,
            mask_rate=config.mask_rate,
            objective=config.objective,
        )
    return TrainJob(
        base=_absolute_base(folder, config.base),
        structure=config.structure,
        task=task,
        language=config.language,
        rows=rows,
        optimisation=optimisation,
        seed=config.seed,
        base_adapters=base_adapters,
    )


def head_settings(config: MaskedLmHeadTraining) -> HeadSettings:
    """The settings of a ``train`` file of kind masked-lm-head."""
    from adamergex.training.masked_lm_head import HeadSettings

    folder, recovery = Path(config.folder), config.recovery
    return HeadSettings(
        base=_absolute_base(folder, config.base),
        languages=config.languages,
        text=_absolute_rows(folder, config.text),
        task=LanguageModeling(segment=config.segment, segments=config.segments, mask_rate=config.mask_rate),
        optimisation=config.optimisation,
        seed=config.seed,
        **({} if recovery is None else recovery.model_dump()),
    )


def _absolute_rows(folder: Path, rows: Rows) -> Rows:
    return rows if rows.path is None else rows.model_copy(update={"path": str((folder / rows.path).absolute())})


def _absolute_base(folder: Path, base: str) -> str:
    return str((folder / base).absolute()) if (folder / base).is_dir() else base


def _task(config: CustomTask | BuiltinTask, language: str) -> Target:
    """The task with its labels or entity types, inferred from the training rows in a language if not given."""
    from adamergex.tasks.kinds import kind_of
    from adamergex.tasks.rows import read, source

    if not config.open_labels:
        return config.task(())
    rows, open_task = config.rows("train"), config.task(())
    open_labels = kind_of(open_task).labels
    assert rows is not None and open_labels is not None  # every task has training rows; the kind has labels
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
    """Facts from the model and the data: hash of the base, labels, number of segments of every language.

    ``languages``: those whose references are compared; default: the table's.
    """
    from adamergex.backbones.base_files import base_sha256
    from adamergex.data.reader import content_hash
    from adamergex.tasks import running
    from adamergex.tasks.kinds import kind_of
    from adamergex.tasks.rows import read, source

    task = _task(config.task, config.source)
    for method in config.methods:  # fail before training starts
        asks, bare = recipe(method).asks, sketched(config, method, config.targets[0])[1] is None
        kind = running.model_kind(task if asks is None else asks(task, config.source), config.base, bare=bare)
        if asks is not None and kind not in ("causal-lm", "sequence-to-sequence"):
            raise ConfigError(
                f"{method} is a prompt, which needs a generating model",
                where="methods",
                found=f"{config.base}, a {kind} model",
                expected="a decoder or an encoder-decoder",
                fix=f"omit {method}, or choose another base",
            )
    labelled = config.reference.task if isinstance(config.reference, TaskReference) else None
    reference = _task(labelled, config.source) if labelled and needs_references(config) else None
    known: dict[str, str] = {}

    def content(task: Task, rows: AnyRows, language: str, labelled: bool = True) -> str:
        key = f"{task.model_dump_json()} {language} {labelled} {rows.model_dump_json()}"
        if key not in known:
            read_rows = read(task, rows, language, labelled)
            if labelled:
                kind_of(task).check_rows(task, read_rows, source(rows, language))
            known[key] = content_hash(read_rows)
        return known[key]

    segments, sha256 = _segments(config, languages), base_sha256(config.base)
    return Facts(
        base_sha256=sha256, task=task, segments=segments, content=content, reference=reference,
        given=_given(config, sha256),
    )  # fmt: skip


def _given(config: TransferConfig, base_sha256: str) -> Callable[[str], GivenAdapter] | None:
    """A function that reads and checks the given reference adapter of a language, each once."""
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
    """The number of segments of the language with the least text: the reference task must be equal in all languages."""
    if not isinstance(config.reference, TextReference):
        return None
    if config.reference.segments is not None or not needs_references(config):
        return config.reference.segments
    from adamergex.backbones.loading import family, load_config, tokenizer
    from adamergex.tasks.language_modeling import count_segments
    from adamergex.tasks.rows import read

    base_tokenizer, masked = tokenizer(config.base), family(load_config(config.base)) != "decoder"
    text, segment, counts = config.reference.text, config.reference.segment, dict[str, int]()
    for language in dict.fromkeys(languages or languages_of(config)):
        texts = [str(row["text"]) for row in read(LanguageModeling(), text, language)]
        counts[language] = count_segments(texts, base_tokenizer, segment, masked=masked)
    if min(counts.values()) < 1:
        raise DataError(
            "too little text for one segment",
            where=text.path or text.hub,
            found=f"segments of {segment} tokens: {counts}",
            fix="give more text or a smaller reference.segment",
        )
    return min(counts.values())


def searched_on(search: Step, cell: Cell) -> str:
    """The languages that a cell's search for λ uses."""
    if isinstance(search.job, TuneJob):
        return search.job.evaluate.language
    if cell.config.merge.leave_one_out:
        return f"all targets but {cell.target}"
    return ", ".join(search.inputs)


CellKey = tuple[str, str, int]
"""Method, target language, seed."""


class Plan:
    """The steps of a table: an evaluation for every method, language and seed, and the searches for λ.

    With ``merge.oracle`` every cell with a λ gets an oracle cell, named by the method and ``ORACLE``.
    """

    def __init__(self, config: TransferConfig, known: Facts) -> None:
        for rule, settings in config.merge.rules.items():  # recipes' files, which may register rules, are loaded
            with_settings(rule_for(rule, config.structure.kind), settings)
        self.config = config
        self.metric = known.task.metric
        self.adapters: dict[CellKey, Stack] = {}
        self.evaluations: dict[CellKey, Step] = {}
        self.tunings: dict[CellKey, Step] = {}  # by method, languages of the search, seed
        self.oracles: dict[CellKey, Step] = {}  # searches on the cell's own test set
        self.searches_by_way: dict[CellKey, dict[str, Step]] = {}  # cells with an oracle: way -> search
        for seed in config.seeds:
            for method in config.methods:
                for language in config.targets:
                    self._add(method, Cell(config, known, language, seed))

    def _add(self, method: str, cell: Cell) -> None:
        name, method_recipe = method_name(method), recipe(method)
        key = (name, cell.target, cell.seed)
        stack = cell.adapter(method_recipe.build)
        self.adapters[key] = stack
        self.evaluations[key] = cell.evaluate(stack, cell.target, method_recipe.asks)
        if stack and "weight" in stack[-1].inputs:
            search = stack[-1].inputs["weight"]
            self.tunings[name, searched_on(search, cell), cell.seed] = search
        if cell.config.merge.oracle:
            self._add_oracle(key, cell, method_recipe)

    def _add_oracle(self, key: CellKey, cell: Cell, method_recipe: Recipe) -> None:
        oracle = cell.oracle(method_recipe.build)
        if oracle is None:
            return
        name, language, seed = key
        self.adapters[name + ORACLE, language, seed] = (oracle,)
        self.evaluations[name + ORACLE, language, seed] = cell.evaluate((oracle,), language, method_recipe.asks)
        self.oracles[key] = oracle.inputs["weight"]
        settings, (merge, *_) = cell.config.merge, self.adapters[key]
        searches = {}
        if "weight" in merge.inputs:
            way = "entropy" if settings.weight == "entropy" else "leave_one_out" if settings.leave_one_out else "proxy"
            searches[way] = merge.inputs["weight"]
        self.searches_by_way[key] = searches | cell.compared(method_recipe.build)

    @property
    def wanted(self) -> list[Step]:
        merged = [step for stack in self.adapters.values() for step in stack]
        return [*self.evaluations.values(), *self.searches, *merged, *self.trainings]

    @property
    def searches(self) -> list[Step]:
        """All searches for λ; searches on single languages before the choices made from them."""
        compared = (step for searches in self.searches_by_way.values() for step in searches.values())
        searches = [*self.tunings.values(), *self.oracles.values(), *compared]
        inner = (search for step in searches if step.kind == "choose" for search in step.inputs.values())
        return list(dict.fromkeys((*inner, *searches)))

    @property
    def trainings(self) -> list[Step]:
        trainings: dict[str, Step] = {}

        def visit(step: Step) -> None:
            if step.kind == "train":
                trainings[step.key] = step
            for parent in step.inputs.values():
                visit(parent)

        for stack in (*self.adapters.values(), tuple(self.searches)):
            for step in stack:
                visit(step)
        return list(trainings.values())
