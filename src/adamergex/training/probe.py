"""Initialise a head by linear probing before training: LP-FT (Kumar et al. 2022, 2202.10054).

With the features x of the training rows, standardised, z = (x − μ) / σ, and their labels y:

    min over W, b of   C · Σ −log softmax(W z + b)[y] + ½ ‖W‖²         W ← W / σ,  b ← b − W μ / σ

Features are the inputs of the head's last layer before the first step. For LoRA, (IA)³ and fine-tunings, which start as
the identity, they are the frozen base's (with its base adapters); for bottlenecks and prefixes they include their
start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from adamergex.errors import ConfigError, ModelError, TrainingError
from adamergex.files.inputs import Json
from adamergex.tasks.sequences import on_device

if TYPE_CHECKING:
    from adamergex.adapters.loaded_adapter import TrainableAdapter
    from adamergex.jobs.settings import TrainJob
    from adamergex.tasks import Examples
    from adamergex.training.processes import Team

FILE = "probe.safetensors"  # in a training's folder, so that a resumed run need not read all rows again
MOST_STEPS = 2_000
TOLERANCE = 1e-6  # of the gradient of the mean loss


class Probe(NamedTuple):
    """A last layer [classes, width] on unscaled features; number of steps, mean loss, accuracy (share)."""

    weight: Tensor
    bias: Tensor
    steps: int
    loss: float
    accuracy: float


def start_head(
    job: TrainJob, adapter: TrainableAdapter, examples: Examples, folder: Path, team: Team
) -> dict[str, Json]:
    """Fit the head's last layer if the job asks for a probe; returns its record for the lineage.

    The first process fits and writes; the others read. Raises: ConfigError, ModelError, TrainingError.
    """
    if job.optimisation.head_start != "probe":
        return {}
    layer = last_layer(adapter.head_modules(), _classes(adapter.model), type(adapter.model).__name__)
    path = folder / FILE
    if team.first and not path.is_file():
        labels = require_every_label(job, examples)
        features = head_inputs(adapter.model, layer, examples, job.optimisation.batch_size)
        probe = logistic_regression(features, labels, layer.out_features, job.optimisation.probe_c)
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, probe, len(labels))
    team.wait()
    with safe_open(path, "pt") as file, torch.no_grad():
        layer.weight.copy_(file.get_tensor("weight"))
        layer.bias.copy_(file.get_tensor("bias"))
        about: dict[str, Json] = json.loads(file.metadata()["about"])
    adapter.keep_head_start()
    return {"probe": about}


def last_layer(head: Sequence[nn.Module], classes: int, where: str) -> nn.Linear:
    """The linear layer of a head whose outputs are the labels' scores. Raises: ConfigError: there is none."""
    layers = [layer for module in head for layer in module.modules() if isinstance(layer, nn.Linear)]
    candidates = [layer for layer in layers if layer.out_features == classes and layer.bias is not None]
    if not candidates:
        raise ConfigError(
            "the head has no linear last layer to start from a probe",
            where="optimisation.head_start",
            found=where,
            expected="an encoder whose head ends in a linear layer with a bias",
            fix="set head_start to random",
        )
    return candidates[-1]


def require_every_label(job: TrainJob, examples: Examples) -> Tensor:
    """The labels of the examples. Raises: ConfigError: a label of the task has no row, so its score is unbounded."""
    labels: Sequence[int] = getattr(examples, "labels")  # noqa: B009
    missing = sorted(set(range(len(job.task.labels))) - set(labels))  # type: ignore[union-attr]
    if missing:
        names = ", ".join(repr(job.task.labels[index]) for index in missing)  # type: ignore[union-attr]
        raise ConfigError(
            "a head cannot start from a probe when a label has no training row",
            where=f"the training rows of {job.language}",
            found=f"no row of {names}",
            expected="a row of every label",
            fix="omit these labels, add rows, or set head_start to random",
        )
    return torch.tensor(labels)


@torch.no_grad()
def head_inputs(model: nn.Module, layer: nn.Linear, examples: Examples, batch_size: int) -> Tensor:
    """The layer's inputs for all examples, in order, in evaluation mode: [examples, width], float32.

    Raises: ModelError: the layer's outputs are not the model's.
    """
    training, captured = model.training, list[Tensor]()
    handle = layer.register_forward_hook(lambda module, args, output: captured.extend((args[0], output)))
    lengths = examples.lengths
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    result: list[Tensor | None] = [None] * len(order)
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {name: tensor for name, tensor in examples.batch(chosen, 0).items() if name != "labels"}
            captured.clear()
            logits = model(**on_device(model, batch)).logits
            outputs = captured[1].to(logits.dtype) if len(captured) == 2 else None
            if outputs is None or outputs.shape != logits.shape or not torch.equal(outputs, logits):
                raise ModelError(
                    "the head's last layer is not linear, so that no probe can start it",
                    where=type(model).__name__,
                    fix="set head_start to random",
                )
            for index, vector in zip(chosen, captured[0].float().cpu(), strict=True):
                result[index] = vector
    finally:
        handle.remove()
        model.train(training)
    return torch.stack([vector for vector in result if vector is not None])


def logistic_regression(features: Tensor, labels: Tensor, classes: int, c: float) -> Probe:
    """Multinomial logistic regression on standardised features with an L2 penalty, equal to scikit-learn's with this C.

    The bias is not penalised. For two classes the penalty is on w = w₁ − w₀, as in scikit-learn. A constant feature has
    σ = 1. Full-batch L-BFGS in float64 from zero, so the result is deterministic. Raises: TrainingError: features that
    are not finite, or no minimum after ``MOST_STEPS`` steps.
    """
    values = features.double()
    mean, deviation = values.mean(0), values.std(0, correction=0)
    deviation = torch.where(deviation > 1e-12 * values.abs().amax(0).clamp(min=1e-300), deviation, 1.0)
    values = (values - mean) / deviation
    if not torch.isfinite(values).all():
        raise TrainingError("what the head reads is not finite", where="optimisation.head_start",
                            found="NaN or infinity", fix="check that the base's weights are finite")  # fmt: skip
    ridge = (1.0 if classes == 2 else 0.5) / (c * len(labels))
    weight = torch.zeros(classes, values.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MOST_STEPS, tolerance_grad=TOLERANCE / 10, tolerance_change=0, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(values @ weight.T + bias, labels) + ridge * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        closure()
    steps = int(optimizer.state[weight]["n_iter"])
    assert weight.grad is not None and bias.grad is not None
    left = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
    if not left <= TOLERANCE:
        raise TrainingError("the probe found no minimum", where="optimisation.probe_c",
                            found=f"a gradient of {left:.2g} after {steps} steps", expected=f"at most {TOLERANCE:g}",
                            fix="lower probe_c")  # fmt: skip
    with torch.no_grad():
        scores = values @ weight.T + bias
        loss, right = float(functional.cross_entropy(scores, labels)), (scores.argmax(1) == labels).double().mean()
        scaled = weight / deviation
        return Probe(scaled, bias - scaled @ mean, steps, loss, float(right))


def _classes(model: nn.Module) -> int:
    return int(model.config.num_labels)  # type: ignore[union-attr, arg-type]


def _write(path: Path, probe: Probe, rows: int) -> None:
    about = {"rows": rows, "steps": probe.steps, "loss": probe.loss, "accuracy": 100 * probe.accuracy}
    partial = path.with_suffix(".partial")
    tensors = {"weight": probe.weight.float().contiguous(), "bias": probe.bias.float().contiguous()}
    save_file(tensors, partial, metadata={"about": json.dumps(about)})
    partial.replace(path)
