"""The engine that runs every step in this process, inputs first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from adamergex.errors import AdamergexError
from adamergex.graph import Step, Store, in_order

Action = Callable[[Mapping[str, Any], Mapping[str, Path], Path, Path], None]
"""(job, input directories, output directory to make, directory for resuming) -> None"""


class StepsFailedError(AdamergexError):
    """Some steps failed; what did not depend on them is done and kept."""


def needed(wanted: Iterable[Step], store: Store) -> list[Step]:
    """The steps that must run, inputs first: those of the wanted whose results are not in the store, and theirs."""
    missing: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in missing and not store.has(step):
            missing[step.key] = step
            for name in sorted(step.inputs):
                visit(step.inputs[name])

    for step in wanted:
        visit(step)
    return [step for step in in_order(missing.values()) if step.key in missing]


def run(
    wanted: Iterable[Step],
    store: Store,
    actions: Mapping[str, Action],
    say: Callable[[str], None] = print,
) -> None:
    """Run what is missing. A failed step fails what depends on it and nothing else; then one error names them all.

    Raises:
        StepsFailedError: one or more steps failed. The first failure is its cause.
    """
    failures: dict[str, Exception] = {}
    steps = needed(wanted, store)
    for number, step in enumerate(steps, 1):
        place = f"[{number}/{len(steps)}] {step.kind:9s} {step.label}"
        if any(other.key in failures for other in step.inputs.values()):
            failures[step.key] = AdamergexError("an input failed", where=step.label)
            say(f"{place} - skipped, an input failed")
            continue
        say(place)
        try:
            with store.producing(step) as output:
                inputs = {name: store.path(other) for name, other in step.inputs.items()}
                actions[step.kind](step.job, inputs, output, store.workdir(step))
        except Exception as error:  # kept and raised below: the other branches of the graph go on
            failures[step.key] = error
            say(f"{place} - failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    if failures:
        labels = {step.key: f"{step.kind} {step.label}" for step in steps}
        first = next(iter(failures.values()))
        if len(failures) == 1 and isinstance(first, AdamergexError):
            raise first
        raise StepsFailedError(
            f"{len(failures)} of {len(steps)} steps failed",
            where="; ".join(labels[key] for key in failures),
            found=f"{type(first).__name__}: {first}",
            fix="mend the first one and run the same command again: what is done is kept",
        ) from first
