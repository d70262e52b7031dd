"""Rows: every format, the column mapping, and what is said about bad files."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from adamergex.data import reader
from adamergex.errors import DataError
from adamergex.files import inputs
from adamergex.jobs.settings import Classification, LanguageModeling, Rows
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
    assert reader.read(rows, "en") == ROWS


def test_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "en.parquet")
    assert reader.read(Rows(path=str(tmp_path / "en.parquet")), "en") == ROWS
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="not a parquet file"):
        reader.read(Rows(path=str(tmp_path / "bad.parquet")), "en")


@pytest.mark.parametrize(("library", "rows"), [("pyarrow", {"path": "a.parquet"}), ("datasets", {"hub": "some/rows"})])
def test_a_library_that_is_not_there_is_named_with_its_extra(
    library: str, rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, library, None)  # what an import finds in an installation without it
    with pytest.raises(DataError, match=rf"{library}[\s\S]*pip install 'adamergex\[hub\]'"):
        reader.read(Rows(**rows), "en")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_long_fields_and_unnamed_columns(ending: str, tmp_path: Path) -> None:
    """An article is longer than the csv module's own limit; a spreadsheet leaves columns without a name."""
    divider, long = {"csv": ",", "tsv": "\t"}[ending], "word " * 60_000
    lines = (divider.join(fields) + "\n" for fields in (["text", "label", "", ""], [long, "a", "", ""]))
    (tmp_path / f"a.{ending}").write_text("".join(lines), encoding="utf-8")
    assert reader.read(Rows(path=str(tmp_path / f"a.{ending}")), "en") == [{"text": long, "label": "a"}]


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
    assert reader.read(Rows(path=str(tmp_path / "en.txt")), "en") == [{"text": "one"}, {"text": "two"}]
    assert reader.read(Rows(path=str(tmp_path / "en.txt"), limit=1), "en") == [{"text": "one"}]


def test_columns_are_mapped_and_others_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"satz": "eins", "klasse": 3, "id": "x1", "other": 0}\n', encoding="utf-8")
    rows = Rows(path=str(tmp_path / "a.jsonl"), columns={"text": "satz", "label": "klasse"})
    assert reader.read(rows, "de") == [{"text": "eins", "label": "3", "id": "x1"}]


def test_positions_name_columns_of_a_file_without_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("food\tBread\n", encoding="utf-8")
    rows = Rows(path=str(tmp_path / "a.tsv"), columns={"label": "0", "text": "1"})
    assert reader.read(rows, "en") == [{"text": "Bread", "label": "food"}]


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
        ("a.csv", "text,label\nx\n", {}, r"number of fields in a row differs[\s\S]*row 2[\s\S]*1 fields"),
        ("a.jsonl", '{"text": "x"}\n{"text": " "}\n', {}, r"a text is empty[\s\S]*row 2"),
        ("a.jsonl", '{"text": "x", "label": ""}\n', {}, r"a label is empty[\s\S]*row 1"),
        ("a.jsonl", '{"text": 7}\n', {}, r"a text is not text[\s\S]*found: 7"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', {}, r"a line is not JSON[\s\S]*row 2"),
        ("a.jsonl", "[1]\n", {}, "a line is not a JSON object"),
        ("a.json", '{"text": "x"}', {}, "not a list of objects"),
        ("a.json", "[null]", {}, "not a list of objects"),
        ("a.json", "{", {}, "this is not JSON"),
        ("a.csv", "text,label,text\nx,y,z\n", {}, r"names a column twice[\s\S]*row 1[\s\S]*'text'"),
        ("a.txt", "\n\n", {}, "there are no rows"),
        ("a.doc", "x", {}, r"does not name a known format[\s\S]*\.doc"),
    ],
)
def test_bad_files_are_explained(
    tmp_path: Path, name: str, content: str, columns: dict[str, str], message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        reader.read(Rows(path=str(tmp_path / name), columns=columns), "en")


def test_missing_damaged_and_wrongly_encoded_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data file does not exist"):
        reader.read(Rows(path=str(tmp_path / "{language}.txt")), "en")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"hello " * 99)[:-12])
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for name in ("cut.txt.gz", "latin.txt"):
        with pytest.raises(DataError, match="the file cannot be read"):
            reader.read(Rows(path=str(tmp_path / name)), "en")


