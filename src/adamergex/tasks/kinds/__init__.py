"""Every kind of task, one file each, and the registry that finds them.

A kind of your own is a module that calls ``register`` (docs/architecture.md, "Where to add things").
"""

from __future__ import annotations

from adamergex.jobs.kinds import add_settings, settings_of
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

_KINDS: dict[str, AnyKind] = {}


def register(kind: AnyKind) -> AnyKind:
    """Make a kind known to settings, trainings, evaluations and tables.

    Raises: ConfigError: another kind has its name.
    """
    add_settings(kind.settings)
    return _KINDS.setdefault(kind.name, kind)


def kind_of(task: Task | str) -> AnyKind:
    """The kind of a task, or of a name that settings know."""
    name = task if isinstance(task, str) else task.kind
    settings_of(name)  # imports the package that brings it
    return _KINDS[name]


def labelled_kinds() -> dict[str, AnyKind]:
    """The kinds that have labels, by name, shipped ones first."""
    return {name: kind for name, kind in _KINDS.items() if kind.labelled}


for _module in (
    classification,
    pair_classification,
    multiple_choice,
    span,
    tagging,
    generation,
    language_modeling,
    sentence_contrast,
    sentence_alignment,
):
    register(_module.KIND)
