"""One strict door for the rows of every kind of task, from files and from a task's own Python; and samples of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from adamergex.config.task import BuiltinTask, custom_forms
from adamergex.data import reader
from adamergex.errors import DataError
from adamergex.jobs.settings import (
    Classification,
    Generation,
    LanguageModeling,
    MultipleChoice,
    PairClassification,
    Rows,
    SpanAnswering,
    Tagging,
    TaskRows,
)
from adamergex.tasks import rows
from adamergex.tasks.kinds import kind_of

TASKS: dict[str, Any] = {
    "text": Classification(labels=("0", "1", "none")),
    "pair": PairClassification(labels=("yes", "no")),
    "choice": MultipleChoice(context="{premise} {question}", prompt="{premise} {question}"),
    "span": SpanAnswering(),
    "tags": Tagging(types=("PER", "LOC"), other_types="ignore"),
    "free": Generation(prompt="{title} {text}"),
}
GOOD: dict[str, dict[str, Any]] = {
    "text": {"text": "one", "label": 0},
    "pair": {"premise": "a", "hypothesis": "b", "label": "yes"},
    "choice": {"premise": "It rained.", "question": "effect", "choice1": "Wet.", "choice2": "Dry.", "label": 1},
    "span": {"context": "In 1990 it rained.", "question": "When?", "answers": ["1990"], "starts": [3]},
    "tags": {"tokens": ["Juma", "ran"], "tags": ["B-PER", "O"]},
    "free": {"title": "t", "text": "x", "target": "y"},
}
NOTHING = (None, float("nan"), "", " \u200b")
EMPTY = [
    (kind, column, value)
    for kind, columns in {
        "text": ("text", "label"), "pair": ("premise", "hypothesis", "label"),
        "choice": ("premise", "question", "choice1", "choice2", "label"), "span": ("context", "question", "answers"),
        "free": ("title", "text", "target"),
    }.items()
    for column in columns
    for value in NOTHING
]  # fmt: skip
MORE_EMPTY = [
    ("span", "answers", [None]), ("span", "answers", [""]), ("span", "answers", []), ("free", "target", []),
    ("free", "target", ["y", None]), ("free", "target", [float("nan")]), ("tags", "tokens", ["Juma", None]),
    ("tags", "tokens", [float("nan"), "ran"]), ("text", "label", "NaN"), ("text", "label", "null"),
    ("pair", "label", "None"), ("span", "answers", {"text": [], "answer_start": []}),
]  # fmt: skip


def from_file(folder: Path, kind: str, given: list[dict[str, Any]], task: Any = None) -> list[dict[str, Any]]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return rows.read(task or TASKS[kind], Rows(path=str(path)), "sw")


def from_python(folder: Path, kind: str, given: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """As a task file of one's own gives them."""
    (folder / "own.py").write_text(
        "TASK, score, GIVEN = None, None, []\ndef rows(*_, **__):\n    return GIVEN[-1]\n", "utf-8"
    )
    from adamergex.tasks.catalogue import task_file

    monkeypatch.setattr(task_file(str(folder / "own.py")), "GIVEN", [given])
    return rows.read(TASKS[kind], TaskRows(task=str(folder / "own.py"), data="d"), "sw")


@pytest.mark.parametrize(("kind", "column", "value"), EMPTY + MORE_EMPTY)
def test_missing_values_are_refused_with_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, column: str, value: Any
) -> None:
    given = [GOOD[kind], {**GOOD[kind], column: value}]
    with pytest.raises(DataError, match=r"is empty|no answer") as caught:
        from_python(tmp_path, kind, given, monkeypatch)
    assert "row 2" in str(caught.value)
    with pytest.raises(DataError, match=r"is empty|no answer|NaN") as caught:
        from_file(tmp_path, kind, given)
    assert "row 2" in str(caught.value) and "rows.jsonl" in str(caught.value)


@pytest.mark.parametrize("kind", TASKS)
def test_whole_rows_are_read_alike_from_files_and_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    found = from_file(tmp_path, kind, [GOOD[kind]])
    assert found == from_python(tmp_path, kind, [GOOD[kind]], monkeypatch)
    arrays = {name: np.array(value) if isinstance(value, list) else value for name, value in GOOD[kind].items()}
    assert found == from_python(tmp_path, kind, iter([arrays]), monkeypatch)


