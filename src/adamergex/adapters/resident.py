"""An adapter on a model, whatever its structure: what training, evaluation and the search of λ work through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from adamergex.adapters import peft_backed, sparse, weights_backed
from adamergex.adapters.bottleneck import bottleneck_backed
from adamergex.adapters.formats import adapterhub
from adamergex.adapters.formats.adapterhub import read_head
from adamergex.adapters.labels import require_labels
from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.files.directory import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adamergex.files.lineage import Lineage
    from adamergex.jobs.settings import Structure

Tensors = Mapping[str, torch.Tensor]


class Resident(Protocol):
    """An adapter on a model. Its head, where it has one, goes with it."""

    @property
    def model(self) -> nn.Module:
        """What is called and trained: the base with the adapter in it."""

    def start_sha256(self) -> str:
        """SHA-256 of the adapter's tensors as they stand, heads left out; before training: of its start."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The adapter's parameters by their names in its file, heads left out."""

    def replace(self, contents: Tensors, *, where: object) -> None:
        """Overwrite all tensors in place; as ``read_tensors`` gives them."""

    def write_tensors(self, directory: Path) -> None:
        """Write the tensors alone, for a checkpoint."""

    def save(self, directory: Path, lineage: Lineage) -> None:
        """Write the whole adapter into a directory that is there."""

    def detach(self) -> object:
        """Give the model back as it was."""


class Trained(Resident, Protocol):
    """A new adapter whose head, where it has one, may start from something else than it was drawn as."""

    def head_modules(self) -> Sequence[nn.Module]:
        """The modules of the head that train with the adapter, those nearest to the labels last."""

    def keep_head_start(self) -> None:
        """What the head holds now is what it starts from, in every phase of the training."""


class InPeft:
    """LoRA or (IA)³, which PEFT puts around a model."""

    def __init__(self, model: peft_backed.Adapted) -> None:
        self.model = model

    def start_sha256(self) -> str:
        return peft_backed.start_sha256(self.model)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return peft_backed.parameters(self.model)

    def replace(self, contents: Tensors, *, where: object) -> None:
        peft_backed.replace(self.model, contents, where=where)

    def head_modules(self) -> Sequence[nn.Module]:
        copies = (getattr(module, "modules_to_save", None) for module in self.model.modules())
        return [copy["default"] for copy in copies if isinstance(copy, nn.ModuleDict)]

    def keep_head_start(self) -> None:
        pass

    def write_tensors(self, directory: Path) -> None:
        peft_backed.write_tensors(self.model, directory)

    def save(self, directory: Path, lineage: Lineage) -> None:
        peft_backed.save(self.model, directory, lineage)

    def detach(self) -> object:
        return peft_backed.detach(self.model)


def attach(
    model: PreTrainedModel,
    structure: Structure,
    *,
    below: Sequence[str | Path] = (),
    task_head: bool,
    base_sha256: str,
    seed: int = 0,
    fresh: tuple[str, ...] = (),
) -> Trained:
    """Put a new, trainable adapter on a model, or let its weights train; see ``attach`` of ``peft_backed``,
    ``bottleneck_backed`` and ``weights_backed``.

    Raises: ModelError, AdapterFileError, ConfigError, IncompatibleAdaptersError.
    """
    shared: dict[str, Any] = {"task_head": task_head, "base_sha256": base_sha256, "seed": seed, "fresh": fresh}
    if structure.kind in ("full", "sparse"):
        return weights_backed.attach(model, structure, below=below, **shared)
    if structure.kind == "bottleneck":
        return bottleneck_backed.attach(model, structure, below=below, **shared)
    return InPeft(peft_backed.attach(model, structure, **shared))


def load(model: PreTrainedModel, directories: Sequence[Path], *, fresh: tuple[str, ...] = ()) -> Resident:
    """Put a saved adapter, or a stack of them, the first lowest, on a model; differences are added to its weights.

    Raises: AdapterFileError, IncompatibleAdaptersError (labels in another order, too), ModelError; ConfigError for no
    directory.
    """
    if not directories:
        raise ConfigError("a stack needs at least one adapter", where="adapter", fix="name its directory")
    require_labels(model, Path(directories[-1]))
    if all(weights_backed.holds_difference(path) for path in directories):
        return weights_backed.load(model, directories, fresh=fresh)
    in_peft = [path for path in directories if _is_peft(read_config(path))]
    if not in_peft:
        return bottleneck_backed.load(model, directories, fresh=fresh)
    if len(directories) > 1:
        raise IncompatibleAdaptersError(
            "this adapter cannot be part of a stack",
            where=in_peft[0],
            found="a PEFT adapter",
            expected="bottleneck adapters",
            fix="evaluate it alone",
        )
    return InPeft(peft_backed.load(model, directories[0], fresh=fresh))


def place(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    contents: Tensors,
    *,
    where: object,
    fresh: tuple[str, ...] = (),
) -> Resident:
    """Put an adapter that is in memory on a model: ``config`` as in adapter_config.json, ``contents`` as
    ``read_tensors`` gives them. Raises: AdapterFileError, IncompatibleAdaptersError."""
    if _is_peft(config):
        return InPeft(peft_backed.place(model, config, contents, where=where, fresh=fresh))
    return bottleneck_backed.place(model, config, contents, where=where, fresh=fresh)


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of one of our adapter directories, or of a checkpoint; a head in a file of its own is among them.

    Raises: AdapterFileError when a file cannot be read.
    """
    head = read_head(directory)
    return {**peft_backed.read_tensors(directory), **(head.tensors if head else {})}


def _is_peft(config: Mapping[str, Any]) -> bool:
    return "peft_type" in config


def tensors_path(directory: Path) -> Path:
    """The file of an adapter's tensors, or of a difference. Raises: AdapterFileError when there is none."""
    difference = directory / sparse.TENSORS
    return difference if difference.is_file() else adapterhub.tensors_path(directory)
