"""Accuracy over labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from numbers import Integral

from adamergex.errors import DataError
from adamergex.metrics.checks import check_pairs, percent
from adamergex.metrics.text import comparable


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Share of items whose predicted label is the reference label, in percent.

    100 · |{i : p_i = r_i}| / n. Raises: DataError (lengths, no items). Source: scikit-learn ``accuracy_score``.
    """
    check_pairs(predictions, references, "accuracy")
    return percent([prediction == reference for prediction, reference in zip(predictions, references, strict=True)])


def gold_labels(values: Sequence[object], names: Sequence[str], where: str) -> list[str]:
    """The names of reference labels, given as names or as positions in ``names``, also as text ("2").

    Raises: DataError for an unknown label.
    """
    texts = {str(position): position for position in range(len(names))}
    given = [texts.get(value, value) if isinstance(value, str) and value not in names else value for value in values]
    labels = predicted_labels(given, names, where)
    for number, (value, label) in enumerate(zip(values, labels, strict=True)):
        if label is None:
            raise _unknown(value, names, f"{where}, reference {number}")
    return [label for label in labels if label is not None]


def predicted_labels(values: Sequence[object], names: Sequence[str], where: str) -> list[str | None]:
    """The same for predictions: text that is not a label, and ``None``, become ``None``, which counts as wrong.

    Raises: DataError for a position outside ``names``, or a value that is neither text nor a position.
    """
    labels: list[str | None] = []
    by_text = {comparable(name): name for name in names}
    for number, value in enumerate(values):
        if isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < len(names):
            labels.append(names[int(value)])
        elif value is None or isinstance(value, str):
            labels.append(None if value is None else by_text.get(comparable(value).strip()))
        else:
            raise _unknown(value, names, f"{where}, item {number}")
    return labels


def _unknown(value: object, names: Sequence[str], where: str) -> DataError:
    return DataError(
        "a label is not known",
        where=where,
        found=repr(value),
        expected=f"{', '.join(names)}, or 0 to {len(names) - 1}",
        fix="map the data's labels to these",
    )
