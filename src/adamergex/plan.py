"""Settings -> steps: what must be trained, tuned, merged and evaluated for a whole table."""

from __future__ import annotations

from pathlib import Path

from adamergex.config import TransferConfig
from adamergex.errors import DataError
from adamergex.graph import Step
from adamergex.recipes import RECIPES, Experiment, Facts
from adamergex.settings import AnyRows, Rows, Task


def absolute(config: TransferConfig) -> TransferConfig:
    """The settings with paths that no longer depend on the settings file's folder."""
    folder = Path(config.folder)

    def placed(rows: Rows | None) -> Rows | None:
        if rows is None or rows.path is None:
            return rows
        return rows.model_copy(update={"path": str((folder / rows.path).absolute())})

    reference = config.reference.model_copy(update={"text": placed(config.reference.text)})
    base = str((folder / config.base).absolute()) if (folder / config.base).is_dir() else config.base
    return config.model_copy(update={"task": config.task.placed(folder), "reference": reference, "base": base})


def facts(config: TransferConfig) -> Facts:
    """What the model and the data say: hash of the base, labels, how much text every language has."""
    from adamergex.data import content_hash
    from adamergex.models import base_sha256
    from adamergex.tasks import kinds
    from adamergex.tasks.rows import read

    task = config.task.task(_labels(config) if config.task.open_labels else ())
    for bare in {method == "vanilla" for method in config.methods}:
        kinds.model_kind(task, config.base, bare=bare)  # before anything is trained
    known: dict[str, str] = {}

    def content(task: Task, rows: AnyRows, language: str) -> str:
        place = f"{task.kind} {language} {rows.model_dump_json()}"
        if place not in known:
            known[place] = content_hash(read(task, rows, language))
        return known[place]

    return Facts(base_sha256=base_sha256(config.base), task=task, segments=_segments(config), content=content)


def _labels(config: TransferConfig) -> tuple[str, ...]:
    """The labels, or entity types, of the training rows."""
    from adamergex.tasks.rows import labels_of, read, source

    rows, open_task = config.task.rows("train"), config.task.task(())
    assert rows is not None  # every task is trained on something
    labels = labels_of(open_task, read(open_task, rows, config.source))
    if len(labels) < (1 if open_task.kind == "tagging" else 2):
        raise DataError(
            "the training rows have fewer than two labels",
            where=source(rows, config.source),
            found=list(labels),
            fix="check task.train and its column mapping",
        )
    return labels


def _segments(config: TransferConfig) -> int | None:
    """As many segments as the language with the least text has: the reference task must be the same everywhere."""
    if config.reference.segments is not None or not _needs_references(config):
        return config.reference.segments
    from adamergex.data import read
    from adamergex.models import family, load_config, tokenizer
    from adamergex.tasks.language_modeling import count_segments

    pieces, masked = tokenizer(config.base), family(load_config(config.base)) != "decoder"
    languages = dict.fromkeys((config.source, *config.targets, *([config.proxy] if config.proxy else [])))
    texts = {language: [row["text"] for row in read(config.reference.text, language)] for language in languages}
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


def _needs_references(config: TransferConfig) -> bool:
    return any(method not in ("vanilla", "english_tuning") for method in config.methods)


class Plan:
    """The steps of a whole table: an evaluation for every method, language and seed, and the searches of λ."""

    def __init__(self, config: TransferConfig, known: Facts) -> None:
        self.config = config
        self.metric = known.task.metric
        self.adapters: dict[tuple[str, str, int], Step | None] = {}
        self.evaluations: dict[tuple[str, str, int], Step] = {}
        self.tunings: dict[tuple[str, int], Step] = {}
        for seed in config.seeds:
            for method in config.methods:
                for language in config.targets:
                    self._add(method, Experiment(config, known, language, seed))

    def _add(self, method: str, x: Experiment) -> None:
        cell = (method, x.target, x.seed)
        adapter = x.adapter(RECIPES[method].build)
        self.adapters[cell] = adapter
        self.evaluations[cell] = x.evaluate(adapter, x.target)
        if adapter is not None and "weight" in adapter.inputs:
            self.tunings[method, x.seed] = adapter.inputs["weight"]

    @property
    def wanted(self) -> list[Step]:
        merged = [step for step in self.adapters.values() if step is not None]
        return [*self.evaluations.values(), *self.tunings.values(), *merged, *self.trainings]

    @property
    def trainings(self) -> list[Step]:
        found: dict[str, Step] = {}

        def visit(step: Step) -> None:
            if step.kind == "train":
                found[step.key] = step
            for other in step.inputs.values():
                visit(other)

        for adapter in (*self.adapters.values(), *self.tunings.values()):
            if adapter is not None:
                visit(adapter)
        return list(found.values())
