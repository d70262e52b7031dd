"""Tasks with their own data, by name or as a user's Python file.

A task file defines ``TASK`` (settings of one kind), ``rows(source, language, split)`` and ``score(predictions,
references, language)``; the built-in ones are in ``datasets/``.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from adamergex.data import values
from adamergex.data.sampling import sampled
from adamergex.errors import ConfigError, DataError
from adamergex.files.hashing import file_sha256
from adamergex.files.inputs import Json
from adamergex.files.lineage_fields import TASKS
from adamergex.jobs.settings import Target, TaskRows
from adamergex.metrics.checks import known
from adamergex.tasks.task_kind import Items

NAMES = TASKS
_WANTED = ("TASK", "rows", "score")


class TaskFile(Protocol):
    """The module of a task. Optional names: ``FOLDER_SPLITS``: role (train, validation, test) -> the split of a data
    folder with that role, where its name differs; ``readable(text)``: whether a non-empty free answer contains what the
    task measures."""

    TASK: Target

    def rows(self, source: str | Path, language: str, split: str) -> list[dict[str, Json]]: ...

    def score(self, predictions: Items, references: Items, language: str) -> dict[str, float]: ...


def task_file(name: str) -> TaskFile:
    """The module of a task, by name or by the path of a ``.py`` file.

    Raises: ConfigError: it does not exist, or lacks ``TASK``, ``rows`` or ``score``.
    """
    if not is_file(name):
        known(name, dict.fromkeys(NAMES), "task", "the tasks that bring their own data")
        return cast(TaskFile, importlib.import_module(f"adamergex.tasks.datasets.{name}"))
    path = Path(name)
    module = own_module(path, "task")
    absent = [wanted for wanted in _WANTED if not hasattr(module, wanted)]
    if absent:
        raise ConfigError("the task file is not complete", where=path, found=f"no {', '.join(absent)}",
                          expected=", ".join(_WANTED), fix="see docs/tasks.md")  # fmt: skip
    return cast(TaskFile, module)


def own_module(path: Path, what: str) -> ModuleType:
    """The module of a user's ``.py`` file, executed once. ``what`` names it in errors.

    Raises: ConfigError: it does not exist, or fails to run.
    """
    if not path.is_file():
        raise ConfigError(f"there is no such {what} file", where=path, fix="check the path")
    unique = f"adamergex_{what}_{file_sha256(path)[:16]}"
    module = sys.modules.get(unique)
    if module is None:
        specification = importlib.util.spec_from_file_location(unique, path)
        assert specification is not None and specification.loader is not None  # the name ends in .py
        module = importlib.util.module_from_spec(specification)
        try:
            specification.loader.exec_module(module)
        except Exception as error:  # user code may raise anything
            raise ConfigError(
                f"the {what} file does not run", where=path, found=f"{type(error).__name__}: {error}", fix="correct it"
            ) from error
        sys.modules[unique] = module
    return module


def is_file(name: str) -> bool:
    """Whether the name is the path of a task file."""
    return name.endswith(".py")


def identity(name: str | None) -> str | None:
    """The identity of a task in a step's key: its name, or the SHA-256 of its file."""
    return f"sha256:{file_sha256(Path(name))}" if name is not None and is_file(name) else name


def split_for(name: str, data: str, role: str) -> str:
    """The split used as train, validation or test."""
    splits: Mapping[str, str] = getattr(task_file(name), "FOLDER_SPLITS", {}) if data != "hub" else {}
    return splits.get(role, role)


def read_rows(rows: TaskRows, language: str) -> list[tuple[int, dict[str, Json]]]:
    """The rows of a task in a language, numbered from 1. Raises: DataError, as the task's own ``rows``."""
    table: object = task_file(rows.task).rows(rows.data, language, rows.split, **rows.options)
    where = f"{rows.task} {rows.split}, {language}"
    if hasattr(table, "columns") and hasattr(table, "to_dict"):  # a pandas DataFrame
        table = table.to_dict("records")
    if isinstance(table, (str, bytes, Mapping)) or not isinstance(table, Iterable):
        raise DataError("the rows are not a list", where=where, found=type(table).__name__, expected="a list of dicts",
                        fix="correct the task's function rows")  # fmt: skip
    numbered = list(enumerate(itertools.islice(table, rows.limit), 1))
    for number, row in numbered:
        if not isinstance(row, Mapping):
            raise DataError("a row is not a dict", where=f"{where}, row {number}", found=repr(row)[:60],
                            expected="a dict: column -> value", fix="correct the task's function rows")  # fmt: skip
    if not numbered:
        raise DataError("there are no rows", where=where, expected="at least one", fix="check data, split and language")
    plain = [(number, values.plain_row(row, f"{where}, row {number}")) for number, row in numbered]
    return sampled(plain, rows.sample, rows.seed, lambda item: item[1])
