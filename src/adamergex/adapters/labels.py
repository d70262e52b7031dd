"""The labels of a stored head, in the order of their numbers, compared with the model's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamergex.adapters.formats.adapterhub import read_json
from adamergex.errors import AdapterFileError, IncompatibleAdaptersError
from adamergex.files.directory import HEAD_CONFIG
from adamergex.files.lineage import read as read_lineage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNNAMED = re.compile(r"LABEL_\d+")
_WITH_CLASSES = ("SequenceClassification", "TokenClassification")


def require_labels(model: PreTrainedModel, directory: Path) -> None:
    """Require the labels of a saved head in the model's order: in another order it would predict wrong labels.

    Applies to every structure: labels come from ``head_config.json``, otherwise from the lineage. Names that
    transformers generated (LABEL_0), and names that the model does not have, do not show an order.
    Raises: IncompatibleAdaptersError when a shared label has another number, or one side has more labels.
    """
    if not type(model).__name__.endswith(_WITH_CLASSES):
        return
    labels = [str(label) for _, label in sorted((model.config.id2label or {}).items())]
    stored = stored_labels(directory)
    if stored == labels or not {label for label in stored if not _UNNAMED.fullmatch(label)} & set(labels):
        return
    raise IncompatibleAdaptersError(
        "the adapter's head has the labels in another order"
        if sorted(stored) == sorted(labels)
        else "the adapter's head has other labels",
        where=directory,
        found=", ".join(stored),
        expected=", ".join(labels),
        fix="name the labels in the adapter's order",
    )


def stored_labels(directory: Path) -> list[str]:
    """The labels of the head in a directory, by number; empty when unknown. Raises: AdapterFileError."""
    path = directory / HEAD_CONFIG
    if path.is_file():
        config = read_json(path)
        nested = config.get("config")
        label2id = config.get("label2id") or (nested.get("label2id") if isinstance(nested, Mapping) else None)
        if label2id:
            return _numbered(label2id, path)
    lineage = read_lineage(directory)
    task: Mapping[str, Any] = (lineage.task if lineage else None) or {}
    types = task.get("types")
    tags = ["O", *(f"{prefix}-{name}" for name in types for prefix in "BI")] if isinstance(types, list) else []
    labels = task.get("labels")
    return list(map(str, labels)) if isinstance(labels, list) else tags


def _numbered(label2id: Any, where: Path) -> list[str]:
    numbers = list(label2id.values()) if isinstance(label2id, Mapping) else []
    if not numbers or not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise AdapterFileError(
            "the head's labels have no numbers",
            where=f"{where}: label2id",
            found=f"{str(label2id)[:80]}",
            expected="label -> number",
            fix="correct label2id, or remove it",
        )
    return [str(label) for label in sorted(label2id, key=label2id.__getitem__)]
