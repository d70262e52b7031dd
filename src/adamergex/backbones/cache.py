"""A cache that keeps the last backbone in memory between the steps of one process. Standard library only.

A backbone is used by one step at a time and returned when the step ends. If the step changed it or failed, the backbone
is dropped, and the next step loads it again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

T = TypeVar("T")
_kept: dict[Hashable, tuple[Any, Hashable]] = {}  # unused backbones: name -> (backbone, its state after loading)
_lent: dict[Hashable, tuple[Any, Hashable]] | None = None  # backbones in use by the running step; None outside steps


@contextmanager
def lending() -> Iterator[None]:
    """Context of one step, in which ``cached`` may return backbones loaded in earlier contexts; not concurrent."""
    global _lent
    if _lent is not None:  # nested: a step that runs other steps
        yield
        return
    _lent = {}
    try:
        yield
        for name, (backbone, state) in _lent.items():
            if _state(backbone.model) == state:
                _kept.clear()
                _kept[name] = backbone, state
    finally:
        _lent = None


def cached(identity: Callable[[], Hashable], load: Callable[[], T]) -> T:
    """The result of ``load``, or the same object from an earlier step. Outside of steps it is always loaded.

    The object has an attribute ``model``. A second request within a step loads a second copy, since the first may have
    changed.
    """
    if _lent is None:
        return load()
    name = identity()
    if name in _kept:
        _lent[name] = _kept.pop(name)
    elif name not in _lent:
        _kept.clear()  # before loading: two backbones may not fit
        backbone = load()
        _lent[name] = backbone, _state(backbone.model)  # type: ignore[attr-defined]
    else:
        return load()
    backbone = _lent[name][0]
    return cast(T, backbone)


def drop_backbone() -> None:
    """Drop the cached backbone to free its memory."""
    _kept.clear()


def _state(model: Any) -> Hashable:
    """A fingerprint of a model: its tensors, torch's counters of in-place writes, and its modules' hooks and overridden
    methods. Equal fingerprints mean an unchanged model."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return (
        model.training,
        tuple((name, *_attached(module)) for name, module in model.named_modules()),
        tuple((name, id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors),
    )


def _attached(module: Any) -> tuple[Hashable, ...]:
    hooks = (len(module._forward_hooks), len(module._forward_pre_hooks))
    return *hooks, tuple(name for name, value in vars(module).items() if callable(value))
