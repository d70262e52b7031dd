"""λ without labels: the one, or the one a layer, under which the predictions for unlabelled inputs are most certain.

Source: AdaMerging (2310.02575), section 3.2, whose coefficients of task vectors are here the weight of a divergence.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from adamergex import statistics
from adamergex.adapters import loaded_adapter
from adamergex.backbones.loading import quiet
from adamergex.errors import ConfigError
from adamergex.evaluation import load_for
from adamergex.files.records import Point, Search
from adamergex.merging import merged_tensors
from adamergex.merging.layers import numbered, spread
from adamergex.merging.prepare import PAPER, MergeSpec, Prepared, prepare
from adamergex.search.tuning import on_model, widened
from adamergex.search.weight_choice import written
from adamergex.tasks.certainty import Unlabelled
from adamergex.tasks.rows import read, source

if TYPE_CHECKING:
    from adamergex.backbones.loading import Loaded
    from adamergex.jobs.settings import EvaluateJob

STEPS = 30
"""Steps of the descent over layers: Adam, projected to [0, 1], its rate falling linearly from ``RATE`` to 0."""
RATE = 0.1


def minimise(
    *,
    task: Path | str,
    target_reference: Path | str,
    source_reference: Path | str | None = None,
    job: EvaluateJob,
    grid: Iterable[float],
    granularity: Literal["all", "layer"] = "all",
    spec: MergeSpec = PAPER,
    output: Path | str | None = None,
    backbone: Loaded | None = None,
) -> Search:
    """The λ in [0, 1] that minimises the mean entropy of A(λ)'s predictions for ``job``'s rows, labels never read.

    One λ: the best of the grid, of equal ones the smallest. One a ``layer`` (factors; not of a prefix): from the best
    one λ down the gradient dH/dλ_l = Σ ⟨dH/dA, dA/dλ_l⟩ over the tensors of layer l. Deterministic.
    The search, also written to ``output``/tuning.json: its ``curve`` and ``reached`` hold entropies in percent of the
    largest, ln(classes); with a λ per layer (``layers``) ``chosen`` is their mean.
    Raises: as ``tuning.tune``; ConfigError for a grid beyond [0, 1], or a λ per layer where there can be none.
    """
    weights = sorted({0.0, *map(float, grid)})
    if not 0 <= weights[0] <= weights[-1] <= 1:
        raise ConfigError("entropy is minimised over λ in [0, 1]", where="grid", found=weights)
    prepared = prepare(spec, task=task, target_reference=target_reference, source_reference=source_reference)
    structure = prepared.own.layout.structure
    if granularity == "layer" and (prepared.spec.space != "factors" or structure.whole or prepared.rule.function):
        raise ConfigError(
            "a λ per layer is for the factors of LoRA, (IA)³ and bottlenecks",
            where="granularity",
            found=f"{structure.name}, rule {prepared.rule.name}, space {prepared.spec.space}",
            fix="use granularity all",
        )
    rows = read(job.task, job.rows, job.language, labelled=False)
    curve: list[Point] = []
    layers, reached = None, None
    with quiet():
        loaded = load_for(job, bare=False) if backbone is None else backbone
        with closing(on_model(prepared, weights, loaded)) as steps:
            inputs: Unlabelled | None = None
            for weight, placed in steps:
                placed.model.eval()
                if inputs is None:
                    inputs = Unlabelled(job.task, rows, loaded, placed.model, source(job.rows, job.language))
                curve.append(_measured(weight, inputs, placed, job.batch_tokens))
        assert inputs is not None  # λ = 0 is always tried
        best = min(curve, key=lambda point: (point.score, point.weight))
        if granularity == "layer":
            with closing(on_model(prepared, [0.0], loaded)) as steps:
                placed = next(steps)[1]
                placed.model.eval()
                found = _descend(_Way(prepared, inputs, job.batch_tokens), placed, best.weight)
            layers, reached = found.weights, 100 * found.entropy / inputs.most
    search = Search(
        chosen=best.weight if layers is None else float(np.mean(layers)),
        layers=layers,
        curve=curve,
        reached=best.score if reached is None else reached,
        metric="entropy",
        language=job.language,
        n=len(rows),
    )
    return written(search, output)


@torch.no_grad()
def _measured(weight: float, inputs: Unlabelled, placed: loaded_adapter.LoadedAdapter, batch_tokens: int) -> Point:
    """The mean entropy in percent of the largest, with its 95 % interval over the inputs."""
    found = np.ones((len(inputs), 2))
    for indices, entropies in inputs.entropies(placed.model, batch_tokens):
        found[indices, 0] = entropies.double().cpu().numpy() / inputs.most
    sample = statistics.Sample.of_tallies(found)
    ends = [float(end) for end in statistics.interval(sample)]
    return Point(weight=weight, score=100 * sample.score, interval=ends)


class _Way(NamedTuple):
    """What the entropy is a function of, beside λ."""

    prepared: Prepared
    inputs: Unlabelled
    batch_tokens: int


class _Point(NamedTuple):
    weights: list[float]
    entropy: float


def _descend(way: _Way, placed: loaded_adapter.LoadedAdapter, start: float) -> _Point:
    """Projected gradient descent from one λ for all layers; the best point that was seen."""
    own, spec = way.prepared.own.layout, way.prepared.spec
    _, count = numbered(own.sites)
    weights = torch.full((count,), start, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=RATE)
    stored = widened(way.prepared.adapters)
    best = _Point([start] * count, float("inf"))
    with torch.enable_grad():
        for step in range(STEPS + 1):
            by_module = spread(weights.unbind(), own.sites)
            merged = merged_tensors(
                *stored.tensors, by_module, kind=own.kind, rule=spec.rule, modules=spec.modules
            )  # fmt: skip
            placed.replace(
                {name: value.detach().to(stored.dtypes[name]) for name, value in merged.items()},
                where=own.directory.path,
            )
            moved = {name: value for name, value in merged.items() if value.requires_grad}
            entropy, gradients = _gradients(way, placed, moved)
            if entropy < best.entropy:
                best = _Point(weights.tolist(), entropy)
            optimizer.zero_grad()
            torch.autograd.backward(list(moved.values()), gradients)
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            optimizer.step()
            with torch.no_grad():
                weights.clamp_(0, 1)
    return best


def _gradients(
    way: _Way, placed: loaded_adapter.LoadedAdapter, moved: dict[str, torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    """The mean entropy of the adapter on the model (nats), and its gradients by the tensors that λ moves."""
    found = placed.parameters()
    parameters = [found[name].requires_grad_(True) for name in moved]
    total, gradients = 0.0, [torch.zeros_like(value) for value in moved.values()]
    for _, entropies in way.inputs.entropies(placed.model, way.batch_tokens):
        mean = entropies.sum() / len(way.inputs)
        total += float(mean.detach())
        for whole, part in zip(gradients, torch.autograd.grad(mean, parameters), strict=True):
            whole += part.to(whole)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return total, gradients
