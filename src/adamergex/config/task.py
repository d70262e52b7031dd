"""The ``task:`` part of ``transfer`` settings: a task that brings its data, or the user's own rows of a kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError

from adamergex.errors import AdamergexError, ConfigError
from adamergex.files.strict import Names, PathText, Settings, hint, shown
from adamergex.jobs.settings import (
    Classification,
    Generation,
    Limit,
    MultipleChoice,
    Optimisation,
    PairClassification,
    Rows,
    Sample,
    SampleSeed,
    SpanAnswering,
    Tagging,
    Target,
    TaskRows,
)
from adamergex.tasks import catalogue
from adamergex.tasks.measuring import require_metric

Role = Literal["train", "validation", "test"]
BUILT_IN = "built-in"
Self = TypeVar("Self", bound=Settings)


def _rows_from_text(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Where = Annotated[Rows, BeforeValidator(_rows_from_text)]
"""A path (``{language}`` stands for the language), or the settings of ``Rows``."""


class Own(Settings):
    """The user's own rows: labelled in the source language (train), the proxy's (validation), the targets' (test)."""

    train: Where
    validation: Where | None = Field(default=None, description="labelled sets that tune λ")
    test: Where
    optimisation: Optimisation = Optimisation()

    def rows(self, role: Role) -> Rows | None:
        """Where the rows of a role are."""
        found: Rows | None = getattr(self, role)
        return found

    def placed(self: Self, folder: Path) -> Self:
        """With paths that no longer depend on the settings file's folder."""
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
        """What is trained and evaluated; ``labels`` are used where the settings leave them to the training rows."""
        names = {"train", "validation", "test", "optimisation"}
        values = {name: value for name, value in self if name not in names and value is not None}
        try:
            return _TARGETS[values["kind"]].model_validate({**_labels(values["kind"], labels), **values})
        except ValidationError as error:  # of the labels that the rows brought: the settings alone were checked
            said = "; ".join(str(problem.get("ctx", {}).get("error", problem["msg"])) for problem in error.errors())
            raise ConfigError("the task does not fit its labels", where=self.train.path, found=said) from None

    @property
    def open_labels(self) -> bool:
        """Whether labels (or entity types) are those of the training rows."""
        return any(getattr(self, name, ()) is None for name in ("labels", "types"))


class OwnClassification(Own, Classification):
    """One label a text. Columns: text, label."""

    labels: Annotated[Names, Field(min_length=2)] | None = Field(
        default=None, description="default: those of the training rows, sorted"
    )  # type: ignore[assignment]


class OwnPairs(Own, PairClassification):
    """One label for two texts. Columns: premise, hypothesis, label."""

    labels: Annotated[Names, Field(min_length=2)] | None = Field(
        default=None, description="default: those of the training rows, sorted"
    )  # type: ignore[assignment]


class OwnChoices(Own, MultipleChoice):
    """One of several continuations. Columns: premise, choice1, choice2, label (0 is choice1)."""


class OwnSpans(Own, SpanAnswering):
    """A span of a context. Columns: context, question, answers (texts), start or starts (characters; optional)."""


class OwnTags(Own, Tagging):
    """Entities. Columns: tokens, tags (IOB2), as lists or divided by blanks."""

    types: Annotated[Names, Field(min_length=1)] | None = Field(
        default=None, description="default: those of the training rows, sorted"
    )  # type: ignore[assignment]


class OwnTexts(Own, Generation):
    """A free answer. Columns: those of the prompt (text), and the reference (target)."""


class Part(Settings):
    """Which rows of a task serve as train, validation or test. ``options`` go to the task's ``rows``."""

    split: PathText | None = None
    limit: Limit = None
    sample: Sample = None
    seed: SampleSeed = 0
    options: dict[str, str] = Field(default_factory=dict)


