"""An adapter on a model, whatever its structure: what training, evaluation and the search of λ work through."""

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
from adamergex.files.registry import named_in_code
from adamergex.structures import held, kind_named
from adamergex.structures.kind import StructureKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adamergex.files.lineage import Lineage
    from adamergex.structures.settings import Structure

Tensors = Mapping[str, torch.Tensor]


class LoadedAdapter(Protocol):
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


class Trained(LoadedAdapter, Protocol):
    """A new adapter whose head, where it has one, may start from something else than it was drawn as."""

    def head_modules(self) -> Sequence[nn.Module]:
        """The modules of the head that train with the adapter, those nearest to the labels last."""

    def keep_head_start(self) -> None:
        """What the head holds now is what it starts from, in every phase of the training."""


class NewAdapter(NamedTuple):
    """What a new adapter begins with. ``task_head``: what stands outside the backbone trains too, and the
    ``new_modules`` inside it, which are drawn from ``seed``."""

    task_head: bool
    base_sha256: str
    seed: int = 0
    new_modules: tuple[str, ...] = ()


class Backend(Protocol):
    """What the ``module`` of a structure holds."""

    def attach(
        self, model: PreTrainedModel, structure: Structure, base_adapters: Sequence[str | Path], new: NewAdapter
    ) -> Trained:
        """A new adapter that trains. ``base_adapters``: frozen ones under it; empty unless it ``stands_on_others``."""

    def load(
        self, model: PreTrainedModel, directories: Sequence[Path], *, new_modules: tuple[str, ...]
    ) -> LoadedAdapter:
        """A saved adapter, or a stack of them where it ``stands_on_others``."""

    def place(
        self,
        model: PreTrainedModel,
        config: Mapping[str, Json],
        contents: Tensors,
        *,
        where: object,
        new_modules: tuple[str, ...],
    ) -> LoadedAdapter:
        """An adapter that is in memory, for a search of λ."""

    def modules(self, model: PreTrainedModel, structure: Structure) -> list[str]:
        """The names of the modules that it will have on a model (its weights may be missing); none where it is whole.
        Raises: ModelError: the model takes no such adapter."""


def backend(kind: StructureKind) -> Backend:
    """The module that puts a structure on a model."""
    found: Backend = named_in_code(kind.module)
    return found


def attach(
    model: PreTrainedModel,
    structure: Structure,
    *,
    base_adapters: Sequence[str | Path] = (),
    task_head: bool,
    base_sha256: str,
    seed: int = 0,
    new_modules: tuple[str, ...] = (),
) -> Trained:
    """Put a new, trainable adapter on a model, or let its weights train; see ``attach`` of ``in_peft``,
    ``bottleneck_backed`` and ``full_backed``.

    Raises: ModelError, AdapterFileError, ConfigError, IncompatibleAdaptersError.
    """
    new = NewAdapter(task_head, base_sha256, seed, new_modules)
    return backend(kind_named(structure.kind)).attach(model, structure, base_adapters, new)


def load(model: PreTrainedModel, directories: Sequence[Path], *, new_modules: tuple[str, ...] = ()) -> LoadedAdapter:
    """Put a saved adapter, or a stack of them, the first lowest, on a model; differences are added to its weights.

    Raises: AdapterFileError, IncompatibleAdaptersError (labels in another order, too), ModelError; ConfigError for no
    directory.
    """
    if not directories:
        raise ConfigError("a stack needs at least one adapter", where="adapter", fix="name its directory")
    require_labels(model, Path(directories[-1]))
    kinds = [_kind_in(path) for path in directories]
    alone = [path for path, kind in zip(directories, kinds, strict=True) if not kind.stands_on_others]
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
    """Of a PEFT type that is no structure here PEFT says what it lacks; of another config AdapterHub's reader."""
    return held(config) or kind_named("lora" if "peft_type" in config else "bottleneck")


def place(
    model: PreTrainedModel,
    config: Mapping[str, Json],
    contents: Tensors,
    *,
    where: object,
    new_modules: tuple[str, ...] = (),
) -> LoadedAdapter:
    """Put an adapter that is in memory on a model: ``config`` as in adapter_config.json, ``contents`` as
    ``read_tensors`` gives them. Raises: AdapterFileError, IncompatibleAdaptersError."""
    return backend(_kind(config)).place(model, config, contents, where=where, new_modules=new_modules)


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of one of our adapter directories, or of a checkpoint; a head in a file of its own is among them.

    Raises: AdapterFileError when a file cannot be read.
    """
    head = read_head(directory)
    return {**tensor_files.read_directory(directory), **(head.tensors if head else {})}


def tensors_path(directory: Path) -> Path:
    """The file of an adapter's tensors, or of a difference. Raises: AdapterFileError when there is none."""
    difference = directory / sparse.TENSORS
    return difference if difference.is_file() else adapterhub.tensors_path(directory)
