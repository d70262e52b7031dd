"""Bottleneck adapters that are trained, loaded and replaced like PEFT's, optionally on a stack of frozen adapters.

The two rules of ``peft_backed`` hold here too: the same start for every adapter of one base and shape, strict files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from adamergex.adapters.bottleneck.modules import BottleneckAdapter, BottleneckConfig
from adamergex.adapters.bottleneck.places import find_places
from adamergex.adapters.bottleneck.stack import AdapterStack
from adamergex.adapters.bottleneck.stack import attach as attach_stack
from adamergex.adapters.formats import adapterhub, dialects
from adamergex.adapters.guards import require_effect
from adamergex.adapters.heads import draw, head_modules, head_of, head_parameters, load_head
from adamergex.adapters.saving import tensors_sha256, write_adapter_tensors
from adamergex.errors import AdapterFileError, ConfigError
from adamergex.structures.card import write_beside
from adamergex.structures.settings import Bottleneck

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adamergex.adapters.formats.adapterhub import AdapterFiles, HeadFiles
    from adamergex.adapters.loaded_adapter import NewAdapter
    from adamergex.files.lineage import Lineage
    from adamergex.structures.settings import Structure

Tensors = Mapping[str, torch.Tensor]
_TOP = "top"


class Stacked:
    """A stack on a model; its top adapter, with its head, is trained, written and replaced."""

    def __init__(self, model: PreTrainedModel, heads: Sequence[str], new_modules: tuple[str, ...]) -> None:
        self.model = model
        self.heads, self.new_modules = tuple(heads), new_modules
        head = head_parameters(model, new_modules) if heads else {}
        self._before = {name: parameter.detach().clone() for name, parameter in head.items()}

    @property
    def adapter(self) -> BottleneckAdapter:
        adapter = self.stack.adapters[_TOP]
        assert isinstance(adapter, BottleneckAdapter)
        return adapter

    @property
    def stack(self) -> AdapterStack:
        return cast("AdapterStack", self.model.adapter_stack)

    def put(self, base_adapters: Sequence[str | Path | AdapterFiles], top: BottleneckConfig) -> BottleneckAdapter:
        """Attach the stack with the new top adapter. Raises: as ``attach`` of ``stack``."""
        names = [f"base-{number}" for number, _ in enumerate(base_adapters, 1)]
        attach_stack(self.model, *base_adapters, names=names)
        try:
            adapter = BottleneckAdapter(top, self.stack.places)
            require_layers(top, len(self.stack.places.layers))
            self.stack.add(adapter, _TOP)
            self.stack.set_stack(*names, _TOP)
        except BaseException:
            self.stack.detach()
            raise
        return adapter

    def start_sha256(self) -> str:
        """SHA-256 over names and bytes of the adapter's current tensors, without the head."""
        return tensors_sha256(self.parameters())

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters by their names in its file."""
        return dict(self.adapter.named_parameters())

    def head_modules(self) -> list[torch.nn.Module]:
        """The modules of the trained head, in the model's order."""
        return [module for name, module in self.model.named_modules() if name in self.heads]

    def keep_head_start(self) -> None:
        """Nothing to do: training has one phase, which starts from the head's current values."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors by their names in its file, and the head's by their names in the model."""
        head = head_parameters(self.model, self.new_modules) if self.heads else {}
        return {name: tensor.detach() for name, tensor in [*self.adapter.named_parameters(), *head.items()]}

    def replace(self, contents: Tensors, *, where: object = "adapter") -> None:
        """Overwrite the adapter's and the head's tensors in place. Raises: AdapterFileError for missing tensors,
        IncompatibleAdaptersError for another shape."""
        head = {name: tensor for name, tensor in contents.items() if name in self._before}
        self.adapter.load({name: tensor for name, tensor in contents.items() if name not in head}, where)
        if head:
            load_head(self.model, adapterhub.HeadFiles({}, head), where, self.new_modules)

    def write_tensors(self, directory: Path) -> None:
        """Write the tensors, with the head's, as one file."""
        write_adapter_tensors(directory, self.tensors())

    def save(self, directory: Path, lineage: Lineage) -> None:
        """Write AdapterHub's layout with safetensors, the head, lineage.json and the card; equal adapters give equal
        bytes. The adapter is named after its language, or its task and language."""
        name = "-".join(filter(None, [(lineage.task or {}).get("name"), lineage.language])).replace(".", "_")
        config, base = self.model.config, str(lineage.base["name"])
        about = {"hidden_size": self.stack.places.layers[0].width, "model_type": config.model_type}
        about |= {"model_name": base, "model_class": type(self.model).__name__}
        tensors = {key: tensor.detach().cpu() for key, tensor in self.adapter.named_parameters()}
        adapterhub.write_files(
            directory,
            adapterhub.AdapterFiles(name, self.adapter.config, tensors, self._head(name, base), about),
        )
        generates = "CAUSAL_LM" if self.model.can_generate() else None
        write_beside(directory, lineage, task_type="SEQ_CLS" if self.heads else generates)

    def detach(self) -> PreTrainedModel:
        """Restore and return the model, with its own head, in evaluation mode."""
        for name, parameter in (head_parameters(self.model, self.new_modules) if self._before else {}).items():
            parameter.data = self._before[name]
        self.stack.detach()
        self.model.train(False)
        return self.model

    def _head(self, name: str, base: str) -> HeadFiles | None:
        if not self.heads:
            return None
        head = head_of(self.model, name, self.new_modules)
        return adapterhub.HeadFiles({**head.config, "model_name": base}, head.tensors)


