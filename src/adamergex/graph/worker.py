"""Running one step in this process, with its result in the store."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adamergex.backbones.cache import lending
from adamergex.errors import AdamergexError
from adamergex.graph.manifests import StoreError
from adamergex.graph.steps import Step, Store

Action = Callable[[Any, Mapping[str, Path], Path, Path], None]
"""(job, input directories, output directory to make, directory for resuming) -> None"""


class WorkerLostError(AdamergexError):
    """The process that ran a step ended before the step did; the step can be retried."""


def perform(step: Step, store: Store, actions: Mapping[str, Action]) -> None:
    """Run one step whose inputs are in the store, unless another process has made it meanwhile."""
    with store.lock(step):
        if store.has(step):
            return
        for parent in step.inputs.values():
            _require(parent, store)
        with lending(), store.producing(step) as output:
            inputs = {name: store.path(parent) for name, parent in step.inputs.items()}
            actions[step.kind](step.job, inputs, output, store.workdir(step))


def _require(step: Step, store: Store) -> None:
    """Raises: StoreError: an input is missing, or its files do not have the hashes of its manifest."""
    if not store.has(step):
        raise StoreError(
            "an input of the step is not whole",
            where=store.path(step),
            found=store.damaged.get(step.key, "nothing"),
            fix="run the same command again, which recreates it",
        )


def attempt(step: Step, root: Path, actions: Mapping[str, Action]) -> Exception | None:
    """``perform`` in a worker process: returns the error as a picklable value."""
    try:
        perform(step, Store(root), actions)
    except Exception as error:
        return sendable(error)
    return None


def sendable(error: Exception) -> Exception:
    """The error itself if it can be pickled, else a RuntimeError with the same text."""
    error.__traceback__ = error.__cause__ = None  # frames cannot be pickled
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
