"""The loss of one fixed batch, which training must lower."""

from __future__ import annotations

from pathlib import Path

import torch

from adamergex.adapters import peft_backed
from adamergex.backbones import loading
from adamergex.data import reader
from adamergex.jobs.settings import TrainJob
from adamergex.training import train


def loss_of(backbone: loading.Loaded, wanted: TrainJob, adapter: Path | None) -> float:
    """Masks included, under a new or a trained adapter."""
    examples = train.examples_of(wanted, backbone, reader.read(wanted.rows, "en"))
    if adapter is None:
        wrapped = peft_backed.attach(
            backbone.model, wanted.structure, task_head=backbone.kind == "sequence-classification",
            base_sha256=backbone.sha256, seed=wanted.seed, new_modules=backbone.new_modules,
        )  # fmt: skip
    else:
        wrapped = peft_backed.load(backbone.model, adapter)
    with torch.inference_mode():
        found = examples.loss(wrapped.eval(), examples.batch(range(60), 0)).item()
    peft_backed.detach(wrapped)
    return found
