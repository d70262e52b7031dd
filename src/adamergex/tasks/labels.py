"""Labels of rows, and ranked labels as predictions."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TypeAlias

from adamergex.data.values import label_of, require_written
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Classification, PairClassification
from adamergex.metrics.text import comparable
from adamergex.statistics.samples import Floats
from adamergex.tasks.task_kind import Answers, Labels, Options, Request, Row

Labelled: TypeAlias = Classification | PairClassification


def label_indices(rows: Sequence[Row], task: Labelled, where: object) -> list[int]:
    """The index of each row's label in the task's labels. Raises: DataError for a label that the task lacks."""
    indices = {label: index for index, label in enumerate(task.labels)}
    result = []
    for number, row in enumerate(rows, 1):
        label = row.get("label")
        if label not in indices:
            near = difflib.get_close_matches(str(label), task.labels, n=1)
            raise DataError(
                "a row has no label" if label is None else "a label is not one of the task's",
                where=f"{where}, row {number}",
                found=f"columns {', '.join(row)}" if label is None else repr(label),
                expected=f"perhaps {near[0]!r}" if near else f"one of {', '.join(task.labels)}",
                fix="map the column: columns: {label: ...}" if label is None else "correct the data or task.labels",
            )
        result.append(indices[label])
    return result


def check_label(task: Labelled, row: Row, where: str) -> dict[str, Json]:
    """The row with its label in the task's spelling. Raises: DataError: no label, or not a text or whole number."""
    label = label_of(row["label"], f"{where}, column 'label'")
    require_written(label, task.labels, f"{where}, column 'label'")
    if label not in task.labels:  # the same text in another Unicode form
        label = comparable(label).strip()
        label = next((name for name in task.labels if comparable(name) == label), label)
    return {**row, "label": label}


def check_labels(task: Labelled, rows: Sequence[Row], where: object) -> None:
    """Raises: DataError: a row has a label that the task lacks."""
    if task.labels:
        label_indices(rows, task, where)


def ranked(labels: Sequence[str | int], gold: Sequence[Json], scores: Sequence[Floats]) -> list[dict[str, Json]]:
    """The gold label, the label with the highest score (the first among equals), and all scores of each row."""
    return [
        {
            "gold": truth,
            "predicted": labels[int(row.argmax())],
            "scores": {str(label): float(value) for label, value in zip(labels, row, strict=True)},
        }
        for truth, row in zip(gold, scores, strict=True)
    ]


def classified(request: Request[Labelled], scores: Sequence[Floats], truncated: int) -> Answers:
    """Answers from scores of the task's labels."""
    gold = [request.task.labels[index] for index in label_indices(request.rows, request.task, request.where)]
    return Answers(ranked(request.task.labels, gold, scores), truncated)


OPEN_LABELS = Labels(
    "labels",
    lambda rows: tuple(sorted({str(row["label"]) for row in rows})),
    2,
    "the training rows have fewer than two labels",
)
LABEL_OPTIONS = Options[Labelled](
    lambda task: len(task.labels), lambda task, row, index: {**row, "label": task.labels[index]}
)


def example(task: Labelled) -> tuple[str, str]:
    """A prediction and an equal reference, from the known labels."""
    label = (task.labels or ("1",))[0]
    return label, label
