"""An adapter of any structure on a model: the interface for training, evaluation and the search of λ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import nn

from adamergex.adapters import full_backed, sparse
from adamergex.adapters.formats import adapterhub
from adamergex.adapters.formats.adapterhub import read_head
from adamergex.adapters.labels import require_labels
from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.files import tensor_files
from adamergex.files.directory import read_config
from adamergex.files.inputs import Json
from adamergex.files.registry import import_path
from adamergex.structures import kind_named, kind_of_config
from adamergex.structures.kind import StructureKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adamergex.files.lineage import Lineage
    from adamergex.structures.settings import Structure

Tensors = Mapping[str, torch.Tensor]


class LoadedAdapter(Protocol):
    """An adapter on a model, with its head if it has one."""

    @property
    def model(self) -> nn.Module:
        """The base with the adapter in it, to call and train."""

    def start_sha256(self) -> str:
        """SHA-256 of the adapter's current tensors without heads; before training, of its start."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The adapter's parameters without heads, by their names in its file."""

    def replace(self, contents: Tensors, *, where: object) -> None:
        """Overwrite all tensors in place with those of ``read_tensors``."""

    def write_tensors(self, directory: Path) -> None:
        """Write the tensors alone, for a checkpoint."""

    def save(self, directory: Path, lineage: Lineage) -> None:
        """Write the whole adapter into an existing directory."""

    def detach(self) -> object:
        """Restore and return the model."""


class TrainableAdapter(LoadedAdapter, Protocol):
    """A new adapter, whose head may start from other values than the drawn ones."""

    def head_modules(self) -> Sequence[nn.Module]:
        """The modules of the head that train with the adapter, the one nearest to the labels last."""

    def keep_head_start(self) -> None:
        """Let every phase of training start from the head's current values."""


class NewAdapter(NamedTuple):
    """The start of a new adapter. With ``task_head`` the modules outside the backbone train too, and the
    ``new_modules`` inside it, which are drawn from ``seed``."""

    task_head: bool
    base_sha256: str
    seed: int = 0
    new_modules: tuple[str, ...] = ()


class Backend(Protocol):
    """The functions in the ``module`` of a structure."""

    def attach(
        self, model: PreTrainedModel, structure: Structure, base_adapters: Sequence[str | Path], new: NewAdapter
    ) -> TrainableAdapter:
        """A new adapter to train, on the frozen ``base_adapters``; empty unless the structure is ``stackable``."""

    def load(
        self, model: PreTrainedModel, directories: Sequence[Path], *, new_modules: tuple[str, ...]
    ) -> LoadedAdapter:
        """A saved adapter, or a stack of them if the structure is ``stackable``."""

    def place(
        self,
        model: PreTrainedModel,
        config: Mapping[str, Json],
        contents: Tensors,
        *,
        where: object,
        new_modules: tuple[str, ...],
    ) -> LoadedAdapter:
        """An adapter from memory, for a search of λ."""

    def modules(self, model: PreTrainedModel, structure: Structure) -> list[str]:
        """The modules that the adapter will have on a model (possibly without tensors); empty if it has none.
        Raises: ModelError when the model takes no such adapter."""


def backend(kind: StructureKind) -> Backend:
    """The module that puts a structure on a model."""
    module: Backend = import_path(kind.module)
    return module


def attach(
    model: PreTrainedModel,
    structure: Structure,
    *,
    base_adapters: Sequence[str | Path] = (),
    task_head: bool,
    base_sha256: str,
    seed: int = 0,
    new_modules: tuple[str, ...] = (),
) -> TrainableAdapter:
    """Put a new, trainable adapter on a model, or train its own parameters; see ``attach`` of ``in_peft``,
    ``bottleneck_backed`` and ``full_backed``.

    Raises: ModelError, AdapterFileError, ConfigError, IncompatibleAdaptersError.
    """
    new = NewAdapter(task_head, base_sha256, seed, new_modules)
    return backend(kind_named(structure.kind)).attach(model, structure, base_adapters, new)


def load(model: PreTrainedModel, directories: Sequence[Path], *, new_modules: tuple[str, ...] = ()) -> LoadedAdapter:
    """Put a saved adapter, or a stack of them, lowest first, on a model; differences are added to its parameters.

    Raises: AdapterFileError, IncompatibleAdaptersError (also for labels in another order), ModelError; ConfigError
    without a directory.
    """
    if not directories:
        raise ConfigError("a stack needs at least one adapter", where="adapter", fix="name its directory")
    require_labels(model, Path(directories[-1]))
    kinds = [_kind_in(path) for path in directories]
    alone = [path for path, kind in zip(directories, kinds, strict=True) if not kind.stackable]
    if alone and len(directories) > 1:
        raise IncompatibleAdaptersError(
            "this adapter cannot be part of a stack",
            where=alone[0],
            found="a PEFT adapter",
            expected="bottleneck adapters",
            fix="evaluate it alone",
        )
    return backend(kinds[-1]).load(model, directories, new_modules=new_modules)


def _kind_in(directory: str | Path) -> StructureKind:
    if full_backed.holds_difference(Path(directory)):
        return kind_named("full")
    return _kind(read_config(Path(directory)))


def _kind(config: Mapping[str, Json]) -> StructureKind:
    """Unknown PEFT types go to PEFT, and unknown other configs to AdapterHub's reader, for their error messages."""
    return kind_of_config(config) or kind_named("lora" if "peft_type" in config else "bottleneck")


def place(
    model: PreTrainedModel,
    config: Mapping[str, Json],
    contents: Tensors,
    *,
    where: object,
    new_modules: tuple[str, ...] = (),
) -> LoadedAdapter:
    """Put an adapter from memory on a model: ``config`` as in adapter_config.json, ``contents`` as from
    ``read_tensors``. Raises: AdapterFileError, IncompatibleAdaptersError."""
    return backend(_kind(config)).place(model, config, contents, where=where, new_modules=new_modules)


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of one of our adapter directories or of a checkpoint, with those of a separate head file.

    Raises: AdapterFileError when a file cannot be read.
    """
    head = read_head(directory)
    return {**tensor_files.read_directory(directory), **(head.tensors if head else {})}


def tensors_path(directory: Path) -> Path:
    """The file of an adapter's tensors, or of a difference. Raises: AdapterFileError when there is none."""
    difference = directory / sparse.TENSORS
    return difference if difference.is_file() else adapterhub.tensors_path(directory)
