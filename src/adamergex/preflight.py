"""What is known before anything is trained: whether model, tokenizer, text and structure of each training fit.

The weights are not loaded: the architecture alone tells positions, layers and modules, and a few rows tell the rest.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from adamergex.adapters import prefix, sites
from adamergex.adapters.places import find_places
from adamergex.errors import ConfigError, NothingMergedError
from adamergex.graph import Step
from adamergex.merging.layers import Swap, numbered
from adamergex.merging.select import select
from adamergex.models import Loaded, longest_input, skeleton
from adamergex.settings import LanguageModeling, Structure, TrainJob
from adamergex.tasks import kinds
from adamergex.tasks.rows import read, source

ROWS = 64
"""Labelled rows that are tried; all of them were read and their labels checked before."""


def require_trainable(steps: Iterable[Step]) -> None:
    """That every training and merge among the steps can begin.

    Raises: ConfigError, DataError, ModelError: a segment longer than the model, too little text, modules or layers that
        do not exist, a tokenizer that is missing or has no mask, an expression that is none, …
    """
    tried: set[str] = set()
    for step in steps:
        if step.kind == "train":
            job = TrainJob.model_validate({**step.job, "below": ()})
            seedless = job.model_copy(update={"seed": 0}).model_dump_json()
            if seedless not in tried:
                tried.add(seedless)
                require_job(job)
        elif step.kind in ("merge", "tune"):
            _require_selection(step)


def require_job(job: TrainJob) -> None:
    """That a training can begin, as far as its architecture, tokenizer and first rows tell. Raises: see above."""
    loaded = _skeleton(job)
    if loaded is None:
        return
    with _on_skeleton():
        _require_structure(loaded, job.structure)
    taken = job.structure.virtual_tokens if job.structure.kind == "prefix" else 0
    longest = longest_input(loaded.model, loaded.tokenizer)
    if taken >= longest:
        raise ConfigError(
            "the prefix leaves no room for text",
            where="structure.virtual_tokens",
            found=taken,
            expected=f"fewer than the {longest:,} positions of {job.base}",
            fix="lower virtual_tokens",
        )
    task, rows = job.task, job.rows
    if isinstance(task, LanguageModeling):
        task = task if task.segments is not None else task.model_copy(update={"segments": 1})
    else:
        rows = rows.model_copy(update={"limit": min(rows.limit or ROWS, ROWS)})
    found = read(task, rows, job.language)
    with _on_skeleton():
        kinds.examples(task, found, loaded, where=source(rows, job.language), seed=job.seed, taken=taken)


def modules_of(job: TrainJob) -> tuple[str, ...]:
    """The modules that a LoRA or (IA)³ adapter of a job is in; of other structures, or where unknown: none."""
    loaded = _skeleton(job) if job.structure.kind in ("lora", "ia3") else None
    if loaded is None:
        return ()
    pattern = re.compile(sites.targets(loaded.model, job.structure).modules)
    return tuple(name for name, _ in loaded.model.named_modules() if pattern.fullmatch(name))


def _skeleton(job: TrainJob) -> Loaded | None:
    kind, needed = kinds.model_kind(job.task, job.base), kinds.kind_of(job.task)
    labels = needed.classes(job.task) if kind == needed.head else None
    try:
        return _cached(job.base, kind, None if labels is None else tuple(labels))
    except (NotImplementedError, RuntimeError, AttributeError, TypeError):
        return None  # an architecture that cannot be built without weights is checked when it is loaded


@functools.lru_cache(maxsize=4)
def _cached(base: str, kind: Any, labels: tuple[str, ...] | None) -> Loaded:
    return skeleton(base, kind, labels)


@contextlib.contextmanager
def _on_skeleton() -> Iterator[None]:
    """What only real weights can answer is not asked here."""
    with contextlib.suppress(NotImplementedError):
        yield


def _require_structure(loaded: Loaded, structure: Structure) -> None:
    if structure.kind in ("lora", "ia3"):
        sites.targets(loaded.model, structure)
    elif structure.kind == "prefix":
        prefix.shape(loaded.model)
    elif structure.kind == "bottleneck":
        layers = len(find_places(loaded.model).layers)
        if not set(structure.leave_out) < set(range(layers)):
            raise ConfigError(
                "these layers cannot be left out",
                where="leave_out",
                found=list(structure.leave_out),
                expected=f"some of the model's layers 0 to {layers - 1}, not all",
                fix="correct leave_out",
            )


def _require_selection(step: Step) -> None:
    """Raises: ConfigError, NothingMergedError for a merge of modules, or a swap of layers, that the adapter lacks."""
    job = step.job.get("merge", step.job)
    task = step.inputs["task"]
    if task.kind != "train":
        return
    names = modules_of(TrainJob.model_validate({**task.job, "below": ()}))
    modules, weight = job.get("modules"), job.get("weight")
    if modules is not None:
        try:
            select(names or ["x"], modules)
        except NothingMergedError:
            if names:  # else only the expression itself was tried
                raise
    if names and isinstance(weight, dict):
        Swap(**weight).weights(numbered(names)[1])