def test_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands for the hub: ``load_dataset`` reads both alike."""
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "sw").mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        lines = "".join(json.dumps({"sentence": row["text"], "label": row["label"]}) + "\n" for row in rows)
        (tmp_path / "sw" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    rows = Rows(hub=str(tmp_path / "{language}"), split="test", columns={"text": "sentence"})
    assert reader.read(rows, "sw") == ROWS[:1]
    with pytest.raises(DataError, match=r"hub dataset cannot be loaded[\s\S]*check hub"):
        reader.read(rows.model_copy(update={"split": "dev"}), "sw")


def refusal(path: Path, **settings: object) -> str:
    """What is said of a file; fails where it is read."""
    with pytest.raises(DataError) as caught:
        reader.read(Rows(path=str(path), **settings), "en", ("text", "label"))
    assert path.name in str(caught.value)
    return str(caught.value)


TABLE = ["label,text"] + [
    f"{label},{text} {number}" for number in range(40) for label, text in (("a", "one"), ("b", "two"))
]


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({9: 'a,"Stop! she said'}, 10),  # never closed
        ({9: 'a,"Stop! she said', 30: 'b,"Go" he said'}, 10),  # closed by the opening of another
        ({9: 'a,"Stop! she said', 30: 'b,and left"'}, 10),  # closed by a stray one: 21 lines that look like rows
        ({20: 'b,"Go" he said'}, 21),
        ({20: '"b"x,two'}, 21),
        ({20: 'b, "one, two"'}, 21),
        ({20: 'b, "two"'}, 21),
        ({80: 'b,"'}, 81),
    ],
)
def test_quotation_marks_that_lose_rows_are_refused(tmp_path: Path, changes: dict[int, str], row: int) -> None:
    lines = [changes.get(number, line) for number, line in enumerate(TABLE)]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert f"a.csv, row {row}" in refusal(tmp_path / "a.csv")


def test_quoted_fields_are_read_as_they_are_meant(tmp_path: Path) -> None:
    verse = "\n".join(f"line {number}, and on" for number in range(6))
    (tmp_path / "a.csv").write_text(
        f'label,text\na,"one, two"\n\nb,"{verse}"\r\na,"say ""hi"""\nb,5" pipe\na,""" x"\n',
        encoding="utf-8",
        newline="",
    )
    found = reader.read(Rows(path=str(tmp_path / "a.csv")), "en", ("text", "label"))
    assert [row["text"] for row in found] == ["one, two", verse, 'say "hi"', '5" pipe', '" x']


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"text;label\nx;a\n", "semicolon"),
        ("a.csv", b"text\tlabel\nx\ta\n", "tab"),
        ("a.csv", b"text|label\nx|a\n", "vertical bar"),
        ("a.tsv", b"text,label\nx,a\n", "comma"),
        ("a.tsv", b'"text"\t"label"\n"x"\t"a"\n', "tsv has no quoting"),
        ("a.tsv", b'text\tlabel\n"one\ttwo\nthree"\ta\n', "tsv has no quoting"),
        ("a.tsv", b'text\tlabel\n"say ""hi"""\ta\n', "tsv has no quoting"),
        ("a.tsv", b"text\tlabel\nx\ta\tb\n", "row 2"),
        ("a.csv", b"text,label\nx,a\ny\n", "row 3"),
        ("a.csv", b"text,label,text\nx,a,y\n", "names a column twice"),
        ("a.csv", b",\nx,a\n", "the header has no names"),
        ("a.csv", b"text,label\nx,a\0\n", "NUL"),
        ("a.jsonl", b'{"text": "x", "label": "a"}\n{"text": NaN, "label": "a"}\n', "row 2"),
        ("a.jsonl", b'{"text": "x", "text": "y", "label": "a"}\n', "'text' occurs twice"),
        ("a.jsonl", rb'{"text": "\ud83d", "label": "a"}', "surrogate"),
        ("a.jsonl", b'{"text": "x", "label": 1e999}\n', "too large"),
        ("a.jsonl", b'{"text": ' + b"[" * 9999 + b"\n", "nested"),
        ("a.json", b"[" * 99999, "nested"),
        ("a.json", b'[{"text": "x", "label": "a"}, 7]', "found: 7"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n'.encode("utf-16"), "UTF-16"),
        ("a.csv", "text,label\n".encode("utf-16-le"), "NUL"),
        ("a.csv", "text,label\né,a\n".encode("latin-1"), "after line"),
        ("a.txt", b"x \xed\xa0\x80 y\n", "after line"),  # half a surrogate pair
        ("a.csv", b"PK\x03\x04......", "spreadsheet"),
        ("a.jsonl", gzip.compress(b'{"text": "x"}', mtime=0), "gzip"),
        ("a.jsonl.gz", b'{"text": "x", "label": "a"}\n', "the file cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x", "label": "a"}\n' * 99, mtime=0)[:-9], "the file cannot be read"),
        ("a.csv", b"", "there are no rows"),
        ("a.csv", b"text,label\n", "there are no rows"),
        ("a.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", "not a parquet file"),
        ("a.parquet", b"", "not a parquet file"),
    ],
)  # fmt: skip
def test_what_a_reader_would_have_to_guess_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


