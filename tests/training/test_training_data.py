"""Rows: every format, the column mapping, and what is said about bad files."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from adamergex import data
from adamergex.errors import DataError
from adamergex.settings import Classification, LanguageModeling, Rows
from adamergex.tasks import rows as task_rows

ROWS = [{"text": "Bread, with “butter”", "label": "food"}, {"text": 'a "quoted" match', "label": "sports"}]


def written(folder: Path, ending: str) -> Path:
    path = folder / f"en.{ending}"
    if ending == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
    elif ending == "json":
        text = json.dumps(ROWS)
    elif ending == "csv":
        text = 'text,label\r\n"Bread, with “butter”",food\r\n"a ""quoted"" match",sports\r\n'
    else:
        text = "\ufefflabel\ttext\n" + "".join(f"{row['label']}\t{row['text']}\n" for row in ROWS)
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv"])
def test_every_format_gives_the_same_rows_and_hash(tmp_path: Path, ending: str, packed: bool) -> None:
    path = written(tmp_path, ending)
    if packed:
        path.with_name(f"en.{ending}.gz").write_bytes(gzip.compress(path.read_bytes()))
    rows = Rows(path=str(tmp_path / ("{language}." + ending)) + (".gz" if packed else ""))
    assert data.read(rows, "en") == ROWS
    assert data.data_hash(rows, "en") == data.content_hash(ROWS)


def test_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "en.parquet")
    assert data.read(Rows(path=str(tmp_path / "en.parquet")), "en") == ROWS
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="not a parquet file"):
        data.read(Rows(path=str(tmp_path / "bad.parquet")), "en")


@pytest.mark.parametrize(("library", "rows"), [("pyarrow", {"path": "a.parquet"}), ("datasets", {"hub": "some/rows"})])
def test_a_library_that_is_not_there_is_named_with_its_extra(
    library: str, rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, library, None)  # what an import finds in an installation without it
    with pytest.raises(DataError, match=rf"{library}[\s\S]*pip install 'adamergex\[hub\]'"):
        data.read(Rows(**rows), "en")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_long_fields_and_unnamed_columns(ending: str, tmp_path: Path) -> None:
    """An article is longer than the csv module's own limit; a spreadsheet leaves columns without a name."""
    divider, long = {"csv": ",", "tsv": "\t"}[ending], "word " * 60_000
    lines = (divider.join(fields) + "\n" for fields in (["text", "label", "", ""], [long, "a", "", ""]))
    (tmp_path / f"a.{ending}").write_text("".join(lines), encoding="utf-8")
    assert data.read(Rows(path=str(tmp_path / f"a.{ending}")), "en") == [{"text": long, "label": "a"}]


@pytest.mark.parametrize("columns", [{}, {"text": "text", "label": "label"}])
def test_labels_beside_reference_text_are_not_read(columns: dict[str, str], tmp_path: Path) -> None:
    contents = [{"text": "hello", "id": "1", "label": None}, {"text": "good day", "id": "2", "label": "x"}]
    lines = "".join(json.dumps(row) + "\n" for row in contents)
    (tmp_path / "en.jsonl").write_text(lines, encoding="utf-8")
    rows = Rows(path=str(tmp_path / "{language}.jsonl"), columns=columns)
    found = task_rows.read(LanguageModeling(), rows, "en")
    assert found == [{"text": "hello", "id": "1"}, {"text": "good day", "id": "2"}]
    with pytest.raises(DataError, match="a label is empty"):
        task_rows.read(Classification(labels=("x", "y")), rows, "en")


def test_txt_is_one_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("one \n\n two\n", encoding="utf-8")
    assert data.read(Rows(path=str(tmp_path / "en.txt")), "en") == [{"text": "one"}, {"text": "two"}]
    assert data.read(Rows(path=str(tmp_path / "en.txt"), limit=1), "en") == [{"text": "one"}]


def test_columns_are_mapped_and_others_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"satz": "eins", "klasse": 3, "id": "x1", "other": 0}\n', encoding="utf-8")
    rows = Rows(path=str(tmp_path / "a.jsonl"), columns={"text": "satz", "label": "klasse"})
    assert data.read(rows, "de") == [{"text": "eins", "label": "3", "id": "x1"}]


def test_positions_name_columns_of_a_file_without_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("food\tBread\n", encoding="utf-8")
    rows = Rows(path=str(tmp_path / "a.tsv"), columns={"label": "0", "text": "1"})
    assert data.read(rows, "en") == [{"text": "Bread", "label": "food"}]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        (
            "a.jsonl",
            '{"text": "x", "lable": "y"}\n',
            {"label": "label"},
            r"no column 'label'[\s\S]*row 1[\s\S]*'lable'",
        ),
        ("a.csv", "sentence\nx\n", {}, r"no column 'text'[\s\S]*columns sentence"),
        ("a.csv", "text,label\nx\n", {}, r"another number of fields[\s\S]*row 2[\s\S]*1 fields"),
        ("a.jsonl", '{"text": "x"}\n{"text": " "}\n', {}, r"a text is empty[\s\S]*row 2"),
        ("a.jsonl", '{"text": "x", "label": ""}\n', {}, r"a label is empty[\s\S]*row 1"),
        ("a.jsonl", '{"text": 7}\n', {}, r"a text is not text[\s\S]*found: 7"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', {}, r"a line is not JSON[\s\S]*row 2"),
        ("a.jsonl", "[1]\n", {}, "a line is not a JSON object"),
        ("a.json", '{"text": "x"}', {}, "not a list of objects"),
        ("a.json", "{", {}, "this is not JSON"),
        ("a.csv", "text,label,text\nx,y,z\n", {}, r"names a column twice[\s\S]*row 1[\s\S]*'text'"),
        ("a.txt", "\n\n", {}, "there are no rows"),
        ("a.doc", "x", {}, r"format is not known[\s\S]*\.doc"),
    ],
)
def test_bad_files_are_explained(
    tmp_path: Path, name: str, content: str, columns: dict[str, str], message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        data.read(Rows(path=str(tmp_path / name), columns=columns), "en")


def test_missing_damaged_and_wrongly_encoded_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        data.read(Rows(path=str(tmp_path / "{language}.txt")), "en")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"hello " * 99)[:-12])
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for name in ("cut.txt.gz", "latin.txt"):
        with pytest.raises(DataError, match="the file cannot be read"):
            data.read(Rows(path=str(tmp_path / name)), "en")


def test_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands for the hub: ``load_dataset`` reads both alike."""
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "sw").mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        lines = "".join(json.dumps({"sentence": row["text"], "label": row["label"]}) + "\n" for row in rows)
        (tmp_path / "sw" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    rows = Rows(hub=str(tmp_path / "{language}"), split="test", columns={"text": "sentence"})
    assert data.read(rows, "sw") == ROWS[:1]
    with pytest.raises(DataError, match=r"hub dataset cannot be loaded[\s\S]*check hub"):
        data.read(rows.model_copy(update={"split": "dev"}), "sw")
