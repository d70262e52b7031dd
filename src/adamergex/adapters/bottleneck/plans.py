"""What the active stack, or each row's own stack, does at every place of a model; and the hooks that ask for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from adamergex.adapters.bottleneck.invertible import Nice
from adamergex.adapters.bottleneck.modules import Bottleneck, BottleneckAdapter
from adamergex.adapters.bottleneck.places import WHERES, Layer, Place, Where
from adamergex.adapters.bottleneck.projections import Part, PeftAdapter, Replacement, Side
from adamergex.errors import IncompatibleAdaptersError, ModelError

Key = tuple[str, int, str, bool]
PartKey = tuple[str, Side]


class Plan(NamedTuple):
    """What one stack does, in order: the bottlenecks of each place, the changes of each linear module's input or
    output, and the invertible part of its first bottleneck adapter."""

    modules: Mapping[Key, tuple[Bottleneck, ...]]
    parts: Mapping[PartKey, tuple[Part, ...]]
    invertible: Nice | None


NOTHING = Plan({}, {}, None)


def key_of(layer: Layer, where: Where, reuse_norm: bool) -> Key:
    """The name of a place of bottlenecks."""
    return (layer.group, layer.index, where, reuse_norm)


def make_plan(adapters: Sequence[BottleneckAdapter | PeftAdapter], layers: Sequence[Layer]) -> Plan:
    """The plan of a stack, the first adapter lowest. Raises: IncompatibleAdaptersError for an order that cannot be."""
    bottlenecks = [adapter for adapter in adapters if isinstance(adapter, BottleneckAdapter)]
    modules: dict[Key, tuple[Bottleneck, ...]] = {}
    for layer in layers:
        for where in WHERES:
            found = [(adapter.config.reuse_norm, adapter.at(layer, where)) for adapter in bottlenecks]
            kinds = [reuse for reuse, module in found if module is not None]
            if kinds != sorted(kinds):
                raise IncompatibleAdaptersError(
                    "an adapter that reads x (houlsby) cannot be stacked on one that reads LN(x + r) (pfeiffer)",
                    where=layer.path,
                    expected="one kind in a stack, or houlsby below pfeiffer",
                    fix="train the upper adapter with the pfeiffer configuration",
                )
            for reuse in set(kinds):
                chosen = tuple(module for own, module in found if own is reuse and module is not None)
                modules[key_of(layer, where, reuse)] = chosen
    parts: dict[PartKey, list[Part]] = {}
    for adapter in adapters:
        for path, part in adapter.at() if isinstance(adapter, PeftAdapter) else ():
            parts.setdefault((path, part.side), []).append(part)
    # A head takes the module's place; what changes the module, below it or above, then changes the head.
    ordered = {
        key: tuple(sorted(found, key=lambda part: not isinstance(part, Replacement))) for key, found in parts.items()
    }
    return Plan(modules, ordered, bottlenecks[0].invertible if bottlenecks else None)


class Active:
    """The plan that runs, or one for each group of rows of a mixed batch. One forward at a time: this is state."""

    def __init__(self) -> None:
        self._plan = NOTHING
        self._rows = 0
        self._groups: tuple[tuple[Plan, tuple[int, ...]], ...] = ()
        self._order: tuple[int, ...] = ()

    def use(self, plan: Plan) -> None:
        """The same stack for every row."""
        self._plan, self._rows, self._groups, self._order = plan, 0, (), ()

    def use_rows(self, groups: Sequence[tuple[Plan, Sequence[int]]]) -> None:
        """Each plan for its rows; all rows together are 0 … n - 1."""
        order = [row for _, numbers in groups for row in numbers]
        self._plan, self._rows = NOTHING, len(order)
        self._groups = tuple((plan, tuple(numbers)) for plan, numbers in groups)
        self._order = tuple(sorted(range(len(order)), key=order.__getitem__))

    def change(self, key: Key, states: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """s <- s + A_i(LN(s)) for the modules that stand at a place; (batch, length, hidden) -> same."""
        if self._groups:
            plans = [plan.modules.get(key, ()) for plan, _ in self._groups]
            if not any(plans):
                return states
            return self._by_rows(lambda group, part: _stacked(part, plans[group], norm), states)
        return _stacked(states, self._plan.modules.get(key, ()), norm)

    def couple(self, states: torch.Tensor, inverse: bool) -> torch.Tensor:
        """The invertible part of each row's stack, or its inverse; (batch, length, width) -> same."""
        if self._groups:
            blocks = [plan.invertible for plan, _ in self._groups]
            if not any(blocks):
                return states
            return self._by_rows(lambda group, part: _coupled(part, blocks[group], inverse), states)
        return _coupled(states, self._plan.invertible, inverse)

    def project(self, key: PartKey, read: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """What a linear module reads or gives, changed by LoRA, (IA)³ and heads; (batch, length, width) -> same."""
        if self._groups:
            plans = [plan.parts.get(key, ()) for plan, _ in self._groups]
            if not any(plans):
                return given
            # A head may read one state per row; elsewhere two dimensions mean rows that were flattened into positions.
            pooled = all(isinstance(part, Replacement) for parts in plans for part in parts)
            return self._by_rows(lambda group, x, y: _projected(x, y, plans[group]), read, given, pooled=pooled)
        return _projected(read, given, self._plan.parts.get(key, ()))

    def _by_rows(
        self, change: Callable[..., torch.Tensor], *states: torch.Tensor, pooled: bool = False
    ) -> torch.Tensor:
        times, rest = divmod(states[0].shape[0], self._rows)
        if rest or not (states[0].ndim == 3 or (pooled and states[0].ndim == 2)):
            raise ModelError(
                "the batch does not have the rows that set_rows was given",
                found=f"states of shape {tuple(states[0].shape)}",
                expected=f"(a multiple of {self._rows}, length, width)",
                fix="give set_rows one stack for each row, and keep rows whole up to the output projection",
            )
        parts = [tensor.reshape(self._rows, times, *tensor.shape[1:]) for tensor in states]
        changed = []
        for group, (_, rows) in enumerate(self._groups):
            own = change(group, *(part[list(rows)].flatten(0, 1) for part in parts))
            changed.append(own.reshape(len(rows), times, *own.shape[1:]))
        return torch.cat(changed)[list(self._order)].flatten(0, 1)


class Hook(ABC):
    """A change of a module's input or output, whichever it is hooked to; only the first tensor is changed."""

    def __init__(self, active: Active) -> None:
        self.active = active

    def place(self, place: Place) -> Any:
        """Hook it to a place; the handle that takes it off."""
        # First among the module's hooks, so that recorded hidden states are those that the next layer reads.
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


class Change(Hook):
    """Bottlenecks at a place."""

    def __init__(self, active: Active, key: Key, norm: nn.Module | None) -> None:
        super().__init__(active)
        self.key, self.norm = key, norm

    def change(self, states: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
        return self.active.change(self.key, states, self.norm)


class Couple(Hook):
    """The invertible part at the embeddings, or its inverse before the output projection."""

    def __init__(self, active: Active, inverse: bool) -> None:
        super().__init__(active)
        self.inverse = inverse

    def change(self, states: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
        return self.active.couple(states, self.inverse)


class Project(Hook):
    """LoRA, (IA)³ and heads at a linear module."""

    def __init__(self, active: Active, key: PartKey) -> None:
        super().__init__(active)
        self.key = key

    def change(self, states: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
        assert read is not None  # linear modules are called with their input alone
        return self.active.project(self.key, read, states)


def _stacked(states: torch.Tensor, modules: tuple[Bottleneck, ...], norm: nn.Module | None) -> torch.Tensor:
    for module in modules:
        # forward, not the call: the norm's own hook is this one.
        states = states + module(states if norm is None else norm.forward(states))
    return states


def _coupled(states: torch.Tensor, block: Nice | None, inverse: bool) -> torch.Tensor:
    if block is None:
        return states
    return block.inverse(states) if inverse else block(states)


def _projected(read: torch.Tensor, given: torch.Tensor, parts: tuple[Part, ...]) -> torch.Tensor:
    for part in parts:
        given = part(read, given)
    return given
