"""Stacks of adapters on a model: several resident, any of them active in order, switched without touching the base."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from adamergex.adapters.adapterhub import AdapterFiles, read_adapter, write_adapter
from adamergex.adapters.bottleneck import Bottleneck, BottleneckAdapter, BottleneckConfig
from adamergex.adapters.invertible import Nice
from adamergex.adapters.places import WHERES, Layer, Place, Where, find_places
from adamergex.errors import ConfigError, IncompatibleAdaptersError, ModelError

Source = str | Path | BottleneckConfig | BottleneckAdapter | AdapterFiles
Stack = tuple[str, ...]
Key = tuple[str, int, str, bool]


class Plan(NamedTuple):
    """What one stack does: the modules of each place in order, and its first adapter's invertible part."""

    modules: Mapping[Key, tuple[Bottleneck, ...]]
    invertible: Nice | None


_NOTHING = Plan({}, None)


def attach(
    model: PreTrainedModel, *adapters: Source, names: Sequence[str] | None = None, invert_head: bool = True
) -> PreTrainedModel:
    """Put adapters on a model, in place, and make them its stack: the first lowest, nearest to the base.

        post-norm layer, s = x + r:  for A_i of the stack: s <- s + A_i(LN(s));  the layer goes on with LN(s)
        pre-norm layer:              the same with LN = identity;  houlsby: x <- x + A_i(x)

    ``adapters`` are directories (AdapterHub's or ours), configurations of new adapters, or adapters in memory;
    ``names`` are theirs, by default the files' own. The first one's invertible adapter changes the embeddings, and its
    inverse what the output projection reads, unless ``invert_head`` is false. All weights, the base's too, are frozen:
    ``model.adapter_stack.train_only`` opens what should learn. On a model that has a stack, more are added to it; an
    adapter's name that is there already is refused. The model gains ``adapter_stack`` (an AdapterStack, with ``add``
    and all else), ``set_stack``, ``using`` and ``detach``.

    Raises: AdapterFileError, IncompatibleAdaptersError, ConfigError, ModelError. Source: METHOD.md §2 (MAD-X).
    """
    if names is not None and len(names) != len(adapters):
        raise ConfigError("attach needs one name for each adapter", found=len(names), expected=len(adapters))
    present = getattr(model, "adapter_stack", None)
    stack = present if isinstance(present, AdapterStack) else AdapterStack(model, invert_head=invert_head)
    added: list[str] = []
    try:
        for position, adapter in enumerate(adapters):
            added.append(stack.add(adapter, names[position] if names else None))
        stack.set_stack(*added)
    except BaseException:
        # All or nothing: a model is never left with half of what was asked for.
        if stack is not present:
            stack.detach()
        else:
            for name in added:
                stack.remove(name)
        raise
    return model


