"""What happens where a step runs: one step, in this process, into the store."""

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
    """The process that ran a step ended before the step did; another may try."""


def perform(step: Step, store: Store, actions: Mapping[str, Action]) -> None:
    """Run one step whose inputs are in the store, unless another process has made it meanwhile."""
    with store.lock(step):
        if store.has(step):
            return
        for other in step.inputs.values():
            _require(other, store)
        with lending(), store.producing(step) as output:
            inputs = {name: store.path(other) for name, other in step.inputs.items()}
            actions[step.kind](step.job, inputs, output, store.workdir(step))


def _require(step: Step, store: Store) -> None:
    """Raises: StoreError: an input that is not there, or whose files no longer have the hashes of its manifest."""
    if not store.has(step):
        raise StoreError(
            "an input of the step is not whole",
            where=store.path(step),
            found=store.damaged.get(step.key, "nothing"),
            fix="run the same command again: it is made again",
        )


def attempt(step: Step, root: Path, actions: Mapping[str, Action]) -> Exception | None:
    """``perform`` for another process to call: the error comes back as a value that can be sent."""
    try:
        perform(step, Store(root), actions)
    except Exception as error:
        return sendable(error)
    return None


def sendable(error: Exception) -> Exception:
    """The error itself when pickle can send it, else one that says the same."""
    error.__traceback__ = error.__cause__ = None  # frames cannot be sent
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
