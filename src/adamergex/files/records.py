"""Results that steps write for others: scores, predictions, searches for λ, merge reports; typed and bounded.

Stores may be damaged or untrusted, so nothing in these records names code or a path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Required, TypedDict, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adamergex.errors import DataError
from adamergex.files.inputs import (
    DOCUMENT_BYTES,
    SETTINGS_BYTES,
    Malformed,
    open_regular,
    parse_json,
    read_json_object,
)

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Interval = Annotated[list[Number], Field(min_length=2, max_length=2)]
PREDICTIONS = "predictions.jsonl"
TUNING = "tuning.json"
ANSWERS = "answers.json"


class Record(BaseModel):
    """Strict types; unknown keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Scores(Record):
    """``scores.json``: the ``metric`` and its ``score`` in percent with the 95 % interval, all ``scores``, and the
    numbers of items, of truncated inputs, of answers that could not be parsed and of entities of unknown types."""

    metric: str
    score: Number
    n: Annotated[Count, Field(ge=1)]
    interval: Interval
    scores: dict[str, Number]
    truncated: Count
    unparsable: Count
    ignored_entities: Count = 0
    language: str | None = None

    def document(self) -> dict[str, object]:
        """The contents of the file: the score under its metric's name."""
        fields = self.model_dump(exclude={"score"}, exclude_defaults=True)
        return {self.metric: self.score, **fields}


class Point(Record):
    """The score at one λ."""

    weight: Number
    score: Number
    interval: Interval


class Search(Record):
    """``tuning.json``: the chosen λ and the curve, and with one λ per layer also those. With several ``languages`` the
    curve holds means, and ``error`` is the standard error of the highest mean, at ``best``. ``reached``: the entropy at
    the chosen λ, in a search by entropy."""

    chosen: Number
    layers: list[Number] | None = None
    curve: Annotated[list[Point], Field(min_length=1)]
    reached: Number | None = None
    metric: str
    language: str | None = None
    n: Annotated[Count, Field(ge=1)] = 1
    languages: list[str] = []
    best: Number | None = None
    error: Number | None = None


class Tallies(Record):
    """The tally of each item at one λ: [hits, total]."""

    weight: Number
    tallies: Annotated[list[Interval], Field(min_length=1)]


class SearchAnswers(Record):
    """``answers.json``: the items of a search, their groups (passages, premises), and their tallies at every λ."""

    ids: list[str | int]
    groups: list[str | int | None]
    points: Annotated[list[Tallies], Field(min_length=1)]

    @model_validator(mode="after")
    def _equal_lengths(self) -> SearchAnswers:
        sizes = {len(self.ids), len(self.groups), *(len(point.tallies) for point in self.points)}
        if len(sizes) > 1:
            raise ValueError(f"items of different numbers: {', '.join(map(str, sorted(sizes)))}")
        return self


class MergedModule(Record):
    """One module of ``merge_report.json``."""

    module: str
    merged: bool
    task: Number
    divergence: Number
    change: Number


class MergeRecord(Record):
    """``merge_report.json``: λ and the modules."""

    weight: Number
    modules: list[MergedModule]


class _Prediction(Record):
    id: str | int
    gold: object
    predicted: object
    text_sha256: str | None = None
    tally: Interval | None = None


class Prediction(TypedDict, total=False):
    """A row of ``predictions.jsonl``; it may have more keys, such as the ``scores`` of the labels."""

    id: Required[str | int]
    gold: Required[object]
    predicted: Required[object]
    text_sha256: str | None
    group: str | None
    tally: tuple[float, float]


RecordType = TypeVar("RecordType", bound=Record)


def read_scores(directory: Path) -> Scores:
    """``scores.json`` of an evaluation. Raises: DataError."""
    path = directory / "scores.json"
    document = read_json_object(path, what="the file of scores", error=DataError)
    name = document.get("metric")
    return valid(Scores, {**document, "score": document.get(name) if isinstance(name, str) else None}, path)


def read_search(directory: Path) -> Search:
    """``tuning.json`` of a search for λ. Raises: DataError."""
    path = directory / TUNING
    return valid(Search, read_json_object(path, what="the search for λ", error=DataError), path)


def read_answers(directory: Path) -> SearchAnswers:
    """``answers.json`` of a search for λ. Raises: DataError."""
    path = directory / ANSWERS
    return valid(
        SearchAnswers,
        read_json_object(path, what="the answers of a search", error=DataError, limit=DOCUMENT_BYTES),
        path,
    )


def read_merged(directory: Path) -> MergeRecord:
    """``merge_report.json`` of a merge with a weight. Raises: DataError."""
    path = directory / "merge_report.json"
    return valid(
        MergeRecord, read_json_object(path, what="the merge's report", error=DataError, limit=DOCUMENT_BYTES), path
    )


def predictions(path: str | Path) -> Iterator[Prediction]:
    """Iterate over the rows of a ``predictions.jsonl``: id, gold, predicted, and optionally a tally.

    Raises: DataError with the line, when reached.
    """
    tallied = None
    with open_regular(path, what="the file of predictions", error=DataError) as file:
        for number, line in enumerate(iter(lambda: file.readline(SETTINGS_BYTES + 1), b""), 1):
            where = f"{path}, line {number}"
            try:
                if len(line) > SETTINGS_BYTES:
                    raise Malformed(f"the line is longer than {SETTINGS_BYTES:,} bytes")
                row = parse_json(line)
                if not isinstance(row, dict):
                    raise Malformed(f"{type(row).__name__} instead of an object")
            except Malformed as problem:
                raise _invalid(where, problem) from None
            valid(_Prediction, row, where)
            if row.get("tally") is None:
                row.pop("tally", None)
            if tallied is None:
                tallied = "tally" in row
            if tallied != ("tally" in row):
                raise _invalid(where, "some rows have a tally and others do not")
            yield cast(Prediction, row)


def read_predictions(path: str | Path) -> list[Prediction]:
    """All rows of a ``predictions.jsonl``, at least one. Raises: DataError."""
    rows = list(predictions(path))
    if not rows:
        raise _invalid(path, "no row")
    return rows


def valid(kind: type[RecordType], document: dict[str, object], where: object) -> RecordType:
    """Validate a document as a record of this kind. Raises: DataError with the invalid fields."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:8]]
        raise _invalid(where, "; ".join(problems)) from None


def _invalid(where: object, found: object) -> DataError:
    return DataError(
        "a result cannot be read",
        where=where,
        found=found,
        expected="the file that adamergex wrote",
        fix="remove this file and run the command that wrote it again",
    )


def as_json(value: object) -> str:
    """A document as indented JSON in UTF-8, without NaN and infinity."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
