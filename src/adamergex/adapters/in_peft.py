"""LoRA, (IA)³ and prefixes behind the interface of ``loaded_adapter``.

Another package's structure can use any adapter of PEFT the same way: ``InPeft(peft_backed.put(...))``, with the same
``load``, ``place`` and ``modules``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from adamergex.adapters import peft_backed, prefix
from adamergex.adapters.sites import target_modules
from adamergex.files.inputs import Json
from adamergex.structures.settings import OnProjections

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from adamergex.adapters.loaded_adapter import NewAdapter
    from adamergex.files.lineage import Lineage
    from adamergex.structures.settings import Structure

Tensors = Mapping[str, "torch.Tensor"]


class InPeft:
    """An adapter that PEFT puts around a model."""

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
    model: PreTrainedModel, structure: Structure, base_adapters: Sequence[str | Path], new: NewAdapter
) -> InPeft:
    """Put a new, trainable adapter on a model. Raises: ModelError."""
    return InPeft(peft_backed.attach(model, structure, **new._asdict()))


def load(model: PreTrainedModel, directories: Sequence[Path], *, new_modules: tuple[str, ...] = ()) -> InPeft:
    """Put one saved adapter on a model. Raises: AdapterFileError, ModelError."""
    return InPeft(peft_backed.load(model, directories[0], new_modules=new_modules))


def place(
    model: PreTrainedModel,
    config: Mapping[str, Json],
    contents: Tensors,
    *,
    where: object,
    new_modules: tuple[str, ...] = (),
) -> InPeft:
    """Put an adapter from memory on a model. Raises: AdapterFileError, ModelError."""
    return InPeft(peft_backed.place(model, config, contents, where=where, new_modules=new_modules))


def modules(model: PreTrainedModel, structure: Structure) -> list[str]:
    """The names of the adapter's modules; none for a prefix. Raises: ModelError if the model takes no such adapter."""
    if isinstance(structure, OnProjections):
        return target_modules(model, structure)
    prefix.cache_module(model)
    return []