class BuiltIn(Settings):
    """A task that brings its data, prompt and metric: ``name`` of a shipped one or a .py file, ``data`` a folder or
    "hub". ``settings`` changes what its kind has (max_length, …)."""

    name: PathText
    data: PathText
    train: Part = Part()
    validation: Part = Part()
    test: Part = Part()
    settings: dict[str, Any] = Field(default_factory=dict)
    optimisation: Optimisation = Optimisation()

    def rows(self, role: Role) -> TaskRows:
        """Where the rows of a role are."""
        part: Part = getattr(self, role)
        split = part.split or catalogue.split_for(self.name, self.data, role)
        chosen = part.model_dump(include={"options", "limit", "sample", "seed"})
        return TaskRows(task=self.name, data=self.data, split=split, **chosen)

    def placed(self, folder: Path) -> BuiltIn:
        """With paths that no longer depend on the settings file's folder."""
        update = {} if self.data == "hub" else {"data": str((folder / self.data).absolute())}
        if catalogue.is_file(self.name):
            update["name"] = str((folder / self.name).absolute())
        return self.model_copy(update=update)

    def task(self, labels: tuple[str, ...] = ()) -> Target:
        """What is trained and evaluated."""
        own: Target = catalogue.task_file(self.name).TASK
        values = own.model_dump() | self.settings
        if catalogue.is_file(self.name) and values["measured_as"] == own.name:
            values["measured_as"] = self.name
        return type(own).model_validate(values)

    @property
    def open_labels(self) -> bool:
        return False

    def problems(self) -> Iterator[str]:
        """What is wrong with name and settings, each with the nearest that there is."""
        fields: Any = ()
        try:
            fields = type(catalogue.task_file(self.name).TASK).model_fields
            self.task()
        except ValidationError as error:
            for problem in error.errors():
                place = ".".join(map(str, problem["loc"]))
                unknown = problem["type"] == "extra_forbidden"
                said = (
                    problem["msg"]
                    if problem["type"] == "value_error"
                    else f"{problem['msg']} (found {shown(problem['input'])})"
                )
                yield f"task.settings.{place}: " + (f"no such setting{hint(place, fields)}" if unknown else said)
        except AdamergexError as error:
            yield "task.name: " + ", ".join(line.strip() for line in str(error).splitlines())


_TARGETS: dict[str, type[Target]] = {
    "classification": Classification,
    "pair-classification": PairClassification,
    "multiple-choice": MultipleChoice,
    "span": SpanAnswering,
    "tagging": Tagging,
    "generation": Generation,
}
OWN: dict[str, type[Own]] = {
    "classification": OwnClassification,
    "pair-classification": OwnPairs,
    "multiple-choice": OwnChoices,
    "span": OwnSpans,
    "tagging": OwnTags,
    "generation": OwnTexts,
}


def kind_of(task: Own | BuiltIn) -> str | None:
    """The kind of task; None where its settings cannot tell it, which ``problems`` tells."""
    if isinstance(task, BuiltIn):
        return None if any(task.problems()) else task.task(()).kind
    return str(task.kind)  # type: ignore[attr-defined]


def measurable(task: Own | BuiltIn, place: str = "task") -> Iterator[str]:
    """What is wrong with how a task is measured; its settings are right by themselves."""
    try:
        require_metric(task.task(()))
    except AdamergexError as error:
        yield f"{place}.metric: " + ", ".join(line.strip() for line in str(error).splitlines())


def tag_of(value: Any) -> str:
    """Which form of ``task:`` is meant: "built-in" where there is ``data``, else the kind (classification)."""
    if isinstance(value, dict):
        named = value.get("name") in catalogue.NAMES and not {"kind", "train", "test"} & value.keys()
        return BUILT_IN if "data" in value or named else str(value.get("kind", "classification"))
    return BUILT_IN if isinstance(value, BuiltIn) else str(getattr(value, "kind", "classification"))


TaskConfig: TypeAlias = Annotated[
    Annotated[OwnClassification, Tag("classification")]
    | Annotated[OwnPairs, Tag("pair-classification")]
    | Annotated[OwnChoices, Tag("multiple-choice")]
    | Annotated[OwnSpans, Tag("span")]
    | Annotated[OwnTags, Tag("tagging")]
    | Annotated[OwnTexts, Tag("generation")]
    | Annotated[BuiltIn, Tag(BUILT_IN)],
    Discriminator(tag_of),
]
"""The target task, labelled in the source language only."""


def known_fields(tag: str) -> type[Settings]:
    """The settings class behind a tag."""
    return BuiltIn if tag == BUILT_IN else OWN[tag]


def _labels(kind: str, labels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    name = {"classification": "labels", "pair-classification": "labels", "tagging": "types"}.get(kind)
    return {name: labels} if name else {}
