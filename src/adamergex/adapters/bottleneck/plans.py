"""What the active stack, or each row's stack, does at every place of a model, and the hooks that apply it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from adamergex.adapters.bottleneck.invertible import Nice
from adamergex.adapters.bottleneck.modules import BottleneckAdapter, BottleneckLayer
from adamergex.adapters.bottleneck.places import LOCATIONS, Layer, Location, Place
from adamergex.adapters.bottleneck.projections import HeadLinear, PeftAdapter, ProjectionChange, Side
from adamergex.errors import IncompatibleAdaptersError, ModelError

Key = tuple[str, int, str, bool]
ProjectionKey = tuple[str, Side]


class StackPlan(NamedTuple):
    """What one stack does, in order: the bottlenecks at each place, the changes of each linear module's input or
    output, and the invertible block of its first bottleneck adapter."""

    modules: Mapping[Key, tuple[BottleneckLayer, ...]]
    parts: Mapping[ProjectionKey, tuple[ProjectionChange, ...]]
    invertible: Nice | None


NOTHING = StackPlan({}, {}, None)


def key_of(layer: Layer, location: Location, reuse_norm: bool) -> Key:
    """The key of a place of bottlenecks."""
    return (layer.group, layer.index, location, reuse_norm)


def make_plan(adapters: Sequence[BottleneckAdapter | PeftAdapter], layers: Sequence[Layer]) -> StackPlan:
    """The plan of a stack, lowest adapter first. Raises: IncompatibleAdaptersError for an impossible order."""
    bottlenecks = [adapter for adapter in adapters if isinstance(adapter, BottleneckAdapter)]
    modules: dict[Key, tuple[BottleneckLayer, ...]] = {}
    for layer in layers:
        for location in LOCATIONS:
            here = [(adapter.config.reuse_norm, adapter.at(layer, location)) for adapter in bottlenecks]
            kinds = [reuse for reuse, module in here if module is not None]
            if kinds != sorted(kinds):
                raise IncompatibleAdaptersError(
                    "an adapter that reads x (houlsby) cannot be stacked on one that reads LN(x + r) (pfeiffer)",
                    where=layer.path,
                    expected="one kind in a stack, or houlsby below pfeiffer",
                    fix="train the upper adapter with the pfeiffer configuration",
                )
            for reuse in set(kinds):
                modules[key_of(layer, location, reuse)] = tuple(
                    module for reuse_norm, module in here if reuse_norm is reuse and module is not None
                )
    parts: dict[ProjectionKey, list[ProjectionChange]] = {}
    for adapter in adapters:
        for path, part in adapter.at() if isinstance(adapter, PeftAdapter) else ():
            parts.setdefault((path, part.side), []).append(part)
    # A head replaces the module; changes of the module, from below or above, then apply to the head.
    ordered = {
        key: tuple(sorted(changes, key=lambda part: not isinstance(part, HeadLinear))) for key, changes in parts.items()
    }
    return StackPlan(modules, ordered, bottlenecks[0].invertible if bottlenecks else None)


class Active:
    """The active plan, or one for each group of rows of a mixed batch. This is state: run one forward at a time."""

    def __init__(self) -> None:
        self._plan = NOTHING
        self._rows = 0
        self._groups: tuple[tuple[StackPlan, tuple[int, ...]], ...] = ()
        self._order: tuple[int, ...] = ()

    def use(self, plan: StackPlan) -> None:
        """Use one plan for every row."""
        self._plan, self._rows, self._groups, self._order = plan, 0, (), ()

    def use_rows(self, groups: Sequence[tuple[StackPlan, Sequence[int]]]) -> None:
        """Use each plan for its rows; together the rows are 0 … n - 1."""
        order = [row for _, numbers in groups for row in numbers]
        self._plan, self._rows = NOTHING, len(order)
        self._groups = tuple((plan, tuple(numbers)) for plan, numbers in groups)
        self._order = tuple(sorted(range(len(order)), key=order.__getitem__))

    def change(self, key: Key, states: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """s <- s + A_i(LN(s)) for the modules at a place; (batch, length, hidden) -> same."""
        if self._groups:
            plans = [plan.modules.get(key, ()) for plan, _ in self._groups]
            if not any(plans):
                return states
            return self._by_rows(lambda group, part: _stacked(part, plans[group], norm), states)
        return _stacked(states, self._plan.modules.get(key, ()), norm)

    def couple(self, states: torch.Tensor, inverse: bool) -> torch.Tensor:
        """The invertible block of each row's stack, or its inverse; (batch, length, width) -> same."""
        if self._groups:
            blocks = [plan.invertible for plan, _ in self._groups]
            if not any(blocks):
                return states
            return self._by_rows(lambda group, part: _coupled(part, blocks[group], inverse), states)
        return _coupled(states, self._plan.invertible, inverse)

    def project(self, key: ProjectionKey, read: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """A linear module's input or output, changed by LoRA, (IA)³ and heads; (batch, length, width) -> same."""
        if self._groups:
            plans = [plan.parts.get(key, ()) for plan, _ in self._groups]
            if not any(plans):
                return given
            # A head may read one state per row; elsewhere two dimensions mean that rows were flattened into positions.
            pooled = all(isinstance(part, HeadLinear) for parts in plans for part in parts)
            return self._by_rows(lambda group, x, y: _projected(x, y, plans[group]), read, given, pooled=pooled)
        return _projected(read, given, self._plan.parts.get(key, ()))

    def _by_rows(
        self, change: Callable[..., torch.Tensor], *states: torch.Tensor, pooled: bool = False
    ) -> torch.Tensor:
        repeats, rest = divmod(states[0].shape[0], self._rows)
        if rest or not (states[0].ndim == 3 or (pooled and states[0].ndim == 2)):
            raise ModelError(
                "the batch does not have the rows that set_rows was given",
                found=f"states of shape {tuple(states[0].shape)}",
                expected=f"(a multiple of {self._rows}, length, width)",
                fix="give set_rows one stack per row, and do not split rows before the output projection",
            )
        parts = [tensor.reshape(self._rows, repeats, *tensor.shape[1:]) for tensor in states]
        changed = []
        for group, (_, rows) in enumerate(self._groups):
            output = change(group, *(part[list(rows)].flatten(0, 1) for part in parts))
            changed.append(output.reshape(len(rows), repeats, *output.shape[1:]))
        return torch.cat(changed)[list(self._order)].flatten(0, 1)


class Hook(ABC):
    """Changes a module's input or output, depending on where it is hooked; only the first tensor changes."""

    def __init__(self, active: Active) -> None:
        self.active = active

    def place(self, place: Place) -> Any:
        """Register the hook at a place; returns its handle."""
        # Runs first, so that recorded hidden states are those that the next layer reads.
        if place.side == "input":
            return place.module.register_forward_pre_hook(self.before, prepend=True)
        return place.module.register_forward_hook(self.after, prepend=True)

    @abstractmethod
    def change(self, states: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
        """``states``: the module's input or output; ``read``: its input."""

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.change(args[0], args[0]), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        read = args[0] if args else None
        if isinstance(output, tuple):
            return (self.change(output[0], read), *output[1:])
        return self.change(output, read)


class BottleneckHook(Hook):
    """Bottlenecks at a place."""

    def __init__(self, active: Active, key: Key, norm: nn.Module | None) -> None:
        super().__init__(active)
        self.key, self.norm = key, norm

    def change(self, states: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
        return self.active.change(self.key, states, self.norm)


class InvertibleHook(Hook):
    """The invertible block at the embeddings, or its inverse before the output projection."""

    def __init__(self, active: Active, inverse: bool) -> None:
        super().__init__(active)
        self.inverse = inverse

    def change(self, states: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
        return self.active.couple(states, self.inverse)


class ProjectionHook(Hook):
    """LoRA, (IA)³ and heads at a linear module."""

    def __init__(self, active: Active, key: ProjectionKey) -> None:
        super().__init__(active)
        self.key = key

    def change(self, states: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
        assert read is not None  # linear modules are called with one argument, their input
        return self.active.project(self.key, read, states)


def _stacked(states: torch.Tensor, modules: tuple[BottleneckLayer, ...], norm: nn.Module | None) -> torch.Tensor:
    for module in modules:
        # forward instead of a call: this code runs inside the norm's hook.
        states = states + module(states if norm is None else norm.forward(states))
    return states


def _coupled(states: torch.Tensor, block: Nice | None, inverse: bool) -> torch.Tensor:
    if block is None:
        return states
    return block.inverse(states) if inverse else block(states)


def _projected(read: torch.Tensor, given: torch.Tensor, parts: tuple[ProjectionChange, ...]) -> torch.Tensor:
    for part in parts:
        given = part(read, given)
    return given
