"""A lineage names no code: the score of a user's own task file is the user's to give."""

from __future__ import annotations

from pathlib import Path

import pytest

from adamergex.errors import AdapterFileError, ConfigError
from adamergex.evaluation import _task
from adamergex.files import lineage_fields
from adamergex.tasks import catalogue

FILE = """
from adamergex.jobs.settings import Classification
TASK = Classification(labels=("a", "b"))
def rows(source, language, split): return []
def score(predictions, references, language): return {"accuracy": 0.0}
"""


def own_file(folder: Path, text: str = FILE) -> Path:
    path = folder / "own.py"
    path.write_text(text, encoding="utf-8")
    return path


def fields(measured: str | None) -> dict[str, object]:
    return {"kind": "classification", "labels": ["a", "b"], "measured_as": measured}


def test_the_users_file_scores_when_it_is_the_one_that_was_used(tmp_path: Path) -> None:
    path = own_file(tmp_path)
    measured = catalogue.identity(str(path))
    assert measured is not None and lineage_fields.CUSTOM_TASK.fullmatch(measured)
    assert _task(fields(measured), tmp_path, path).measured_as == str(path)
    with pytest.raises(AdapterFileError, match="nothing that an adapter names is run"):
        _task(fields(measured), tmp_path, None)
    changed = own_file(tmp_path, FILE + "# another\n")
    with pytest.raises(AdapterFileError, match="is another file"):
        _task(fields(measured), tmp_path, changed)
    with pytest.raises(ConfigError, match="no such task file"):
        _task(fields(measured), tmp_path, tmp_path / "nowhere.py")


def test_a_task_that_is_none_is_told_with_its_field(tmp_path: Path) -> None:
    assert _task(fields(None), tmp_path, None).measured_as is None
    with pytest.raises(AdapterFileError, match=r"task\.labels"):
        _task({"kind": "classification"}, tmp_path, None)
    with pytest.raises(AdapterFileError):
        _task({"kind": "nothing"}, tmp_path, None)


def test_the_shipped_tasks_are_those_that_a_lineage_may_name() -> None:
    assert set(catalogue.NAMES) == set(lineage_fields.TASKS)