def require_layers(config: BottleneckConfig, layers: int) -> None:
    """Raises: ConfigError when ``leave_out`` names layers that do not exist, or all layers."""
    if not set(config.leave_out) < set(range(layers)):
        raise ConfigError(
            "these layers cannot be left out",
            where="leave_out",
            found=list(config.leave_out),
            expected=f"some of the model's layers 0 to {layers - 1}, not all",
            fix="correct leave_out",
        )


def config_of(structure: Bottleneck) -> BottleneckConfig:
    """The shape of an adapter with these settings."""
    make = BottleneckConfig.houlsby if structure.layout == "houlsby" else BottleneckConfig.pfeiffer
    activation: dict[str, Any] = {} if structure.activation is None else {"activation": structure.activation}
    return make(
        structure.reduction,
        leave_out=structure.leave_out,
        dropout=structure.dropout,
        invertible=structure.invertible,
        **activation,
    )


def attach(
    model: PreTrainedModel, structure: Structure, base_adapters: Sequence[str | Path], new: NewAdapter
) -> Stacked:
    """Put a new, trainable bottleneck adapter on a model, on the frozen ``base_adapters``; everything else is frozen.

    D, U and the invertible block ~ N(0, 0.02), biases 0, from generators seeded by SHA-256(base, layout, reduction,
    tensor name): near identity, and the same for every adapter of one base and shape.
    Raises: ModelError, AdapterFileError, ConfigError, IncompatibleAdaptersError.
    """
    assert isinstance(structure, Bottleneck)
    stacked = Stacked(model, head_modules(model, new.new_modules) if new.task_head else (), new.new_modules)
    adapter = stacked.put(base_adapters, config_of(structure))
    # float32 for any dtype of the base, as in PEFT.
    adapter.float().initialise(f"{new.base_sha256}\n{structure.kind} {structure.layout} {structure.reduction:g}")
    stacked.stack.train_only(_TOP, also=stacked.heads)
    draw(model, [name for name in stacked.heads if name in new.new_modules], new.seed)
    try:
        require_effect(model, adapter.parameters(), "bottleneck adapter")
    except BaseException:
        stacked.detach()
        raise
    return stacked


def modules(model: PreTrainedModel, structure: Structure) -> list[str]:
    """The names of the adapter's modules. Raises: ModelError, ConfigError when the model lacks such places."""
    assert isinstance(structure, Bottleneck)
    places, config = find_places(model), config_of(structure)
    require_layers(config, len(places.layers))
    for layer in places.layers:
        for location in config.locations():
            layer.place(location, config.reuse_norm)
    layers = [layer for layer in places.layers if layer.number not in structure.leave_out]
    names = [f"{layer.group}.{layer.index}.{location}" for layer in layers for location in config.locations()]
    return [*names, *(["invertible.F", "invertible.G"] if structure.invertible else [])]


def load(model: PreTrainedModel, directories: Sequence[Path], *, new_modules: tuple[str, ...] = ()) -> Stacked:
    """Put saved adapters on a model, lowest first; the last one provides the head.

    ``new_modules``: modules that the base lacks, so the last adapter must contain them.
    Raises: AdapterFileError for unreadable files or no head, IncompatibleAdaptersError, ModelError.
    """
    *base_adapters, top = directories
    files = adapterhub.read_adapter(top)
    return _filled(model, base_adapters, files.config, files.tensors, files.head, where=top, new_modules=new_modules)


def place(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    contents: Tensors,
    *,
    where: object,
    new_modules: tuple[str, ...] = (),
) -> Stacked:
    """Put an adapter from memory on a model: ``config`` as in adapter_config.json, ``contents`` as from
    ``Stacked.tensors``. Raises: as ``load``."""
    tensors = {name: tensor for name, tensor in contents.items() if dialects.canonical(name)}
    head = {name: tensor for name, tensor in contents.items() if name not in tensors}
    files = adapterhub.HeadFiles({}, head) if head else None
    return _filled(model, (), dialects.read_config(config, where), tensors, files, where=where, new_modules=new_modules)


def _filled(
    model: PreTrainedModel,
    base_adapters: Sequence[Path],
    config: BottleneckConfig,
    tensors: Tensors,
    head: HeadFiles | None,
    *,
    where: object,
    new_modules: tuple[str, ...],
) -> Stacked:
    if new_modules and head is None:
        raise AdapterFileError(
            "neither the adapter nor the base has a classification head",
            where=where,
            found="no head_config.json",
            expected="an adapter trained on a task with labels, or merged from one",
            fix="name the task adapter, last in the stack",
        )
    stacked = Stacked(model, head_modules(model, new_modules) if head else (), new_modules)
    adapter = stacked.put(base_adapters, config)
    try:
        adapter.load(tensors, where)
        if head is not None:
            load_head(model, head, where, new_modules, label=False)
    except BaseException:
        stacked.detach()
        raise
    model.train(False)
    return stacked
