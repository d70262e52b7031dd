"""The ``task:`` section of settings: a built-in task with its data, or a custom task with the user's rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, ValidationError, create_model

from adamergex.errors import AdamergexError, ConfigError
from adamergex.files.strict import Names, PathText, Settings, hint, shown
from adamergex.jobs.kinds import OneOf, adapter_of, settings_of
from adamergex.jobs.settings import Limit, Optimisation, Rows, Sample, SampleSeed, Target, TaskRows
from adamergex.tasks import catalogue, kinds
from adamergex.tasks.kinds import AnyKind, labelled_kinds
from adamergex.tasks.measuring import require_metric

Role = Literal["train", "validation", "test"]
BUILT_IN = "built-in"
Self = TypeVar("Self", bound=Settings)


def _rows_from_text(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


Where = Annotated[Rows, BeforeValidator(_rows_from_text)]
"""A path (``{language}`` is replaced by the language), or the settings of ``Rows``."""


class CustomTask(Settings):
    """The user's rows: labelled in the source language (train), the proxy's (validation), the targets' (test)."""

    if TYPE_CHECKING:  # defined by the kind's settings
        kind: str
        name: str
    train: Where = Field(description="labelled rows of the source language")
    validation: Where | None = Field(default=None, description="labelled rows that tune λ")
    test: Where = Field(description="labelled rows of the target languages")
    optimisation: Optimisation = Optimisation()

    def rows(self, role: Role) -> Rows | None:
        """The rows of a role."""
        rows: Rows | None = getattr(self, role)
        return rows

    def placed(self: Self, folder: Path) -> Self:
        """The task with absolute paths, independent of the settings file's folder."""
        update = {}
        for role in ("train", "validation", "test"):
            rows = getattr(self, role)
            if rows is not None and rows.path is not None:
                update[role] = rows.model_copy(update={"path": str((folder / rows.path).absolute())})
        measured = getattr(self, "measured_as", None)
        if measured and catalogue.is_file(measured):
            update["measured_as"] = str((folder / measured).absolute())
        return self.model_copy(update=update)

    def task(self, labels: tuple[str, ...]) -> Target:
        """The task to train and evaluate; ``labels``: those of the training rows, if the settings omit them."""
        names = {"train", "validation", "test", "optimisation"}
        values = {name: value for name, value in self if name not in names and value is not None}
        kind = kinds.kind_of(values["kind"])
        inferred = {kind.labels.setting: labels} if kind.labels else {}
        try:
            task: Target = kind.settings.model_validate({**inferred, **values})
        except ValidationError as error:  # caused by the inferred labels: the settings themselves were checked
            problems = "; ".join(str(problem.get("ctx", {}).get("error", problem["msg"])) for problem in error.errors())
            raise ConfigError("the task does not fit its labels", where=self.train.path, found=problems) from None
        return task

    @property
    def open_labels(self) -> bool:
        """Whether labels (or entity types) are inferred from the training rows."""
        setting = kinds.kind_of(self.kind).labels
        return setting is not None and getattr(self, setting.setting) is None


class TaskSplit(Settings):
    """The rows of a task used as train, validation or test. ``options`` are passed to the task's ``rows``."""

    split: PathText | None = Field(default=None, description="the split to read; default: that of the task")
    limit: Limit = None
    sample: Sample = None
    seed: SampleSeed = 0
    options: dict[str, str] = Field(default_factory=dict, description="further arguments of the task's ``rows``")


