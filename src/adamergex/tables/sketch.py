"""Recipes evaluated on the settings alone: the steps are known before a model or a row is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from adamergex.config.references import AdapterReference, TaskReference
from adamergex.config.study import Assumed
from adamergex.config.task import BuiltinTask, CustomTask
from adamergex.config.transfer import TransferConfig
from adamergex.graph.steps import Step, canonical
from adamergex.jobs.settings import Target, Task
from adamergex.methods import recipe
from adamergex.methods.cell import Cell, Facts, Stack
from adamergex.methods.given import GivenAdapter


@dataclass(frozen=True)
class Sketch(Cell):
    """A cell that records whether its recipe uses the reference task. Its steps' keys are placeholders."""

    reference_uses: list[str] = field(default_factory=list)

    @property
    def reference(self) -> Task | AdapterReference:
        self.reference_uses.append("reference")
        return super().reference


def sketched(config: TransferConfig, method: str, target: str) -> tuple[Sketch, Step | Stack | None]:
    """A method's cell, and the adapters that its recipe makes; None: the bare base."""
    cell = Sketch(config, assumed_facts(config, Assumed()), target, config.seeds[0])
    return cell, recipe(method).build(cell)


def needs_references(config: TransferConfig) -> bool:
    """Whether a method of the table uses adapters of the reference task."""
    cells = (sketched(config, method, target)[0] for method in config.methods for target in config.targets)
    return any(cell.reference_uses for cell in cells)


def assumed_facts(config: TransferConfig, assumed: Assumed) -> Facts:
    """Facts without model and data: placeholders instead of hashes, and the assumed amount of text."""
    reference = config.reference
    return Facts(
        base_sha256=placeholder_hash(config.base),
        task=_assumed_task(config.task),
        segments=getattr(reference, "segments", None) or assumed.segments,
        content=lambda task, rows, language, labelled=True: placeholder_hash((rows.model_dump_json(), language)),
        reference=_assumed_task(reference.task) if isinstance(reference, TaskReference) else None,
        given=assumed_adapter,
    )


def assumed_adapter(language: str) -> GivenAdapter:
    """An adapter that is not on this machine."""
    return GivenAdapter(Path(language), {"assumed": placeholder_hash(language)}, ())


def _assumed_task(config: CustomTask | BuiltinTask) -> Target:
    return config.task(("assumed 1", "assumed 2") if config.open_labels else ())


def placeholder_hash(value: object) -> str:
    """A placeholder for the hash of something that was not read."""
    return hashlib.sha256(f"assumed {canonical(value)}".encode()).hexdigest()
