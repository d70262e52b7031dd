"""Engines by name: local, ray, and those of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from adamergex.errors import ConfigError
from adamergex.files.registry import Registry
from adamergex.graph.steps import Step, Store
from adamergex.graph.worker import Action


class Work(NamedTuple):
    """The input of an engine; ``workers``, ``address`` and ``gpus`` as in ``adamergex study``, None if omitted."""

    steps: Sequence[Step]
    store: Store
    actions: Mapping[str, Action]
    say: Callable[[str], None]
    group: Callable[[Step], Hashable]
    workers: int | None = None
    address: str | None = None
    gpus: float | None = None


class EngineKind(NamedTuple):
    """An engine: ``run`` runs the missing steps, and raises StepsFailedError if any of them fail (see ``walk``)."""

    name: str
    run: Callable[[Work], None]


def _local(work: Work) -> None:
    import torch

    from adamergex.graph import local

    gpus = torch.cuda.device_count()
    processes = work.workers or max(gpus, 1)
    if 0 < gpus < processes:
        raise ConfigError(
            "more workers than GPUs",
            where="--workers",
            found=processes,
            expected=f"at most {gpus}",
            fix="lower --workers",
        )
    local.run(work.steps, work.store, work.actions, work.say, processes=processes, gpus=gpus > 0, group=work.group)


def _ray(work: Work) -> None:
    from adamergex.graph import ray

    options = {"address": work.address, "workers": work.workers, "gpus": work.gpus}
    ray.run(work.steps, work.store, work.actions, work.say, **options, group=work.group)  # type: ignore[arg-type]


_BUILT_IN = {kind.name: kind for kind in (EngineKind("local", _local), EngineKind("ray", _ray))}
_ENGINES: Registry[EngineKind] = Registry("adamergex.engines", tuple(_BUILT_IN))
register = _ENGINES.register
"""Register an ``EngineKind`` in this process; an installed package declares it as an entry point of the engine's name
in the group ``adamergex.engines``, also for the command line. Raises: ConfigError: its name is taken."""


def engine_named(name: str) -> EngineKind:
    """The engine with this name. Raises: ConfigError: there is none."""
    engine = _BUILT_IN.get(name) or _ENGINES.find(name)
    if engine is None:
        raise ConfigError(
            "there is no such engine", where="--engine", found=name, expected=", ".join(_ENGINES),
            fix="choose one of these, or install the package that has it",
        )  # fmt: skip
    return engine
