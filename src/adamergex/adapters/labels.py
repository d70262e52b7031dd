"""The classes of a stored head, in the order of its numbers: one place that holds them against the model's."""

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
    """A head whose classes stand in another order would predict the wrong ones, at the same accuracy or a worse one.

    Holds for every structure: labels come from ``head_config.json``, else from the lineage. Names that transformers
    made up (LABEL_0), and names of which the model has none, say nothing of an order.
    Raises: IncompatibleAdaptersError: a label that both have stands at another number, or one has more labels.
    """
    if not type(model).__name__.endswith(_WITH_CLASSES):
        return
    own = [str(label) for _, label in sorted((model.config.id2label or {}).items())]
    stored = stored_labels(directory)
    if stored == own or not {label for label in stored if not _UNNAMED.fullmatch(label)} & set(own):
        return
    raise IncompatibleAdaptersError(
        "the adapter's head has the labels in another order"
        if sorted(stored) == sorted(own)
        else "the adapter's head has other labels",
        where=directory,
        found=", ".join(stored),
        expected=", ".join(own),
        fix="name the labels in the adapter's order",
    )


def stored_labels(directory: Path) -> list[str]:
    """The labels of the head in a directory, by number; none where nothing tells. Raises: AdapterFileError."""
    path = directory / HEAD_CONFIG
    if path.is_file():
        config = read_json(path)
        nested = config.get("config")
        found = config.get("label2id") or (nested.get("label2id") if isinstance(nested, Mapping) else None)
        if found:
            return _numbered(found, path)
    lineage = read_lineage(directory)
    task: Mapping[str, Any] = (lineage.task if lineage else None) or {}
    types = task.get("types")
    tags = ["O", *(f"{prefix}-{name}" for name in types for prefix in "BI")] if isinstance(types, list) else []
    labels = task.get("labels")
    return list(map(str, labels)) if isinstance(labels, list) else tags


def _numbered(found: Any, where: Path) -> list[str]:
    numbers = list(found.values()) if isinstance(found, Mapping) else []
    if not numbers or not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
        raise AdapterFileError(
            "the head's labels have no numbers",
            where=f"{where}: label2id",
            found=f"{str(found)[:80]}",
            expected="label -> number",
            fix="correct label2id, or remove it",
        )
    return [str(label) for label in sorted(found, key=found.__getitem__)]
