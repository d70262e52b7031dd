"""Checks before training: every training of a plan is tried on the model's outline, without weights, and every merge on
the names of its modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from adamergex.adapters import loaded_adapter
from adamergex.adapters.heads import head_modules
from adamergex.backbones.chat import in_chat
from adamergex.backbones.loading import HEADS, head_input, outline
from adamergex.graph.steps import Step
from adamergex.jobs.merge import MergeJob, SwapConfig
from adamergex.jobs.settings import LanguageModeling, Structure, TrainJob
from adamergex.merging.layers import Swap, numbered
from adamergex.merging.select import select
from adamergex.structures import kind_named
from adamergex.tasks import running
from adamergex.tasks.kinds import kind_of
from adamergex.tasks.rows import read, source
from adamergex.training.accumulation import checkpointed, require_divisible
from adamergex.training.numerics import require_attention
from adamergex.training.probe import last_layer, require_every_label
from adamergex.training.train import require_room

if TYPE_CHECKING:
    from adamergex.backbones.loading import Loaded

    Outlines = dict[tuple[str, str, tuple[str, ...], str], Loaded | None]


_TRIED = {"attention", "head_start", "accumulation", "batch_tokens", "checkpointing"}
"""Settings of a training that a model or a task may not be able to do."""
ROWS = 64
"""Labelled rows to try; the plan has already read all rows and checked their labels."""


def require_possible(steps: Iterable[Step]) -> None:
    """Raises: ModelError, ConfigError, DataError, NothingMergedError: any error that a step would raise only after
    other steps, such as a segment longer than the model, too little text, or modules and layers that do not exist."""
    outlines: Outlines = {}
    tried: set[str] = set()
    for step in steps:
        trained = step if step.kind == "train" else step.inputs.get("task") if step.kind == "merge" else None
        if trained is None or not isinstance(trained.job, TrainJob):
            continue
        job = trained.job
        loaded = _outlined(job, outlines)
        chosen = job.optimisation.model_dump(include=_TRIED)
        known = f"{job.base} {job.structure} {job.task} {job.rows} {job.language} {chosen}"
        if loaded is None:
            continue
        if isinstance(step.job, MergeJob):
            _require_mergeable(step.job, job.structure, loaded)
        elif known not in tried:
            tried.add(known)
            _require_trainable(job, loaded)


def require_job(job: TrainJob) -> None:
    """Check that one training can start. Raises: as ``require_possible``."""
    if (loaded := _outlined(job, {})) is not None:
        _require_trainable(job, loaded)


def _outlined(job: TrainJob, outlines: Outlines) -> Loaded | None:
    kind, record = running.model_kind(job.task, job.base), kind_of(job.task)
    labels = tuple(record.outputs(job.task) or ()) if kind == record.head else ()
    head = head_input(job.base, getattr(job.task, "head", "cls")) if kind == record.head else "cls"
    key = (job.base, kind, labels, head)
    if key not in outlines:
        outlines[key] = outline(job.base, kind, labels or None, head)
    return outlines[key]


def _require_trainable(job: TrainJob, loaded: Loaded) -> None:
    _modules(job.structure, loaded)
    require_attention(loaded.model, job.optimisation.attention)
    with checkpointed(loaded.model, job):
        pass
    task, taken = job.task, require_room(job, loaded)
    if getattr(task, "chat", False):
        in_chat(loaded.tokenizer, "?")
    if isinstance(task, LanguageModeling):
        wanted = task if task.segments is not None else task.model_copy(update={"segments": 1})
        running.train_examples(wanted, read(task, job.rows, job.language), loaded, where=f"the text of {job.language}",
                       seed=job.seed, taken=taken)  # fmt: skip
        return
    few = job.rows.model_copy(update={"limit": min(job.rows.limit or ROWS, ROWS), "sample": None})
    if job.optimisation.head_start == "probe":
        few = job.rows  # a probe needs every label
        names = head_modules(loaded.model, ()) if loaded.kind in HEADS else []
        modules = [loaded.model.get_submodule(name) for name in names]
        last_layer(modules, int(loaded.model.config.num_labels or 0), type(loaded.model).__name__)
    rows, where = read(task, few, job.language), source(few, job.language)
    examples = running.train_examples(task, rows, loaded, where=where, taken=taken)
    require_divisible(job.optimisation, examples)
    if job.optimisation.head_start == "probe":
        require_every_label(job, examples)


def _require_mergeable(job: MergeJob, structure: Structure, loaded: Loaded) -> None:
    names = _modules(structure, loaded)
    if names and isinstance(job.weight, SwapConfig):
        Swap(**dict(job.weight)).weights(numbered(names)[1])
    if names and job.modules:
        select(names, job.modules)


def _modules(structure: Structure, loaded: Loaded) -> list[str]:
    """The names of an adapter's modules, if known without an adapter. Raises: ModelError, ConfigError."""
    return loaded_adapter.backend(kind_named(structure.kind)).modules(loaded.model, structure)