def test_damaged_gzip_is_refused_by_name(tmp_path: Path) -> None:
    packed = bytearray(
        gzip.compress("".join(f'{{"text": "t {n}", "label": "a"}}\n' for n in range(99)).encode(), mtime=0)
    )
    packed[40:60] = bytes(byte ^ 0x5A for byte in packed[40:60])
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    assert "cannot be read" in refusal(tmp_path / "a.jsonl.gz")


def test_positions_tell_another_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one, two;a\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("one;a\n", encoding="utf-8")
    assert "there is no column '4'" in refusal(tmp_path / "a.csv", columns={"text": "0", "label": "4"})
    assert "semicolon" in refusal(tmp_path / "b.csv", columns={"text": "0", "label": "1"})
    (tmp_path / "c.tsv").write_text("one, two; three\n", encoding="utf-8")
    assert reader.read(Rows(path=str(tmp_path / "c.tsv"), columns={"text": "0"}), "en") == [{"text": "one, two; three"}]


def test_only_regular_files_are_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    (tmp_path / "loop.tsv").symlink_to(tmp_path / "loop.tsv")
    for name in ("pipe.txt", "folder.csv", "device.jsonl", "loop.tsv", "none.parquet"):
        refusal(tmp_path / name)


def test_what_grows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr(inputs, "LINE_CHARACTERS", 1 << 12)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x", "label": "a"}\n' * 200_000))
    assert "expands too much" in refusal(tmp_path / "bomb.jsonl.gz")
    for name, content in (("long.jsonl", b"x" * 9999), ("long.csv", b'text,label\n"' + b"x\n" * 9999)):
        (tmp_path / name).write_bytes(content)
        refusal(tmp_path / name)


def test_parquet_of_other_types_is_explained(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["text", "text"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    assert "names a column twice" in refusal(tmp_path / "twice.parquet")
    many = pyarrow.table({"text": pyarrow.array(["x"] * 2_000_000).dictionary_encode(), "label": ["a"] * 2_000_000})
    parquet.write_table(many, tmp_path / "many.parquet")
    assert "more rows than bytes" in refusal(tmp_path / "many.parquet")
    binary = pyarrow.table({"text": pyarrow.array([b"\xff"]), "label": ["a"]})
    parquet.write_table(binary, tmp_path / "binary.parquet")
    refusal(tmp_path / "binary.parquet")
