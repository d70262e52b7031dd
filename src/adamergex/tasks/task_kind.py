"""TaskKind: the record that defines a kind of task for the rest of the library. This module does not load torch."""

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
    """Rows of a task for one model, for training or prediction. ``longest``: maximum input tokens of the model;
    ``where``: the name of the rows in errors."""

    kind: AnyKind
    task: S_co
    rows: Sequence[Row]
    loaded: Loaded
    longest: int
    where: object
    seed: int = 0

    @property
    def limit(self) -> int:
        """Maximum input tokens of task and model."""
        return min(int(getattr(self.task, "max_length", self.longest)), self.longest)

    @property
    def writing(self) -> Writing[S_co]:
        """Prompts and parsing for generative models."""
        assert self.kind.writing is not None  # set in every kind that WRITERS answer
        return self.kind.writing


class Answers(NamedTuple):
    """One prediction per row, in order (gold, predicted, and scores if any), the number of truncated inputs, and the
    number of unparsable answers."""

    items: list[dict[str, Json]]
    truncated: int
    unparsable: int = 0


class Answering(NamedTuple, Generic[S_in]):
    """Training examples and prediction (request, model, tokens per batch) of one kind of model; None: unsupported."""

    train_examples: Callable[[Request[S_in]], Examples] | None
    predict: Callable[[Request[S_in], nn.Module, int], Answers] | None


class Writing(NamedTuple, Generic[S_in]):
    """A task for generative models: the prompt of a row, the answers to train on, and ``read``: the prediction parsed
    from a generated text and whether all of it had the expected form. ``choices``: the options, where answers are
    scored instead of generated."""

    prompt: Callable[[S_in, Row], Prompt]
    answers: Callable[[S_in, Row], Sequence[str]]
    read: Callable[[S_in, Row, str], tuple[Json, bool]]
    choices: Callable[[S_in, Row], Sequence[str]] | None = None


class Labels(NamedTuple):
    """A setting that may be inferred from the training rows: its name, its values, and how many it ``needs``."""

    setting: str
    of: Callable[[Sequence[Row]], tuple[str, ...]]
    needs: int
    too_few: str


class Options(NamedTuple, Generic[S_in]):
    """Answers with a probability distribution: their number, and the row with one of them as its gold answer.

    ``per_token``: heads give one distribution per token."""

    count: Callable[[S_in], int]
    chosen: Callable[[S_in, Row, int], dict[str, Json]]
    per_token: bool = False


class XltForm(NamedTuple):
    """The fields of the XLT template. ``written``: the answer is generated after the mark, else scored there."""

    expert: str
    request: str
    retell: str
    goal: str
    output: str
    mark: str
    written: bool = True


def right_or_wrong(predictions: Items, references: Items, language: str) -> dict[str, float]:
    """Accuracy in percent, the default score of a kind."""
    return {"accuracy": accuracy(predictions, references)}


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskKind(Generic[S]):
    """One kind of task.

    Settings and rows:
        settings: its settings class; the default of its field ``kind`` is the kind's name.
        columns: the columns that a file of rows must have; ``optional_columns`` are read if present.
        rows: one sentence about a row, for the documentation.
        gold: the column that holds the answer. It and ``raw_columns`` reach ``check_row`` as the file has them, the
            others as texts. ``check_row(task, row, where)`` returns the row for models and scores;
            ``check_rows(task, rows, where)`` raises errors that need known labels.
        make_rows: for kinds without labels: (task, numbered rows, where) -> rows; default: unchanged.
        labels: the setting that may be inferred from the training rows.
    Models:
        answering: kind of model -> its training examples and predictions.
        head: the head that an encoder needs; ``outputs``: names of the head's outputs; ``encoder``: (task, base) ->
            the kind of model that an encoder without a head is loaded as.
        writing: prompts and parsing for generative models; ``xlt``: the fields of the XLT template.
        options: answers with a known distribution, needed to choose λ by entropy.
    Scores:
        score: (predictions, references, language) -> percent by name, unless ``measured_as`` names a task file.
        example: a prediction and a reference that the score accepts.
        tally: an item's [hits, of] in the score, unless the score of the item alone gives it.
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
        """The value of ``kind`` in settings."""
        return str(self.settings.model_fields["kind"].default)

    @property
    def labelled(self) -> bool:
        """Whether the kind has labels and predictions."""
        return issubclass(self.settings, LabelledTask)