class AdapterStack(nn.Module):
    """The adapters of one model and which of them are active. Kept on the model as ``model.adapter_stack``.

    Its weights are the model's (``.to``, DDP and optimizers see them); the base's modules, names and tensors stay as
    they were. Hooks are placed only where a resident adapter stands. One forward at a time: the active stack is state.
    """

    _model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, invert_head: bool = True) -> None:
        super().__init__()
        self.places = find_places(model)
        self.adapters = nn.ModuleDict()
        self.invert_head = invert_head
        self._active: Stack = ()
        self._plan = _NOTHING
        self._plans: dict[Stack, Plan] = {}
        self._rows: tuple[Stack, ...] = ()
        self._groups: tuple[tuple[Plan, tuple[int, ...]], ...] = ()
        self._order: tuple[int, ...] = ()
        self._handles: dict[object, Any] = {}
        self._trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        model.adapter_stack = self
        # A registered parent would make the model its own descendant.
        object.__setattr__(self, "_model", model)
        for shortcut in ("set_stack", "using", "detach"):
            setattr(model, shortcut, getattr(self, shortcut))

    @property
    def names(self) -> Stack:
        """All resident adapters."""
        return tuple(self.adapters)

    @property
    def active(self) -> Stack:
        """The active stack, lowest first; empty for the bare base, and while rows have stacks of their own."""
        return self._active

    def add(self, adapter: Source, name: str | None = None) -> str:
        """Make one more adapter resident, without activating it; its name.

        Raises: AdapterFileError, IncompatibleAdaptersError, ModelError, as ``attach``; ConfigError for a bad name.
        """
        where: object = adapter if isinstance(adapter, str | Path) else "adapter"
        if isinstance(adapter, str | Path):
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
        """Take one adapter off; stacks that hold it are given up."""
        self._known((name,))
        if name in self._active or any(name in row for row in self._rows):
            self.set_stack()
        self._plans = {stack: plan for stack, plan in self._plans.items() if name not in stack}
        del self.adapters[name]

    def set_stack(self, *names: str) -> None:
        """Activate resident adapters in this order, the first lowest; none for the bare base.

        Raises: ConfigError for a name that is not resident; IncompatibleAdaptersError for an order that cannot be.
        """
        self._plan, self._active = self._planned(names), names
        self._rows, self._groups, self._order = (), (), ()

    def set_rows(self, rows: Sequence[Sequence[str]]) -> None:
        """Give each row of the next batches its own stack: ``rows[i]`` for row i, in one forward pass.

        A batch k times as long (beams, choices) takes each stack k times in a row. Raises: as ``set_stack``.
        """
        stacks = tuple(tuple(row) for row in rows)
        if not stacks:
            raise ConfigError("a mixed batch needs the stack of each row", found="no rows", fix="use set_stack instead")
        groups = {stack: [row for row, own in enumerate(stacks) if own == stack] for stack in dict.fromkeys(stacks)}
        planned = tuple((self._planned(stack), tuple(numbers)) for stack, numbers in groups.items())
        order = [row for numbers in groups.values() for row in numbers]
        self._plan, self._active, self._rows, self._groups = _NOTHING, (), stacks, planned
        self._order = tuple(sorted(range(len(order)), key=order.__getitem__))

    @contextmanager
    def using(self, *names: str, rows: Sequence[Sequence[str]] | None = None) -> Iterator[PreTrainedModel]:
        """``with model.using("sw", "ner-en"): ...`` or ``using(rows=[("sw", "ner-en"), ("tr", "ner-en")])``; afterwards
        the stack before it is active again."""
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
        """Let these adapters learn, and the base's modules named in ``also`` (a classifier); freeze all else.

        The output projection stays frozen whether it is tied or not: the inverse has to meet the weights that the
        embeddings were made with. Raises: ConfigError for an unknown name, or a module that holds the projection.
        """
        self._known(names)
        modules = dict(self._model.named_modules())
        kept = {id(parameter) for part in self._vocabulary() for parameter in part.parameters()}
        for module in also:
            if module not in modules:
                raise self._unknown("module", module, tuple(modules))
            if any(id(parameter) in kept for parameter in modules[module].parameters()):
                raise ConfigError(
                    "this module holds the embeddings or the output projection, which stay frozen",
                    where=module,
                    fix="leave it out, or train adapters without an invertible part by hand",
                )
        self._model.requires_grad_(False)
        for part in [*(self.adapters[name] for name in names), *(modules[module] for module in also)]:
            part.requires_grad_(True)

    def save(self, name: str, directory: str | Path, **metadata: object) -> Path:
        """Write one adapter as a directory of ours; see ``adapterhub.write_adapter``."""
        self._known((name,))
        adapter = self.adapters[name]
        assert isinstance(adapter, BottleneckAdapter)
        base = {"hidden_size": self.places.layers[0].width, "model_type": self._model.config.model_type}
        base |= {"model_name": self._model.config.name_or_path, "model_class": type(self._model).__name__}
        tensors = {key: tensor.detach().cpu() for key, tensor in adapter.state_dict().items()}
        return write_adapter(directory, AdapterFiles(name, adapter.config, tensors, metadata=base | metadata))

    def detach(self) -> PreTrainedModel:
        """The model as it was before ``attach``, its ``requires_grad`` included; the adapters go with this object."""
        self.set_stack()
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        model: PreTrainedModel = self._model
        for name in ("adapter_stack", "set_stack", "using", "detach"):
            delattr(model, name)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        return model

    def change(self, key: Key, states: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """s <- s + A_i(LN(s)) for the modules that stand at a place; (batch, length, hidden) -> same."""
        if self._groups:
            plans = [plan.modules.get(key, ()) for plan, _ in self._groups]
            if not any(plans):
                return states
            return self._by_rows(states, lambda part, group: _stacked(part, plans[group], norm))
        return _stacked(states, self._plan.modules.get(key, ()), norm)

    def couple(self, states: torch.Tensor, inverse: bool) -> torch.Tensor:
        """The invertible part of each row's first adapter, or its inverse; (batch, length, width) -> same."""
        if self._groups:
            blocks = [plan.invertible for plan, _ in self._groups]
            if not any(blocks):
                return states
            return self._by_rows(states, lambda part, group: _coupled(part, blocks[group], inverse))
        return _coupled(states, self._plan.invertible, inverse)

    def _by_rows(self, states: torch.Tensor, change: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
        times, rest = divmod(states.shape[0], len(self._rows))
        if rest or states.ndim != 3:
            raise ModelError(
                "the batch does not have the rows that set_rows was told of",
                found=f"states of shape {tuple(states.shape)}",
                expected=f"(a multiple of {len(self._rows)}, length, width)",
                fix="give set_rows one stack for each row, and keep rows whole up to the output projection",
            )
        parts = states.reshape(len(self._rows), times, *states.shape[1:])
        changed = [
            change(parts[list(rows)].flatten(0, 1), group).reshape(len(rows), times, *states.shape[1:])
            for group, (_, rows) in enumerate(self._groups)
        ]
        return torch.cat(changed)[list(self._order)].flatten(0, 1)

    def _planned(self, names: Stack) -> Plan:
        plan = self._plans.get(names)
        if plan is None:
            self._known(names)
            plan = self._plans[names] = self._make_plan([self._adapter(name) for name in names])
        return plan

    def _make_plan(self, adapters: Sequence[BottleneckAdapter]) -> Plan:
        modules: dict[Key, tuple[Bottleneck, ...]] = {}
        for layer in self.places.layers:
            for where in WHERES:
                found = [(adapter.config.reuse_norm, adapter.at(layer, where)) for adapter in adapters]
                kinds = [reuse for reuse, module in found if module is not None]
                if kinds != sorted(kinds):
                    raise IncompatibleAdaptersError(
                        "an adapter that reads x (houlsby) cannot stand on one that reads LN(x + r) (pfeiffer)",
                        where=layer.path,
                        expected="one kind in a stack, or houlsby below pfeiffer",
                        fix="train the upper adapter with the pfeiffer configuration",
                    )
                for reuse in set(kinds):
                    chosen = tuple(module for own, module in found if own is reuse and module is not None)
                    modules[_key(layer, where, reuse)] = chosen
        return Plan(modules, adapters[0].invertible if adapters else None)

    def _place_hooks(self, adapter: BottleneckAdapter) -> None:
        wanted: list[tuple[Key, Place]] = []
        for layer in self.places.layers:
            for where in WHERES:
                if adapter.at(layer, where) is not None:
                    reuse = adapter.config.reuse_norm
                    wanted.append((_key(layer, where, reuse), layer.place(where, reuse)))
        if adapter.invertible is not None:
            self._require_width(adapter.invertible)
        for key, place in wanted:
            self._hook(key, place, _Change(self, key, place.norm))
        if adapter.invertible is not None:
            self._hook("embedding", self.places.embedding, _Couple(self, inverse=False))
            if self.invert_head and self.places.head is not None:
                self._hook("head", Place(self.places.head, "input"), _Couple(self, inverse=True))

    def _hook(self, key: object, place: Place, hook: _Hook) -> None:
        if key in self._handles:
            return
        # First among the module's hooks, so that recorded hidden states are those that the next layer reads.
        if place.side == "input":
            self._handles[key] = place.module.register_forward_pre_hook(hook.before, prepend=True)
        else:
            self._handles[key] = place.module.register_forward_hook(hook.after, prepend=True)

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

    def _adapter(self, name: str) -> BottleneckAdapter:
        adapter = self.adapters[name]
        assert isinstance(adapter, BottleneckAdapter)
        return adapter

    def _known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.adapters:
                raise self._unknown("adapter", name, self.names)

    def _unknown(self, what: str, name: str, known: Sequence[str]) -> ConfigError:
        near = difflib.get_close_matches(name, known)
        expected = ", ".join(near or known) or "none is resident"
        return ConfigError(f"there is no such {what}", found=repr(name), expected=expected, fix="correct the name")

    def _free_name(self, name: str | None) -> str:
        if not name or "." in name or name in self.adapters or hasattr(self.adapters, name):
            raise ConfigError(
                "this adapter needs a name of its own",
                found=repr(name),
                expected=f"a name without dots, other than {', '.join(self.names) or 'those of torch containers'}",
                fix="give it in names=[...]",
            )
        return name


class _Hook(ABC):
    """A change of a module's input or output, whichever it is hooked to; only the first tensor is changed."""

    def __init__(self, stack: AdapterStack) -> None:
        self.stack = stack

    @abstractmethod
    def change(self, states: torch.Tensor) -> torch.Tensor: ...

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.change(args[0]), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.change(output[0]), *output[1:])
        return self.change(output)


class _Change(_Hook):
    def __init__(self, stack: AdapterStack, key: Key, norm: nn.Module | None) -> None:
        super().__init__(stack)
        self.key, self.norm = key, norm

    def change(self, states: torch.Tensor) -> torch.Tensor:
        return self.stack.change(self.key, states, self.norm)


class _Couple(_Hook):
    def __init__(self, stack: AdapterStack, inverse: bool) -> None:
        super().__init__(stack)
        self.inverse = inverse

    def change(self, states: torch.Tensor) -> torch.Tensor:
        return self.stack.couple(states, self.inverse)


def _key(layer: Layer, where: Where, reuse_norm: bool) -> Key:
    return (layer.group, layer.index, where, reuse_norm)


def _stacked(states: torch.Tensor, modules: tuple[Bottleneck, ...], norm: nn.Module | None) -> torch.Tensor:
    for module in modules:
        # forward, not the call: the norm's own hook is this one.
        states = states + module(states if norm is None else norm.forward(states))
    return states


def _coupled(states: torch.Tensor, block: Nice | None, inverse: bool) -> torch.Tensor:
    if block is None:
        return states
    return block.inverse(states) if inverse else block(states)
