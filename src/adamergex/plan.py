"""Settings -> steps: what must be trained, tuned, merged and evaluated for a whole table."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from adamergex.config import LanguageTraining, TaskTraining, TransferConfig
from adamergex.errors import DataError
from adamergex.graph import Step
from adamergex.recipes import RECIPES, Experiment, Facts, Stack
from adamergex.settings import Classification, LanguageModeling, Rows, Task, TrainJob

Placed = TypeVar("Placed", Rows, Rows | None)


def absolute(config: TransferConfig) -> TransferConfig:
    """The settings with paths that no longer depend on the settings file's folder."""
    folder, task = Path(config.folder), config.task
    rows = {name: _placed(folder, getattr(task, name)) for name in ("train", "validation", "test")}
    reference = config.reference.model_copy(update={"text": _placed(folder, config.reference.text)})
    base = _placed_base(folder, config.base)
    return config.model_copy(update={"task": task.model_copy(update=rows), "reference": reference, "base": base})


def train_job(config: LanguageTraining | TaskTraining) -> TrainJob:
    """What a ``train`` file asks for. Raises: DataError for training rows with fewer than two labels."""
    folder = Path(config.folder)
    task: Task
    below: tuple[str, ...] = ()
    if isinstance(config, TaskTraining):
        rows = _placed(folder, config.train)
        task = Classification(
            name=config.name,
            labels=_labels(config.labels, rows, config.language, "train"),
            words=config.words,
            prompt=config.prompt,
            max_length=config.max_length,
        )
        below = tuple(str((folder / path).absolute()) for path in config.below)
    else:
        rows = _placed(folder, config.text)
        task = LanguageModeling(segment=config.segment, segments=config.segments, mask_rate=config.mask_rate)
    return TrainJob(
        base=_placed_base(folder, config.base),
        structure=config.structure,
        task=task,
        language=config.language,
        rows=rows,
        optimisation=config.optimisation,
        seed=config.seed,
        below=below,
    )


def _placed(folder: Path, rows: Placed) -> Placed:
    if rows is None or rows.path is None:
        return rows
    return rows.model_copy(update={"path": str((folder / rows.path).absolute())})


def _placed_base(folder: Path, base: str) -> str:
    return str((folder / base).absolute()) if (folder / base).is_dir() else base


def _labels(given: tuple[str, ...] | None, rows: Rows, language: str, setting: str) -> tuple[str, ...]:
    from adamergex.data import read

    if given is not None:
        return given
    labels = tuple(sorted({str(row["label"]) for row in read(rows, language) if "label" in row}))
    if len(labels) < 2:
        raise DataError(
            "the training rows have fewer than two labels",
            where=rows.path or rows.hub,
            found=list(labels),
            fix=f"check {setting} and its column mapping",
        )
    return labels


def facts(config: TransferConfig, languages: Iterable[str] | None = None) -> Facts:
    """What the model and the data say: hash of the base, labels, how much text every language has.

    ``languages``: those whose references are compared; default: the table's own.
    """
    from adamergex.data import data_hash
    from adamergex.models import base_sha256

    labels = _labels(config.task.labels, config.task.train, config.source, "task.train")
    content = lru_cache(maxsize=None)(lambda text, language: data_hash(Rows.model_validate_json(text), language))
    return Facts(
        base_sha256=base_sha256(config.base),
        labels=labels,
        segments=_segments(config, languages),
        content=lambda rows, language: content(rows.model_dump_json(), language),
    )


def languages_of(config: TransferConfig) -> tuple[str, ...]:
    """The languages whose references a table may need: source, targets, proxy."""
    return tuple(dict.fromkeys((config.source, *config.targets, *([config.proxy] if config.proxy else []))))


def _segments(config: TransferConfig, languages: Iterable[str] | None) -> int | None:
    """As many segments as the language with the least text has: the reference task must be the same everywhere."""
    if config.reference.segments is not None or not needs_references(config):
        return config.reference.segments
    from adamergex.data import read
    from adamergex.models import family, load_config, tokenizer
    from adamergex.tasks.language_modeling import count_segments

    pieces, masked = tokenizer(config.base), family(load_config(config.base)) != "decoder"
    chosen = dict.fromkeys(languages or languages_of(config))
    texts = {language: [row["text"] for row in read(config.reference.text, language)] for language in chosen}
    segment = config.reference.segment
    counts = {name: count_segments(text, pieces, segment, masked=masked) for name, text in texts.items()}
    if min(counts.values()) < 1:
        raise DataError(
            "too little text for one segment",
            where=config.reference.text.path or config.reference.text.hub,
            found=f"segments of {segment} pieces: {counts}",
            fix="give more text or a smaller reference.segment",
        )
    return min(counts.values())


def needs_references(config: TransferConfig) -> bool:
    """Whether a method of the table trains adapters on the reference task."""
    return config.merges or "average" in config.methods


class Plan:
    """The steps of a whole table: an evaluation for every method, language and seed, and the searches of λ."""

    def __init__(self, config: TransferConfig, known: Facts) -> None:
        self.config = config
        self.adapters: dict[tuple[str, str, int], Stack] = {}
        self.evaluations: dict[tuple[str, str, int], Step] = {}
        self.tunings: dict[tuple[str, int], Step] = {}
        for seed in config.seeds:
            for method in config.methods:
                for language in config.targets:
                    self._add(method, Experiment(config, known, language, seed))

    def _add(self, method: str, x: Experiment) -> None:
        cell = (method, x.target, x.seed)
        stack = x.adapter(RECIPES[method].build)
        self.adapters[cell] = stack
        self.evaluations[cell] = x.evaluate(stack, x.target)
        if stack and "weight" in stack[-1].inputs:
            self.tunings[method, x.seed] = stack[-1].inputs["weight"]

    @property
    def wanted(self) -> list[Step]:
        merged = [step for stack in self.adapters.values() for step in stack]
        return [*self.evaluations.values(), *self.tunings.values(), *merged, *self.trainings]

    @property
    def trainings(self) -> list[Step]:
        found: dict[str, Step] = {}

        def visit(step: Step) -> None:
            if step.kind == "train":
                found[step.key] = step
            for other in step.inputs.values():
                visit(other)

        for stack in (*self.adapters.values(), tuple(self.tunings.values())):
            for step in stack:
                visit(step)
        return list(found.values())
