"""Reads data files strictly: jsonl, json, csv, tsv, txt (each also with ``.gz``) and parquet.

Ambiguous files are refused with file and row: unclosed quotation marks, another separator, ragged rows, duplicate
names, other encodings. Files are streamed, and the limits of ``inputs`` bound the cost of damaged or hostile ones.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from adamergex.data import values
from adamergex.data.compression import SWALLOWED, Unpacked, require_ratio
from adamergex.data.values import Row
from adamergex.errors import DataError
from adamergex.files import inputs
from adamergex.files.registry import Registry
from adamergex.files.strict import shown

Numbered = Iterator[tuple[int, Row]]
Reader = Callable[[Path, "Lines", int], Numbered]
_MAGIC = (
    (b"\xff\xfe", "UTF-16 text"), (b"\xfe\xff", "UTF-16 text"), (b"\x1f\x8b", "gzip data"),
    (b"PK\x03\x04", "a zip archive, or a spreadsheet"), (b"PAR1", "parquet data"),
)  # fmt: skip
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}


def rows_of(path: Path, positions: int) -> Numbered:
    """Number (from 1, header line included) and columns of every row. ``positions``: the least number of columns of a
    table without a header line; they are named "0", "1", …

    Raises: DataError with file and row.
    """
    packed = path.suffix == ".gz" and len(path.suffixes) > 1
    ending = path.suffixes[-2] if packed else path.suffix
    custom = None if ending in READERS or ending == ".parquet" else FORMATS.find(ending.removeprefix("."))
    if custom is None and ending not in READERS and (ending != ".parquet" or packed):
        raise DataError(
            "the ending does not name a known format",
            where=path,
            found=ending or "no ending",
            expected=", ".join(f".{name}" for name in FORMATS) + " (all but parquet also with .gz)",
            fix="rename or convert the file",
        )
    with inputs.open_regular(path, what="the data file", error=DataError) as file:
        if ending == ".parquet":
            yield from _parquet(path, file)
            return
        lines = Lines(path, io.BufferedReader(Unpacked(path, file), 1 << 20) if packed else file, ending)
        try:
            lines.open()
            yield from custom.rows(path, lines) if custom else READERS[ending](path, lines, positions)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise DataError(
                "the file cannot be read", where=f"{path}, after line {lines.number}", found=error,
                expected=f"UTF-8 {ending[1:]}" + (", packed by gzip" if packed else ""), fix="repair the file",
            ) from error  # fmt: skip


class FileFormat(NamedTuple):
    """A format of text files with the ending ``name``: ``rows`` gives number (from 1) and columns of each row.

    It reads checked UTF-8 lines, and raises ``lines.refused(...)`` for those that it cannot parse."""

    name: str
    rows: Callable[[Path, Lines], Numbered]


class Lines:
    """The lines of a text file. ``number``: of the last line read; ``record``: see ``recorded``."""

    def __init__(self, path: Path, stream: IO[bytes] | io.BufferedReader, ending: str) -> None:
        self.path, self.number, self._stream, self._ending = path, 0, stream, ending
        self.record: list[str] = []

    def open(self) -> None:
        """Start reading. Raises: DataError for a file that is obviously not UTF-8 text."""
        start = self._stream.peek(4)[:4]  # type: ignore[union-attr]
        other = next((kind for magic, kind in _MAGIC if start.startswith(magic)), None)
        if other:
            raise DataError(
                f"the file is not {self._ending[1:]} in UTF-8", where=self.path, found=other, expected="UTF-8 text",
                fix="save it as UTF-8" if "UTF" in other else "rename it with the ending of its format",
            )  # fmt: skip
        # newline="": the csv reader handles line ends inside quoted fields itself.
        newline = "" if self._ending == ".csv" else None
        self._text = io.TextIOWrapper(self._stream, encoding="utf-8-sig", newline=newline)

    def __iter__(self) -> Iterator[str]:
        readline, limit = self._text.readline, inputs.LINE_CHARACTERS
        for self.number in itertools.count(1):
            line = readline(limit)
            if len(line) == limit:
                raise self.refused("a line is too long", f"more than {limit:,} characters", "check the format")
            if "\0" in line:
                raise self.refused("a line holds a NUL character", shown(line), "save the file as UTF-8 text")
            if not line:
                self.number -= 1
                return
            yield line

    def recorded(self) -> Iterator[str]:
        """The lines, each appended to ``record`` until that is cleared."""
        for line in self:
            self.record.append(line)
            yield line

    def whole(self, limit: int) -> str:
        """The whole text, of at most ``limit`` characters. Raises: DataError."""
        text = self._text.read(limit + 1)
        if len(text) > limit:
            raise self.refused("the file is too large", f"more than {limit:,} characters", "convert it to jsonl")
        return text

    def refused(self, problem: str, found: object, fix: str, *, row: int = 0, expected: str | None = None) -> DataError:
        """An error with file, row and line."""
        place = f", row {row}" if row else ""
        line = f", line {self.number}" if self.number and self.number != row else ""
        return DataError(problem, where=f"{self.path}{place}{line}", found=found, expected=expected, fix=fix)


def _txt(path: Path, lines: Lines, positions: int) -> Numbered:
    for number, line in enumerate(lines, 1):
        if text := line.strip():
            yield number, {"text": text}


def _jsonl(path: Path, lines: Lines, positions: int) -> Numbered:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            document = inputs.parse_json(line)
        except inputs.Malformed as problem:
            raise lines.refused("a line is not JSON", problem, "repair the line", row=number) from None
        if not isinstance(document, dict):
            raise lines.refused(
                "a line is not a JSON object", shown(document, 60), "repair the line", row=number,
                expected='{"text": ...}',
            )  # fmt: skip
        yield number, document


def _json(path: Path, lines: Lines, positions: int) -> Numbered:
    try:
        document = inputs.parse_json(lines.whole(inputs.JSON_CHARACTERS))
    except inputs.Malformed as problem:
        raise DataError("this is not JSON", where=path, found=problem, fix="repair the file") from None
    items = document if isinstance(document, list) else [document]
    invalid = [item for item in items if item is document or not isinstance(item, dict)]
    if invalid:
        raise DataError(
            "this is not a list of objects", where=path, found=shown(invalid[0], 60), expected='[{"text": ...}, ...]',
            fix="convert it",
        )  # fmt: skip
    yield from enumerate(items, 1)


def _csv(path: Path, lines: Lines, positions: int) -> Numbered:
    csv.field_size_limit(inputs.LINE_CHARACTERS)  # the default, 128 KiB, is less than an article may need
    yield from _table(_csv_rows(lines), lines, positions, ",")


def _csv_rows(lines: Lines) -> Iterator[list[str]]:
    """The rows of a csv file, quoted as in RFC 4180."""
    reader, number = csv.reader(lines.recorded(), strict=True), 0
    while True:
        lines.record.clear()
        number += 1
        first_line = lines.number + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            lines.number = first_line
            raise lines.refused(
                "a quoted field does not end where it should", f"{problem}: {shown(''.join(lines.record[:1]).strip())}",
                'close the quotation mark, and write one inside a quoted field twice ("")', row=number,
            ) from None  # fmt: skip
        if len(lines.record) > 1 or '"' in lines.record[0]:
            _require_quoting(fields, lines, number, first_line)
        yield fields


def _require_quoting(fields: Sequence[str], lines: Lines, number: int, first_line: int) -> None:
    """Raises: DataError for quotation marks that do not mean what they seem to."""
    inside = lines.record[1:]
    if len(inside) >= SWALLOWED and len(fields) > 1:
        field_counts = [_fields_alone(line) for line in inside]
        if all(count == len(fields) for count in field_counts):
            lines.number = first_line
            raise lines.refused(
                "a quotation mark is not closed: the field contains lines that look like rows",
                f"{len(inside)} lines of {len(fields)} fields each, after {shown(lines.record[0].strip())}",
                "close it; if the text is intended, write the rows as jsonl", row=number,
            )  # fmt: skip
    if re.search(r'(?:^|,)[ \t]+"', lines.record[0]) and any(re.match(r'[ \t]+"', field) for field in fields):
        raise lines.refused(
            "a blank before a quotation mark makes it an ordinary character", shown(lines.record[0].strip()),
            "remove the blank after the comma", row=number,
        )  # fmt: skip


def _fields_alone(line: str) -> int:
    try:
        return len(next(csv.reader([line]), []))
    except csv.Error:
        return 0


def _tsv(path: Path, lines: Lines, positions: int) -> Numbered:
    yield from _table(_tsv_rows(lines), lines, positions, "\t")


def _tsv_rows(lines: Lines) -> Iterator[list[str]]:
    opened = -SWALLOWED
    for number, line in enumerate(lines, 1):
        fields = line.rstrip("\n").split("\t") if line != "\n" else []
        if '"' in line:
            odd = [field for field in fields if field.count('"') % 2]
            twice = next(filter(_quoted, fields), None)
            if twice is None and number - opened < SWALLOWED and any(field.endswith('"') for field in odd):
                number, twice = opened, line.strip()
            if twice is not None:
                raise lines.refused(
                    "a field is quoted as in csv, but tsv has no quoting", shown(twice),
                    _TSV_ADVICE, row=number,
                )  # fmt: skip
            opened = number if any(field.startswith('"') for field in odd) else opened
        yield fields


_TSV_ADVICE = "write it without quotation marks, with blanks instead of tabs and line breaks; or write csv or jsonl"


def _quoted(field: str) -> bool:
    """Whether a field has quotation marks around it and doubled ones inside, as in csv."""
    inside = field[1:-1]
    return len(field) > 2 and field[0] == field[-1] == '"' and '"' in inside and '"' not in inside.replace('""', "")


def _table(rows: Iterator[list[str]], lines: Lines, positions: int, separator: str) -> Numbered:
    header: list[str] | None = None
    for number, fields in enumerate(rows, 1):
        if not fields:
            continue
        if header is None:
            if positions != 1:  # one column may be a text with any character in it
                _require_separator(fields, lines, number, separator)
            header = [str(index) for index in range(len(fields))] if positions else fields
            if not positions:
                _require_header(header, lines, number, separator)
                continue
        if len(fields) != len(header):
            raise lines.refused(
                "the number of fields in a row differs from the " + ("first row" if positions else "header"),
                f"{len(fields)} fields", "quote fields that hold the separator" if separator == "," else _TSV_ADVICE,
                row=number, expected=f"{len(header)}: {shown(', '.join(header), 300)}",
            )  # fmt: skip
        yield number, dict(zip(header, fields, strict=True))


def _require_separator(first: Sequence[str], lines: Lines, number: int, separator: str) -> None:
    """Raises: DataError for a first row that seems to have another separator."""
    others = [other for other in SEPARATORS if other != separator and len(first) == 1 and other in first[0]]
    if others:
        expected = f"fields separated by a {SEPARATORS[separator]}"
        fix = f"write the file with {SEPARATORS[separator]}s" + (", or name it .tsv" if others[0] == "\t" else "")
        raise lines.refused(
            f"the separator seems to be a {SEPARATORS[others[0]]}", shown(first[0]), fix, row=number, expected=expected
        )


def _require_header(header: list[str], lines: Lines, number: int, separator: str) -> None:
    """Raises: DataError for duplicate names, or names that are all quoted in tsv."""
    names = [name for name in header if name]  # spreadsheets may leave columns without a name, which nothing reads
    if duplicates := sorted({name for name in names if header.count(name) > 1}):
        raise lines.refused(
            "the header names a column twice", f"{duplicates[0]!r} in columns {shown(', '.join(header), 300)}",
            "rename one of them", row=number, expected="names that differ",
        )  # fmt: skip
    if not names:
        raise lines.refused("the header has no names", shown(header), "name the columns in the first line", row=number)
    if separator == "\t" and all(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
        raise lines.refused(
            "the fields are quoted, but tsv has no quoting", shown(", ".join(header)), _TSV_ADVICE,
            row=number,
        )  # fmt: skip


def _parquet(path: Path, file: IO[bytes]) -> Numbered:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        problem, fix = "parquet files need the library pyarrow", "pip install 'adamergex[hub]'"
        raise DataError(problem, where=path, found=error, fix=fix) from error
    number = 0
    try:
        table = parquet.ParquetFile(file)
        _require_columns(path, table, path.stat().st_size)
        for batch in table.iter_batches(4096):
            for row in batch.to_pylist():
                number += 1
                yield number, values.plain_row(row, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        problem = f"a value cannot be read after row {number}" if number else "this is not a parquet file"
        raise DataError(problem, where=path, found=error, fix="write it again") from error


def _require_columns(path: Path, table: Any, size: int) -> None:
    names = list(table.schema_arrow.names)
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            "the file names a column twice", where=path, found=repr(duplicates[0]), fix="rename one of them"
        )
    groups = [table.metadata.row_group(index) for index in range(table.metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    require_ratio(path, size, unpacked)
    rows = table.metadata.num_rows
    if rows > max(size, 1_000_000):  # runs of one value use memory, but little space in the file
        raise DataError(
            "the file has more rows than bytes", where=path, found=f"{rows:,} rows in {size:,} bytes",
            expected="at least one byte per row", fix="check where the file comes from",
        )  # fmt: skip


READERS: dict[str, Reader] = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".txt": _txt}
FORMATS: Registry[FileFormat] = Registry("adamergex.data_formats", (*(name[1:] for name in READERS), "parquet"))
register = FORMATS.register
"""Add a ``FileFormat`` for this process. An installed package provides one as an entry point with the format's name in
the group ``adamergex.data_formats``, for the command line too. Raises: ConfigError when the name is taken."""
