"""Every kind of task, one file each, and the registry that finds them.

A kind of your own is a ``TaskKind`` in a module (docs/architecture.md, "Where to add things").
"""

from __future__ import annotations

from typing import cast

from adamergex.jobs.kinds import KINDS
from adamergex.jobs.settings import Task
from adamergex.tasks.answering.writing import WRITERS as WRITERS
from adamergex.tasks.kinds import (
    classification,
    generation,
    language_modeling,
    multiple_choice,
    pair_classification,
    sentence_alignment,
    sentence_contrast,
    span,
    tagging,
)
from adamergex.tasks.task_kind import Answering as Answering
from adamergex.tasks.task_kind import Answers as Answers
from adamergex.tasks.task_kind import AnyKind as AnyKind
from adamergex.tasks.task_kind import Labels as Labels
from adamergex.tasks.task_kind import Options as Options
from adamergex.tasks.task_kind import Request as Request
from adamergex.tasks.task_kind import TaskKind as TaskKind
from adamergex.tasks.task_kind import Writing as Writing
from adamergex.tasks.task_kind import XltForm as XltForm

_BUILT_IN: dict[str, AnyKind] = {
    module.KIND.name: module.KIND
    for module in (
        classification,
        pair_classification,
        multiple_choice,
        span,
        tagging,
        generation,
        language_modeling,
        sentence_contrast,
        sentence_alignment,
    )
}
register = KINDS.register
"""Register a ``TaskKind`` in this process; an installed package declares it as an entry point of the kind's name in the
group ``adamergex.task_kinds``. Raises: ConfigError: its name is taken."""


def kind_of(task: Task | str) -> AnyKind:
    """The kind of a task, by the task or by the kind's name in settings."""
    name = task if isinstance(task, str) else task.kind
    kind = _BUILT_IN.get(name) or KINDS.find(name)
    assert kind is not None, name
    return cast("AnyKind", kind)


def labelled_kinds() -> dict[str, AnyKind]:
    """The loaded kinds with labels, by name; built-in ones first."""
    known = (*_BUILT_IN.values(), *(cast("AnyKind", kind) for kind in KINDS.loaded))
    return {kind.name: kind for kind in known if kind.labelled}