def test_values_of_tables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of whole numbers with a gap is one of floats in pandas."""
    read = lambda kind, row: from_python(tmp_path, kind, [row], monkeypatch)[0]  # noqa: E731
    assert read("text", {**GOOD["text"], "label": np.float64(1.0)})["label"] == "1"
    assert read("text", {**GOOD["text"], "label": "none"})["label"] == "none"  # a label of the task
    assert read("choice", {**GOOD["choice"], "label": np.float32(1), "choice1": 10, "choice2": 2.5})["choice2"] == "2.5"
    assert read("choice", {**GOOD["choice"], "label": "1.0"})["label"] == 1
    assert read("free", {**GOOD["free"], "target": [18.0, "x"]})["target"] == ["18", "x"]
    assert "id" not in reader.read(_file(tmp_path, {"text": "a", "id": None}), "sw")[0]


def _file(folder: Path, *given: dict[str, Any], **more: Any) -> Rows:
    path = folder / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return Rows(path=str(path), **more)


@pytest.mark.parametrize("value", [{}, [{"premise": "x"}, 7], "text", 7, [], [["a"]]])
def test_rows_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    with pytest.raises(DataError, match=r"not a list|not a dict|no rows|no column"):
        from_python(tmp_path, "pair", value, monkeypatch)


@pytest.mark.parametrize("value", [2, -1, True, "2", "one", 0.5, "²", [1], float("inf"), 10**400, "1e0"])
def test_what_is_no_position_of_a_choice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    with pytest.raises(DataError, match=r"not the position|label is not text|label is empty"):
        from_python(tmp_path, "choice", [{**GOOD["choice"], "label": value}], monkeypatch)


@pytest.mark.parametrize(
    ("changes", "starts"),
    [
        ({"starts": [3.0]}, [3]), ({"starts": ["3"]}, [3]), ({"starts": [None]}, [3]),
        ({"starts": None, "start": "3.0"}, [3]),
        ({"starts": [None]}, [3]), ({"starts": None, "start": ""}, [3]), ({"answers": 1990}, [3]),
        ({"answers": "1990", "starts": 3}, [3]), ({"answers": ["1990", "it"], "starts": [3, None]}, [3, 8]),
        ({"answers": {"text": ["1990"], "answer_start": [3]}, "starts": None}, [3]),
        ({"answers": {"text": "1990", "answer_start": 3.0}, "starts": None}, [3]),
        ({"answers": [{"text": "1990", "answer_start": 3}, {"text": "it", "start": 8}], "starts": None}, [3, 8]),
        ({"answers": {"text": ["1990"]}, "starts": None}, [3]),
    ],
)  # fmt: skip
def test_shapes_of_answers(tmp_path: Path, changes: dict[str, Any], starts: list[int]) -> None:
    given = {**GOOD["span"], **changes}
    (found,) = rows.read(TASKS["span"], _file(tmp_path, {k: v for k, v in given.items() if v == v}), "sw")
    assert found["starts"] == starts and found["answers"][0] == "1990"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": [3.5]}, "not a position"), ({"starts": ["third"]}, "not a position"),
        ({"starts": [True]}, "not a position"),
        ({"starts": [-1]}, "not a position"), ({"starts": [4]}, "not at its start"),
        ({"starts": [3, 4]}, "fewer or more starts"), ({"answers": ["2020"], "starts": None}, "not in its context"),
        ({"answers": [True], "starts": None}, "answer is not text"), ({"answers": [["1990"]]}, "answer is not text"),
        ({"answers": {"text": ["1990"], "answer_start": [3, 4]}}, "do not have SQuAD's shape"),
        ({"answers": {"texts": ["1990"]}}, "do not have SQuAD's shape"),
        ({"answers": ["1990", {"text": "it"}]}, "do not have SQuAD's shape"),
    ],
)  # fmt: skip
def test_wrong_answers_are_refused_with_the_row(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        rows.read(TASKS["span"], _file(tmp_path, GOOD["span"], {**GOOD["span"], **changes}), "sw")
    assert "row 2" in str(caught.value)


BROKEN_TAGS = (["PER", "O"], [1, 0], ["S-PER", "O"], ["B", "O"], ["B-", "O"], ["B_PER", "O"], [None, "O"], ["", "O"])


@pytest.mark.parametrize("tags", BROKEN_TAGS)
@pytest.mark.parametrize("others", ["ignore", "reject"])
def test_tags_that_are_not_iob_are_refused(tmp_path: Path, tags: list[Any], others: str) -> None:
    task = Tagging(types=("PER",), other_types=others)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="tag is not known") as caught:
        from_file(tmp_path, "tags", [GOOD["tags"], {"tokens": ["Juma", "ran"], "tags": tags}], task)
    assert "row 2, token 0" in str(caught.value)


def test_tags_in_another_case_and_of_other_types(tmp_path: Path) -> None:
    given = {"tokens": list("abcd"), "tags": ["b-per", "i-Per", "o", "B-DATE"]}
    (found,) = from_file(tmp_path, "tags", [given])
    assert found["tags"] == ["B-PER", "I-PER", "O", "O"] and found["ignored"] == 1
    both = Tagging(types=("per", "PER"))
    (found,) = from_file(tmp_path, "tags", [{**given, "tags": ["b-per", "I-per", "B-PER", "O"]}], both)
    assert found["tags"] == ["B-per", "I-per", "B-PER", "O"]


@pytest.mark.parametrize("column", ["text", "label", "id"])
def test_half_a_surrogate_pair_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str) -> None:
    row = {**GOOD["text"], "id": "1", column: "a\ud83d"}
    with pytest.raises(DataError, match="surrogate") as caught:
        from_python(tmp_path, "text", [GOOD["text"], row], monkeypatch)
    assert "row 2" in str(caught.value)
    for task in (TASKS["text"], LanguageModeling()):
        if column != "label" or task is TASKS["text"]:
            with pytest.raises(DataError, match="surrogate"):
                rows.read(task, _file(tmp_path, row), "sw")


def test_rows_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\none,0\n\ntwo,\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a label is empty[\s\S]*a\.csv, row [34]"):
        rows.read(TASKS["text"], Rows(path=str(tmp_path / "a.csv")), "sw")


def test_a_sample_is_the_same_for_every_language_and_order(tmp_path: Path) -> None:
    def given(language: str, order: list[int]) -> list[dict[str, Any]]:
        return [{"id": f"q{place}", "text": f"{language} {place}", "label": place % 2} for place in order]

    def ids(**chosen: Any) -> list[str]:
        found = rows.read(TASKS["text"], Rows(path=str(tmp_path / "some.jsonl"), **chosen), "sw")
        return [row["id"] for row in found]

    _file(tmp_path, *given("en", list(range(60))))
    english, again, other = ids(sample=12), ids(sample=12), ids(sample=12, seed=7)
    assert english == again and len(set(english)) == 12 and english == sorted(english, key=lambda name: int(name[1:]))
    assert english != other and english != ids(limit=12)
    assert ids(sample=60) == ids(sample=99) == ids()
    assert set(ids(sample=30)) > set(english)  # a larger sample holds the smaller one
    assert {int(name[1:]) // 20 for name in ids(sample=30)} == {0, 1, 2}  # of the whole file
    assert set(ids(limit=20, sample=5)) <= {f"q{place}" for place in range(20)}
    _file(tmp_path, *given("sw", list(reversed(range(60)))))
    assert set(ids(sample=12)) == set(english)
    _file(tmp_path, *({"text": f"no id {place}", "label": 0} for place in range(60)))
    drawn = [row["text"] for row in rows.read(TASKS["text"], Rows(path=str(tmp_path / "some.jsonl"), sample=12), "sw")]
    _file(tmp_path, *({"text": f"other {place}", "label": 1} for place in range(60)))
    also = [row["text"] for row in rows.read(TASKS["text"], Rows(path=str(tmp_path / "some.jsonl"), sample=12), "sw")]
    assert [text.split()[-1] for text in drawn] == [text.split()[-1] for text in also]


def test_rows_without_a_sample_keep_their_keys() -> None:
    assert not {"sample", "seed"} & Rows(path="a.txt").model_dump().keys()
    place = TaskRows(task="xnli", data="hub", sample=5, seed=3)
    assert TaskRows.model_validate(place.model_dump()) == place and place.model_dump()["seed"] == 3


def test_tables_and_datasets_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    good = [GOOD["choice"], {**GOOD["choice"], "label": 0}]
    expected = from_file(tmp_path, "choice", good)
    table = pandas.DataFrame(good)
    assert from_python(tmp_path, "choice", table, monkeypatch) == expected
    assert from_python(tmp_path, "choice", datasets.Dataset.from_list(good), monkeypatch) == expected
    for missing in (pandas.NA, pandas.NaT, None, float("nan")):
        for column in ("choice2", "label", "question"):
            broken = table.astype(object)
            broken.loc[1, column] = missing
            with pytest.raises(DataError, match="is empty") as caught:
                from_python(tmp_path, "choice", broken, monkeypatch)
            assert f"row 2, column '{column}'" in str(caught.value)


def test_labels_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    given = [{"text": "x", "label": label} for label in ("caf\u00e9", "cafe\u0301", " caf\u00e9\u200b ")]
    for labels in (("caf\u00e9", "b"), ("cafe\u0301", "b")):
        found = from_file(tmp_path, "text", given, Classification(labels=labels))
        assert {row["label"] for row in found} == {labels[0]}
    unknown = Classification(labels=())  # as the labels of training rows are gathered
    assert kind_of(unknown).labels.of(from_file(tmp_path, "text", given, unknown)) == ("caf\u00e9",)


def test_settings_name_samples() -> None:
    built_in = BuiltinTask.model_validate({"name": "xnli", "data": "hub", "test": {"sample": 1000, "seed": 2}})
    place = built_in.rows("test")
    assert (place.sample, place.seed, place.limit) == (1000, 2, None) and built_in.rows("train").sample is None
    given = {"train": "a.csv", "test": {"path": "b.csv", "sample": 7}, "labels": ["x", "y"]}
    own = custom_forms()["classification"].model_validate(given)
    assert own.test.sample == 7 and own.test.seed == 0
    for wrong in ({"sample": 0}, {"sample": True}, {"sample": 4.0}, {"sample": "many"}, {"seed": True}, {"seed": -1}):
        with pytest.raises(ValidationError):
            BuiltinTask.model_validate({"name": "xnli", "data": "hub", "test": wrong})


def test_the_papers_studies_sample_where_the_papers_do() -> None:
    for path in sorted((Path(__file__).parents[1] / "studies").glob("adamergex-table-*.yaml")):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "test: {limit" not in line, f"{path.name}: {line}"
