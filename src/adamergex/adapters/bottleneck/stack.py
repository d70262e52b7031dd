"""Stacks of adapters on a model: load several, activate any of them in order, switch without changing the base."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from adamergex.adapters.bottleneck.invertible import Nice
from adamergex.adapters.bottleneck.modules import BottleneckAdapter, BottleneckConfig
from adamergex.adapters.bottleneck.places import LOCATIONS, Place, find_places
from adamergex.adapters.bottleneck.plans import (
    Active,
    BottleneckHook,
    Hook,
    InvertibleHook,
    ProjectionHook,
    StackPlan,
    key_of,
    make_plan,
)
from adamergex.adapters.bottleneck.projections import PeftAdapter, is_peft, read_peft
from adamergex.adapters.formats.adapterhub import AdapterFiles, read_adapter, write_adapter
from adamergex.adapters.precision import in_float32
from adamergex.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Source = str | Path | BottleneckConfig | BottleneckAdapter | AdapterFiles | PeftAdapter
Stack = tuple[str, ...]


def attach(
    model: PreTrainedModel, *adapters: Source, names: Sequence[str] | None = None, invert_head: bool | None = None
) -> PreTrainedModel:
    """Put adapters on a model, in place, and activate them as its stack, lowest first (nearest to the base).

        post-norm layer, s = x + r:  for A_i of the stack: s <- s + A_i(LN(s));  the layer goes on with LN(s)
        pre-norm layer:              the same with LN = identity;  houlsby: x <- x + A_i(x)
        linear module y = W(x), in the stack's order:  LoRA: y <- y + (α/r)·B·A·x;  (IA)³: y <- y ⊙ l, or x <- x ⊙ l

    ``adapters`` are directories (AdapterHub's, ours, or PEFT's LoRA and (IA)³), configurations of new adapters, or
    adapters in memory. ``names`` default to the names in the files, or of the directories. The head in a PEFT directory
    replaces the model's while its adapter is active. The first bottleneck adapter's invertible block changes the
    embeddings, and its inverse the input of the output projection unless ``invert_head`` is false (default: true, or
    the setting of the model's stack). All parameters, the base's too, are frozen; ``model.adapter_stack.train_only``
    unfreezes. If the model has a stack, the adapters are added to it; a name in use, or another ``invert_head``, is
    refused. The model gains ``adapter_stack`` (an AdapterStack with all its methods), ``set_stack``, ``using`` and
    ``detach``.

    Raises: AdapterFileError, IncompatibleAdaptersError, ConfigError, ModelError. Source: METHOD.md §2 (MAD-X).
    """
    if names is not None and len(names) != len(adapters):
        raise ConfigError("attach needs one name per adapter", found=len(names), expected=len(adapters))
    present = getattr(model, "adapter_stack", None)
    if not isinstance(present, AdapterStack):
        stack = AdapterStack(model, invert_head=invert_head is not False)
    elif invert_head in (None, present.invert_head):
        stack = present
    else:
        raise ConfigError(
            "the model's stack has another invert_head",
            found=f"invert_head={invert_head}",
            expected=f"{present.invert_head}, as when the first adapters were attached",
            fix="omit it, or detach the stack first",
        )
    added: list[str] = []
    try:
        for position, adapter in enumerate(adapters):
            added.append(stack.add(adapter, names[position] if names else None))
        stack.set_stack(*added)
    except BaseException:
        # All or nothing: on an error the model keeps the stack that it had.
        if stack is not present:
            stack.detach()
        else:
            for name in added:
                stack.remove(name)
        raise
    return model


class AdapterStack(nn.Module):
    """The adapters of one model and which of them are active; stored as ``model.adapter_stack``.

    Its parameters belong to the model (``.to``, DDP and optimizers see them); the base's modules, names and tensors do
    not change. Hooks exist only where an adapter is loaded. The active stack is state: run one forward at a time.
    """

    _model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, invert_head: bool = True) -> None:
        super().__init__()
        self.places = find_places(model)
        self.adapters = nn.ModuleDict()
        self.invert_head = invert_head
        self._active: Stack = ()
        self._running = Active()
        self._plans: dict[Stack, StackPlan] = {}
        self._rows: tuple[Stack, ...] = ()
        self._handles: dict[object, Any] = {}
        self._lifted: list[tuple[nn.Module, torch.dtype, RemovableHandle]] = []
        self._trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        model.adapter_stack = self
        # Registering the model as a submodule would make it its own descendant.
        object.__setattr__(self, "_model", model)
        for shortcut in ("set_stack", "using", "detach"):
            setattr(model, shortcut, getattr(self, shortcut))

    @property
    def names(self) -> Stack:
        """All loaded adapters."""
        return tuple(self.adapters)

    @property
    def active(self) -> Stack:
        """The active stack, lowest first; empty for the bare base, and while each row has its own stack."""
        return self._active

    def add(self, adapter: Source, name: str | None = None) -> str:
        """Load one more adapter without activating it; returns its name.

        Raises: AdapterFileError, IncompatibleAdaptersError, ModelError, as ``attach``; ConfigError for a bad name.
        """
        where: object = adapter if isinstance(adapter, str | Path) else "adapter"
        if isinstance(adapter, str | Path) and is_peft(adapter):
            name, adapter = name or Path(adapter).resolve().name, read_peft(adapter, self._model)
        elif isinstance(adapter, str | Path):
            adapter = read_adapter(adapter)
        if isinstance(adapter, AdapterFiles):
            name, files = name or adapter.name, adapter
            adapter = BottleneckAdapter(files.config, self.places)
            adapter.load(files.tensors, where)
        elif isinstance(adapter, BottleneckConfig):
            adapter = BottleneckAdapter(adapter, self.places)
        name = self._free_name(name)
        self._place_hooks(adapter)
        self.adapters[name] = adapter.requires_grad_(False).train(self._model.training)
        return name

    def remove(self, name: str) -> None:
        """Remove one adapter, and deactivate stacks that contain it."""
        self._known((name,))
        if name in self._active or any(name in row for row in self._rows):
            self.set_stack()
        self._plans = {stack: plan for stack, plan in self._plans.items() if name not in stack}
        del self.adapters[name]

    def set_stack(self, *names: str | Sequence[str]) -> None:
        """Activate loaded adapters, given as names or a list, lowest first; none for the bare base.

        Raises: ConfigError for a name that is not loaded; IncompatibleAdaptersError for an impossible order.
        """
        stack = tuple(name for given in names for name in ((given,) if isinstance(given, str) else given))
        self._running.use(self._planned(stack))
        self._active, self._rows = stack, ()

    def set_rows(self, rows: Sequence[Sequence[str]]) -> None:
        """Use the stack ``rows[i]`` for row i of the next batches, in one forward pass.

        In a batch k times as long (beams, choices) each stack applies to k consecutive rows. Raises: as ``set_stack``.
        """
        stacks = tuple(tuple(row) for row in rows)
        if not stacks:
            raise ConfigError("a mixed batch needs the stack of each row", found="no rows", fix="use set_stack instead")
        groups = {stack: [row for row, other in enumerate(stacks) if other == stack] for stack in dict.fromkeys(stacks)}
        self._running.use_rows([(self._planned(stack), numbers) for stack, numbers in groups.items()])
        self._active, self._rows = (), stacks

    @contextmanager
    def using(
        self, *names: str | Sequence[str], rows: Sequence[Sequence[str]] | None = None
    ) -> Iterator[PreTrainedModel]:
        """``with model.using("sw", "ner-en"): ...`` or ``using(rows=[("sw", "ner-en"), ("tr", "ner-en")])``; afterwards
        the previous stack is active again."""
        active, before = self._active, self._rows
        if rows is None:
            self.set_stack(*names)
        else:
            self.set_rows(rows)
        try:
            yield self._model
        finally:
            if before:
                self.set_rows(before)
            else:
                self.set_stack(*active)

    def train_only(self, *names: str, also: Sequence[str] = ()) -> None:
        """Train these adapters and the base's modules in ``also`` (a classifier); freeze everything else.

        The output projection stays frozen, tied or not: the inverse block needs the matrix that belongs to the
        embeddings. Trained parameters become float32; ``detach`` restores the dtype of modules in ``also``.
        Raises: ConfigError for an unknown name, or a module that holds the projection.
        """
        self._known(names)
        modules = dict(self._model.named_modules())
        frozen = {id(parameter) for part in self._vocabulary() for parameter in part.parameters()}
        for module in also:
            if module not in modules:
                raise self._unknown("module", module, tuple(modules))
            if any(id(parameter) in frozen for parameter in modules[module].parameters()):
                raise ConfigError(
                    "this module holds the embeddings or the output projection, which must stay frozen",
                    where=module,
                    fix="omit it, or train adapters without an invertible block by hand",
                )
        self._model.requires_grad_(False)
        for name in names:
            in_float32(self.adapters[name])
        for module in also:
            self._lift(modules[module])
        for part in [*(self.adapters[name] for name in names), *(modules[module] for module in also)]:
            part.requires_grad_(True)

    def save(self, name: str, directory: str | Path, **metadata: object) -> Path:
        """Write one adapter in our layout (``adapterhub.write_adapter``), or in PEFT's if it came from there."""
        self._known((name,))
        adapter = self._adapter(name)
        if isinstance(adapter, PeftAdapter):
            return adapter.save(directory, **metadata)
        base = {"hidden_size": self.places.layers[0].width, "model_type": self._model.config.model_type}
        base |= {"model_name": self._model.config.name_or_path, "model_class": type(self._model).__name__}
        tensors = {key: tensor.detach().cpu() for key, tensor in adapter.state_dict().items()}
        return write_adapter(directory, AdapterFiles(name, adapter.config, tensors, metadata=base | metadata))

    def detach(self) -> PreTrainedModel:
        """Restore the model of before ``attach``, including ``requires_grad``; the adapters stay with this object."""
        self.set_stack()
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        for module, dtype, handle in self._lifted:
            handle.remove()
            module.to(dtype)
        self._lifted.clear()
        model: PreTrainedModel = self._model
        for name in ("adapter_stack", "set_stack", "using", "detach"):
            delattr(model, name)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        return model

    def _lift(self, module: nn.Module) -> None:
        dtype = next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), torch.float32)
        handle = in_float32(module)
        if handle is not None:
            self._lifted.append((module, dtype, handle))

    def _planned(self, names: Stack) -> StackPlan:
        plan = self._plans.get(names)
        if plan is None:
            self._known(names)
            adapters = [self._adapter(name) for name in names]
            plan = self._plans[names] = make_plan(adapters, self.places.layers)
        return plan

    def _place_hooks(self, adapter: BottleneckAdapter | PeftAdapter) -> None:
        if isinstance(adapter, PeftAdapter):
            for path, part in adapter.at():
                side = (path, part.side)
                place = Place(self._model.get_submodule(path), part.side)
                self._hook(side, place, ProjectionHook(self._running, side))
            return
        # All places are found before the first hook is registered, so that an error leaves the model unchanged.
        places = [
            (key_of(layer, location, adapter.config.reuse_norm), layer.place(location, adapter.config.reuse_norm))
            for layer in self.places.layers
            for location in LOCATIONS
            if adapter.at(layer, location) is not None
        ]
        if adapter.invertible is not None:
            self._require_width(adapter.invertible)
        for key, place in places:
            self._hook(key, place, BottleneckHook(self._running, key, place.norm))
        if adapter.invertible is not None:
            self._hook("embedding", self.places.embedding, InvertibleHook(self._running, inverse=False))
            if self.invert_head and self.places.head is not None:
                self._hook("head", Place(self.places.head, "input"), InvertibleHook(self._running, inverse=True))

    def _hook(self, key: object, place: Place, hook: Hook) -> None:
        if key not in self._handles:
            self._handles[key] = hook.place(place)

    def _require_width(self, block: Nice) -> None:
        head, width = self.places.head, sum(block.halves)
        read = getattr(head, "in_features", width)
        if self.invert_head and read != width:
            raise ModelError(
                "the inverse of the invertible adapter does not fit the output projection",
                where=type(self._model).__name__,
                found=f"a projection that reads {read}",
                expected=f"{width}, as wide as the embeddings",
                fix="use attach(..., invert_head=False), or adapters without an invertible part",
            )

    def _vocabulary(self) -> list[nn.Module]:
        parts = (self._model.get_input_embeddings(), self.places.head)
        return [part for part in parts if isinstance(part, nn.Module)]

    def _adapter(self, name: str) -> BottleneckAdapter | PeftAdapter:
        adapter = self.adapters[name]
        assert isinstance(adapter, BottleneckAdapter | PeftAdapter)
        return adapter

    def _known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.adapters:
                raise self._unknown("adapter", name, self.names)

    def _unknown(self, kind: str, name: str, known: Sequence[str]) -> ConfigError:
        similar = difflib.get_close_matches(name, known)
        expected = ", ".join(similar or known) or "none is loaded"
        return ConfigError(f"there is no such {kind}", found=repr(name), expected=expected, fix="correct the name")

    def _free_name(self, name: str | None) -> str:
        if not name or "." in name or name in self.adapters or hasattr(self.adapters, name):
            raise ConfigError(
                "this adapter needs a unique name without dots",
                found=repr(name),
                expected=f"a name without dots, other than {', '.join(self.names) or 'those of torch containers'}",
                fix="give it in names=[...]",
            )
        return name
