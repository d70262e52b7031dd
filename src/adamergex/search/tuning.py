"""The search for λ: the three adapters stay in memory and A(λ) is made on the loaded model; only the table is written.

λ = 0 is Eng-FT (but in a prefix's literal form) and always in the grid; of equal scores the smallest λ wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from adamergex.adapters import loaded_adapter
from adamergex.adapters.labels import require_labels
from adamergex.backbones.loading import quiet
from adamergex.errors import ConfigError
from adamergex.evaluation import load_for, predict, score
from adamergex.files.directory import TensorReader
from adamergex.files.records import Point, Search
from adamergex.merging import merged_tensors
from adamergex.merging.checks import Adapter
from adamergex.merging.merge import delta_merge, reranked
from adamergex.merging.prepare import PAPER, MergeSpec, Prepared, prepare
from adamergex.search.weight_choice import answers_of, best, written
from adamergex.tasks.rows import read

if TYPE_CHECKING:
    from adamergex.backbones.loading import Loaded
    from adamergex.jobs.settings import EvaluateJob

Tensors = dict[str, torch.Tensor]


class Candidate(NamedTuple):
    """A(λ) in memory: what its adapter_config.json and its tensors would be."""

    weight: float
    config: Mapping[str, Any]
    tensors: Tensors


def tune(
    *,
    task: Path | str,
    target_reference: Path | str,
    source_reference: Path | str | None = None,
    job: EvaluateJob,
    grid: Iterable[float],
    spec: MergeSpec = PAPER,
    output: Path | str | None = None,
    backbone: Loaded | None = None,
    watch: Callable[[float, list[dict[str, Any]]], None] | None = None,
    answers: bool = False,
) -> Search:
    """Score A(λ) on ``job``'s rows for every λ of the grid, and choose.

    The search, also written to ``output``/tuning.json: ``chosen``, and ``curve``, the task's metric in percent with its
    95 % interval, by growing λ. A(λ) is what ``merging.merge`` would write.
    ``watch`` is called with each λ and its predictions (see ``evaluation.predict``). ``answers``: write answers.json
    too, from which ``weight_choice.choose`` takes the λ of several languages.
    Raises: as ``merging.merge`` and ``evaluation.evaluate``.
    """
    prepared = prepare(spec, task=task, target_reference=target_reference, source_reference=source_reference)
    rows = read(job.task, job.rows, job.language)
    curve: list[Point] = []
    kept: list[tuple[float, list[dict[str, Any]]]] = []
    with quiet():
        loaded = load_for(job, bare=False) if backbone is None else backbone
        with closing(on_model(prepared, grid, loaded)) as steps:
            for weight, placed in steps:
                predictions = predict(job, loaded, placed.model, rows).items
                if watch is not None:
                    watch(weight, predictions)
                if answers:
                    kept.append((weight, predictions))
                scored = score(predictions)
                curve.append(Point(weight=weight, score=scored.score, interval=scored.interval))
    search = Search(chosen=best(curve), curve=curve, metric=job.task.metric, language=job.language, n=len(rows))
    return written(search, output, answers_of(kept) if answers else None)


def on_model(
    prepared: Prepared, grid: Iterable[float], loaded: Loaded
) -> Generator[tuple[float, loaded_adapter.LoadedAdapter], None, None]:
    """Every λ of ``candidates`` with A(λ) on the loaded model, which is given back when the generator is closed."""
    placed, config, task = None, None, prepared.own.layout.directory.path
    require_labels(loaded.model, task)
    try:
        for candidate in candidates(prepared, grid):
            if placed is None or candidate.config != config:
                # Other ranks need other modules; all λ but 0 share theirs.
                if placed is not None:
                    placed.detach()
                placed, config = None, candidate.config
                placed = loaded_adapter.place(
                    loaded.model, config, candidate.tensors, where=task, new_modules=loaded.new_modules
                )
            else:
                placed.replace(candidate.tensors, where=task)
            yield candidate.weight, placed
    finally:
        if placed is not None:
            placed.detach()


def candidates(prepared: Prepared, grid: Iterable[float]) -> Iterator[Candidate]:
    """A(λ) for λ = 0 and every λ of the grid, each once, growing."""
    weights = sorted({0.0, *map(float, grid)})
    if not all(map(math.isfinite, weights)):
        raise ConfigError("a weight of the grid is not a finite number", where="grid", found=weights)
    make = _delta_candidates if prepared.spec.space == "delta" else _factor_candidates
    yield from make(prepared, weights)


class Widened(NamedTuple):
    """The tensors of task, target and source reference (if any) as wide as they are merged, and the task's dtypes."""

    tensors: tuple[Tensors, Tensors, Tensors | None]
    dtypes: Mapping[str, torch.dtype]


def widened(adapters: list[Adapter]) -> Widened:
    """All tensors in float32, or float64 where they are stored so."""
    stored = [loaded_adapter.read_tensors(adapter.layout.directory.path) for adapter in adapters]
    dtypes = {name: tensor.dtype for name, tensor in stored[0].items()}
    # A prefix is computed in float64, so a wider copy would only be rounded twice.
    kept = (torch.float64,) if not adapters[0].layout.structure.whole else tuple(set(dtypes.values()))
    task, target, *rest = (
        {name: tensor if tensor.dtype in kept else tensor.float() for name, tensor in tensors.items()}
        for tensors in stored
    )
    return Widened((task, target, rest[0] if rest else None), dtypes)


def _factor_candidates(prepared: Prepared, weights: list[float]) -> Iterator[Candidate]:
    """A(λ) tensor by tensor, in float32, rounded once to the stored dtype: the bytes that a merge would write."""
    own, spec = prepared.own, prepared.spec
    (task, target, source), dtypes = widened(prepared.adapters)
    for weight in weights:
        merged = merged_tensors(
            task,
            target,
            source,
            weight,
            kind=own.layout.kind,
            rule=spec.rule,
            modules=spec.modules,
            layers=own.layout.settings.get("num_layers"),
            span=spec.span,
            form=spec.form,
            settings=spec.settings,
        )
        rounded = {name: tensor.to(dtypes[name]) for name, tensor in merged.items()}
        yield Candidate(weight, own.layout.directory.config, rounded)


def _delta_candidates(prepared: Prepared, weights: list[float]) -> Iterator[Candidate]:
    """A(λ) as concatenated (with ``rank``: truncated) factors of every chosen module."""
    layout = prepared.own.layout
    tensors = loaded_adapter.read_tensors(layout.directory.path)
    with ExitStack() as stack:
        (task, _), *others = (
            (stack.enter_context(TensorReader(adapter.layout.directory)), adapter.layout)
            for adapter in prepared.adapters
        )
        for weight in weights:
            merged: Tensors = dict(tensors)
            merger = delta_merge(prepared, weight, task, others)
            for module in sorted(prepared.chosen):
                factors, site = merger.factors(module), layout.sites[module]
                for role, values in (("lora_A", factors.A), ("lora_B", factors.B)):
                    name = site.tensors[role].name
                    contents = torch.from_numpy(np.ascontiguousarray(values))
                    merged[name] = contents.float().to(tensors[name].dtype)
            yield Candidate(weight, reranked(layout, merger.shapes), merged)
