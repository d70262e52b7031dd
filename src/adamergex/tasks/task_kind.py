"""What a kind of task is: one record of all that the rest of the library asks of it. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

from adamergex.data.values import Row as Row
from adamergex.files.inputs import Json
from adamergex.jobs.settings import LabelledTask, UnlabelledTask
from adamergex.metrics.accuracy import accuracy

if TYPE_CHECKING:
    from torch import nn

    from adamergex.backbones.loading import Head, Kind, Loaded
    from adamergex.tasks import Examples
    from adamergex.tasks.answering.prompts import Prompt

S = TypeVar("S", bound=LabelledTask | UnlabelledTask)
S_co = TypeVar("S_co", covariant=True)
S_in = TypeVar("S_in", contravariant=True)
"""The settings of a kind."""
AnyKind: TypeAlias = "TaskKind[Any]"
Items: TypeAlias = Sequence[object]
"""Predictions or references: labels, texts, lists of tags."""
NumberedRows: TypeAlias = list[tuple[int, dict[str, Json]]]
"""Rows with their numbers in the file, from 1."""


class Request(NamedTuple, Generic[S_co]):
    """Rows of a task for one model, to learn from or to answer. ``longest``: tokens of the model's input; ``where``:
    how errors name the rows."""

    kind: AnyKind
    task: S_co
    rows: Sequence[Row]
    loaded: Loaded
    longest: int
    where: object
    seed: int = 0

    @property
    def limit(self) -> int:
        """The tokens that task and model allow."""
        return min(int(getattr(self.task, "max_length", self.longest)), self.longest)

    @property
    def writing(self) -> Writing[S_co]:
        """How a model that writes is asked."""
        assert self.kind.writing is not None  # a kind whose answering has writers says how they are asked
        return self.kind.writing


class Answers(NamedTuple):
    """A prediction for every row, in order (gold, predicted, and scores where there are any), how many inputs were cut,
    and how many answers could not be read."""

    items: list[dict[str, Json]]
    truncated: int
    unparsable: int = 0


class Answering(NamedTuple, Generic[S_in]):
    """How one kind of model learns a task, and how it answers (model, tokens per batch); None where it cannot."""

    train_examples: Callable[[Request[S_in]], Examples] | None
    predict: Callable[[Request[S_in], nn.Module, int], Answers] | None


class Writing(NamedTuple, Generic[S_in]):
    """How models that write are asked: the prompt of a row, the answers that teach it, the prediction that is read from
    a written text and whether all of it had the expected form; ``choices``: what could be said, where that is scored
    and not written."""

    prompt: Callable[[S_in, Row], Prompt]
    answers: Callable[[S_in, Row], Sequence[str]]
    read: Callable[[S_in, Row, str], tuple[Json, bool]]
    choices: Callable[[S_in, Row], Sequence[str]] | None = None


class Labels(NamedTuple):
    """The setting that may be left to the training rows: its name, its values there, and how many it ``needs``."""

    setting: str
    of: Callable[[Sequence[Row]], tuple[str, ...]]
    needs: int
    too_few: str


class Options(NamedTuple, Generic[S_in]):
    """Answers of which a model gives a distribution: how many there are, and the row as if one were its gold one.

    ``per_token``: heads give one for every token."""

    count: Callable[[S_in], int]
    chosen: Callable[[S_in, Row, int], dict[str, Json]]
    per_token: bool = False


class XltForm(NamedTuple):
    """What the XLT template is filled with. ``written``: the answer is written after the mark, else scored there."""

    expert: str
    request: str
    retell: str
    goal: str
    output: str
    mark: str
    written: bool = True


def right_or_wrong(predictions: Items, references: Items, language: str) -> dict[str, float]:
    """Accuracy, in percent: the score of a kind that names no other."""
    return {"accuracy": accuracy(predictions, references)}


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskKind(Generic[S]):
    """One kind of task.

    Settings and rows:
        settings: its settings class; ``kind`` has a default, the kind's name.
        columns: what a file with its rows must have; ``optional_columns`` are read where they are there.
        rows: one sentence on a row, for the documentation.
        gold: the column that holds the answer; it and ``raw_columns`` reach ``check_row`` as the file has them, the
            others as texts. ``check_row(task, row, where)`` returns the row as models and scores read it,
            ``check_rows(task, rows, where)`` raises for what only known labels can tell.
        make_rows: of kinds without labels: (task, numbered rows, where) -> rows; default: as they are.
        labels: the setting that may be left to the training rows.
    Models:
        answering: kind of model -> how it learns and answers.
        head: what an encoder needs; ``outputs``: names of what the head gives; ``encoder``: what an encoder
            without a head is loaded as (task, base).
        writing: how models that write are asked; ``xlt`` the same in cross-lingual thought.
        options: answers whose distribution is known, so that λ can be chosen by entropy.
    Scores:
        score: (predictions, references, language) -> percent by name, unless ``measured_as`` names a task file's.
        example: a prediction and a reference that the score takes.
        tally: an item's [hits, of] in the score, unless it is the score of the item alone.
    """

    settings: type[S]
    answering: Mapping[Kind, Answering[S]]
    columns: Callable[[S], tuple[str, ...]]
    optional_columns: tuple[str, ...] = ()
    rows: str = ""
    gold: Callable[[S], str] = lambda task: "label"
    raw_columns: tuple[str, ...] = ()
    check_row: Callable[[S, Row, str], dict[str, Json]] = lambda task, row, where: dict(row)
    check_rows: Callable[[S, Sequence[Row], object], object] = lambda task, rows, where: None
    make_rows: Callable[[S, NumberedRows, str], list[dict[str, Json]]] = lambda task, rows, where: [r for _, r in rows]
    labels: Labels | None = None
    head: Head | None = None
    outputs: Callable[[S], Sequence[str] | None] = lambda task: None
    encoder: Callable[[S, str], Kind] = lambda task, base: "masked-lm"
    writing: Writing[S] | None = None
    xlt: Callable[[S], XltForm] | None = None
    options: Options[S] | None = None
    score: Callable[[Items, Items, str], dict[str, float]] = right_or_wrong
    example: Callable[[S], tuple[object, object]] = lambda task: ("1", "1")
    tally: Callable[[Row], tuple[float, float]] | None = None

    @property
    def name(self) -> str:
        """What ``kind`` says in settings."""
        return str(self.settings.model_fields["kind"].default)

    @property
    def labelled(self) -> bool:
        """Whether labels are read, and answers predicted."""
        return issubclass(self.settings, LabelledTask)
