"""The search for λ: the three adapters stay in memory and A(λ) is made on the loaded model; only the table is written.

λ = 0 is Eng-FT (but in a prefix's literal form) and always in the grid; of equal scores the smallest λ wins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from adamergex.adapters import resident
from adamergex.adapters.labels import require_labels
from adamergex.backbones.loading import quiet
from adamergex.errors import ConfigError
from adamergex.evaluation import load_for, predict, score
from adamergex.files import lineage
from adamergex.files.directory import AdapterDirectory, TensorReader
from adamergex.files.outputs import staged_directory
from adamergex.files.records import ANSWERS, TUNING, Point
from adamergex.merging import Rule, delta, merged_tensors, rule_for, select
from adamergex.merging.arguments import require_space
from adamergex.merging.checks import Adapter, require_fitting, require_references, require_same_start
from adamergex.merging.select import default_selection
from adamergex.merging.stream_delta import load as load_factors
from adamergex.search.weight_choice import answers_of, best
from adamergex.structures.layout import layout
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
    rule: str = "adaptive",
    space: str | None = "factors",
    modules: str | None = None,
    rank: int | None = None,
    span: str | None = None,
    form: str | None = None,
    output: Path | str | None = None,
    backbone: Loaded | None = None,
    allow_different_start: bool = False,
    watch: Callable[[float, list[dict[str, Any]]], None] | None = None,
    answers: bool = False,
) -> dict[str, Any]:
    """Score A(λ) on ``job``'s rows for every λ of the grid, and choose.

    Returns, and writes to ``output``/tuning.json, ``{"chosen": λ, "curve": [{"weight", "score", "interval"}, …]}``:
    the task's metric in percent with its 95 % interval, by growing λ. A(λ) is what ``merging.merge`` would
    write.
    ``watch`` is called with each λ and its predictions (see ``evaluation.predict``). ``answers``: write answers.json
    too, from which ``weight_choice.choose`` takes the λ of several languages.
    Raises: as ``merging.merge`` and ``evaluation.evaluate``.
    """
    adapters = opened(task, target_reference, source_reference)
    rows = read(job.task, job.rows, job.language)
    curve = []
    kept: list[tuple[float, list[dict[str, Any]]]] = []
    with quiet():
        loaded = load_for(job, bare=False) if backbone is None else backbone
        kind = adapters[0].layout.kind
        choices = Choices(rule_for(rule, kind), rule, space or "factors", modules, rank, span, form)
        require_mergeable(adapters, choices, allow_different_start)
        with closing(on_model(adapters, choices, grid, loaded, task)) as steps:
            for weight, placed in steps:
                predictions = predict(job, loaded, placed.model, rows).items
                if watch is not None:
                    watch(weight, predictions)
                if answers:
                    kept.append((weight, predictions))
                found, metric = score(predictions, job.task.metric), job.task.metric
                curve.append({"weight": weight, "score": found[metric], "interval": found["interval"]})
    result = {
        "chosen": best([Point.model_validate(point) for point in curve]),
        "curve": curve,
        "metric": job.task.metric,
        "language": job.language,
    }
    result["n"] = len(rows)
    if output is not None:
        with staged_directory(output) as stage:
            (stage / TUNING).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            if answers:
                (stage / ANSWERS).write_text(json.dumps(answers_of(kept)) + "\n", encoding="utf-8")
    return result


def on_model(
    adapters: list[Adapter], choices: Choices, grid: Iterable[float], loaded: Loaded, task: Path | str
) -> Generator[tuple[float, resident.Resident], None, None]:
    """Every λ of ``candidates`` with A(λ) on the loaded model, which is given back when the generator is closed."""
    placed, config = None, None
    require_labels(loaded.model, Path(task))
    try:
        for candidate in candidates(adapters, choices, grid):
            if placed is None or candidate.config != config:
                # Other ranks need other modules; all λ but 0 share theirs.
                if placed is not None:
                    placed.detach()
                placed, config = None, candidate.config
                placed = resident.place(loaded.model, config, candidate.tensors, where=task, fresh=loaded.fresh)
            else:
                placed.replace(candidate.tensors, where=task)
            yield candidate.weight, placed
    finally:
        if placed is not None:
            placed.detach()


class Choices(NamedTuple):
    """How A(λ) is made; see ``merging.merge``."""

    rule: Rule
    rule_name: str
    space: str
    modules: str | None
    rank: int | None
    span: str | None = None
    form: str | None = None


def candidates(adapters: list[Adapter], choices: Choices, grid: Iterable[float]) -> Iterator[Candidate]:
    """A(λ) for λ = 0 and every λ of the grid, each once, growing."""
    weights = sorted({0.0, *map(float, grid)})
    if not all(map(math.isfinite, weights)):
        raise ConfigError("a weight of the grid is not a finite number", where="grid", found=weights)
    make = _delta_candidates if choices.space == "delta" else _factor_candidates
    yield from make(adapters, choices, weights)


class Widened(NamedTuple):
    """The tensors of task, target and source reference (if any) as wide as they are merged, and the task's dtypes."""

    tensors: tuple[Tensors, Tensors, Tensors | None]
    dtypes: Mapping[str, torch.dtype]


