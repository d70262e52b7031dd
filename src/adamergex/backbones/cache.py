"""The last backbone stays in memory between the steps of one process. Standard library only.

A backbone is lent to one step at a time and comes back when the step ends. One that came back changed, or from a step
that failed, is dropped, and the next step loads its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_kept: dict[Hashable, tuple[Any, Hashable]] = {}  # what nobody uses now: name -> (backbone, its state when it was new)
_lent: dict[Hashable, tuple[Any, Hashable]] | None = None  # what the running step uses; None outside of steps


@contextmanager
def lending() -> Iterator[None]:
    """Within the block ``cached`` may hand out what an earlier block loaded; one block at a time."""
    global _lent
    if _lent is not None:  # a step that runs steps of its own
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
    """What ``load`` gives, or the same thing from an earlier step. Outside of steps it is always loaded.

    What is loaded has a ``model``. A second request within one step gets a second copy: the first may be changed.
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
    found: T = _lent[name][0]
    return found


def drop() -> None:
    """Forget what is kept, to free its memory."""
    _kept.clear()


def _state(model: Any) -> Hashable:
    """Which tensors a model has, how often each was written in place (torch counts it), and what hangs on its modules
    (hooks, another ``forward``): equal means untouched."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return (
        model.training,
        tuple((name, *_attached(module)) for name, module in model.named_modules()),
        tuple((name, id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors),
    )


def _attached(module: Any) -> tuple[Hashable, ...]:
    hooks = (len(module._forward_hooks), len(module._forward_pre_hooks))
    return *hooks, tuple(name for name, value in vars(module).items() if callable(value))