class BuiltinTask(Settings):
    """A task with its data, prompt and metric. ``name``: a built-in task or a .py file; ``data``: a folder or "hub";
    ``settings``: changes of its kind's settings (max_length, …)."""

    name: PathText = Field(description="a built-in task or a .py file")
    data: PathText = Field(description="a folder, or ``hub``")
    train: TaskSplit = TaskSplit()
    validation: TaskSplit = TaskSplit()
    test: TaskSplit = TaskSplit()
    settings: dict[str, object] = Field(
        default_factory=dict, description="settings of the task's kind, such as max_length"
    )
    optimisation: Optimisation = Optimisation()

    def rows(self, role: Role) -> TaskRows:
        """The rows of a role."""
        settings: TaskSplit = getattr(self, role)
        split = settings.split or catalogue.split_for(self.name, self.data, role)
        selection = settings.model_dump(include={"options", "limit", "sample", "seed"})
        return TaskRows(task=self.name, data=self.data, split=split, **selection)

    def placed(self, folder: Path) -> BuiltinTask:
        """The task with absolute paths, independent of the settings file's folder."""
        update = {} if self.data == "hub" else {"data": str((folder / self.data).absolute())}
        if catalogue.is_file(self.name):
            update["name"] = str((folder / self.name).absolute())
        return self.model_copy(update=update)

    def task(self, labels: tuple[str, ...] = ()) -> Target:
        """The task to train and evaluate."""
        defaults: Target = catalogue.task_file(self.name).TASK
        values = defaults.model_dump() | self.settings
        if catalogue.is_file(self.name) and values["measured_as"] == defaults.name:
            values["measured_as"] = self.name
        return type(defaults).model_validate(values)

    @property
    def open_labels(self) -> bool:
        return False

    def problems(self) -> Iterator[str]:
        """Problems of name and settings, with the nearest valid name."""
        fields: Iterable[str] = ()
        try:
            fields = type(catalogue.task_file(self.name).TASK).model_fields
            self.task()
        except ValidationError as error:
            for problem in error.errors():
                place = ".".join(map(str, problem["loc"]))
                message = problem["msg"]
                if problem["type"] == "extra_forbidden":
                    message = f"no such setting{hint(place, fields)}"
                elif problem["type"] != "value_error":
                    message += f" (found {shown(problem['input'])})"
                yield f"task.settings.{place}: {message}"
        except AdamergexError as error:
            yield "task.name: " + ", ".join(error.lines)


def custom_forms() -> dict[str, type[CustomTask]]:
    """Kind -> the settings of a custom task of that kind."""
    return {name: _custom_form(kind) for name, kind in labelled_kinds().items()}


@cache
def _custom_form(kind: AnyKind) -> type[CustomTask]:
    fields: dict[str, Any] = {}
    if kind.labels is not None:
        names = Annotated[Names, Field(min_length=kind.labels.needs)] | None
        fields[kind.labels.setting] = (names, Field(default=None, description=_OPEN))
    form: type[CustomTask] = create_model(
        f"Custom{kind.settings.__name__}", __base__=(CustomTask, kind.settings), __doc__=kind.rows, **fields
    )
    return form


_OPEN = "default: the values in the training rows, sorted"


def task_kind_name(task: CustomTask | BuiltinTask) -> str | None:
    """The name of the kind of a task; None for invalid settings, which ``problems`` reports."""
    if isinstance(task, BuiltinTask):
        return None if any(task.problems()) else task.task(()).kind
    return task.kind


def measurable(task: CustomTask | BuiltinTask, place: str = "task") -> Iterator[str]:
    """Problems of a task's metric; the settings themselves are valid."""
    try:
        require_metric(task.task(()))
    except AdamergexError as error:
        yield f"{place}.metric: " + ", ".join(error.lines)


def tag_of(value: object) -> str:
    """The form of ``task:``: "built-in" if there is ``data``, else the kind (default: classification)."""
    if isinstance(value, dict):
        named = value.get("name") in catalogue.NAMES and not {"kind", "train", "test"} & value.keys()
        return BUILT_IN if "data" in value or named else str(value.get("kind", "classification"))
    return BUILT_IN if isinstance(value, BuiltinTask) else str(getattr(value, "kind", "classification"))


def _forms(value: object) -> TypeAdapter[object]:
    if (tag := tag_of(value)) != BUILT_IN:
        settings_of(tag)  # imports the package with the kind
    forms: dict[str, type[Settings]] = {**custom_forms(), BUILT_IN: BuiltinTask}
    return adapter_of(tuple(Annotated[form, Tag(name)] for name, form in forms.items()), _FORM)


_FORM = Discriminator(tag_of)
TaskConfig: TypeAlias = Annotated[CustomTask | BuiltinTask, OneOf(_forms)]
"""The target task, labelled in the source language only."""


def known_fields(tag: str) -> type[Settings]:
    """The settings class of a tag."""
    return BuiltinTask if tag == BUILT_IN else custom_forms()[tag]