def widened(adapters: list[Adapter]) -> Widened:
    """All tensors in float32, or float64 where they are stored so."""
    stored = [resident.read_tensors(adapter.layout.directory.path) for adapter in adapters]
    dtypes = {name: tensor.dtype for name, tensor in stored[0].items()}
    # A prefix is computed in float64, so a wider copy would only be rounded twice.
    kept = (torch.float64,) if not adapters[0].layout.structure.whole else tuple(set(dtypes.values()))
    task, target, *rest = (
        {name: tensor if tensor.dtype in kept else tensor.float() for name, tensor in tensors.items()}
        for tensors in stored
    )
    return Widened((task, target, rest[0] if rest else None), dtypes)


def _factor_candidates(adapters: list[Adapter], choices: Choices, weights: list[float]) -> Iterator[Candidate]:
    """A(λ) tensor by tensor, in float32, rounded once to the stored dtype: the bytes that a merge would write."""
    own = adapters[0]
    (task, target, source), dtypes = widened(adapters)
    for weight in weights:
        merged = merged_tensors(
            task,
            target,
            source,
            weight,
            kind=own.layout.kind,
            rule=choices.rule_name,
            modules=choices.modules,
            layers=own.layout.settings.get("num_layers"),
            span=choices.span,
            form=choices.form,
        )
        rounded = {name: tensor.to(dtypes[name]) for name, tensor in merged.items()}
        yield Candidate(weight, own.layout.directory.config, rounded)


def _delta_candidates(adapters: list[Adapter], choices: Choices, weights: list[float]) -> Iterator[Candidate]:
    """A(λ) as concatenated (with ``rank``: truncated) factors of every chosen module."""
    own, *others = adapters
    averaging = not choices.rule.needs_source
    chosen = select(own.layout.sites, choices.modules or default_selection(own.layout.kind, choices.rule))
    tensors = resident.read_tensors(own.layout.directory.path)
    factors = {module: [_factors(adapter, module) for adapter in adapters] for module in sorted(chosen)}
    differences = {
        module: delta.difference(target, rest[0] if rest and len(others) > 1 else None)
        for module, (_, target, *rest) in factors.items()
    }
    for weight in weights:
        merged: Tensors = dict(tensors)
        shapes = {module: (site.rank, site.scaling) for module, site in own.layout.sites.items()}
        for module, (task, *_) in factors.items():
            site = own.layout.sites[module]
            result = _combined(task, differences[module], weight, averaging)
            limit = min(site.tensors["lora_A"].shape[1], site.tensors["lora_B"].shape[0])
            if choices.rank is not None and min(choices.rank, limit) < result.rank:
                result, _ = delta.truncate(result, min(choices.rank, limit))
            shapes[module] = (result.rank, result.scaling)
            for role, values in (("lora_A", result.A), ("lora_B", result.B)):
                name = site.tensors[role].name
                contents = torch.from_numpy(np.ascontiguousarray(values))
                merged[name] = contents.float().to(tensors[name].dtype)
        yield Candidate(weight, _ranked(own, shapes), merged)


def _combined(task: delta.Factors, difference: delta.Factors, weight: float, averaging: bool) -> delta.Factors:
    if weight == 0.0 or (not averaging and delta.vanishes(difference)):
        return task
    return delta.combine(task, difference, 1.0 - weight if averaging else 1.0, weight)


def _ranked(own: Adapter, shapes: dict[str, tuple[int, float]]) -> Mapping[str, Any]:
    config = own.layout.directory.config
    if all((site.rank, site.scaling) == shapes[module] for module, site in own.layout.sites.items()):
        return config
    return delta.with_ranks(dict(config), shapes)


def _factors(adapter: Adapter, module: str) -> delta.Factors:
    with TensorReader(adapter.layout.directory) as reader:
        return load_factors(reader, adapter.layout.sites[module])


def opened(task: Path | str, target: Path | str, source: Path | str | None) -> list[Adapter]:
    roles = {"task": task, "target reference": target, "source reference": source}
    return [
        Adapter(role, layout(AdapterDirectory.open(path)), lineage.read(path))
        for role, path in roles.items()
        if path is not None
    ]


def require_mergeable(adapters: list[Adapter], choices: Choices, allow_different_start: bool) -> None:
    """What ``merge`` checks, before any time is spent on scoring."""
    own, target, *rest = adapters
    kind = own.layout.kind
    if choices.rule.needs_source and not rest:
        raise ConfigError("the rule needs a source reference", where="source_reference", found="none")
    if choices.space not in ("factors", "delta"):
        raise ConfigError("there is no such space", where="space", found=choices.space, expected="factors or delta")
    if choices.space == "delta" and (not own.layout.structure.low_rank or choices.rule.name == "multiplicative"):
        raise ConfigError(
            "delta space is for LoRA with an additive rule",
            where="space",
            found=f"{kind}, rule {choices.rule.name}",
            fix="use space factors",
        )
    require_space(own, choices.rule, choices.space)
    require_references(target, rest[0] if rest else None, own)
    require_fitting(adapters, choices.space)
    if choices.space == "factors":
        require_same_start(adapters, allow_different_start)
