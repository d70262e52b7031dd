"""Rows of text and labels from a local file or a hub dataset, checked while they are read, and their hash.

Every row that comes out is ``{"text": ..., ...}`` with our column names. jsonl, csv, tsv and txt need the standard
library only; parquet and the hub need the extra ``adamergex[hub]``.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from adamergex import values
from adamergex.errors import DataError
from adamergex.sampling import sampled

if TYPE_CHECKING:
    from adamergex.settings import Rows

OURS = ("label", "id")
Numbered = Iterator[tuple[int, Mapping[str, Any]]]


def read(
    rows: Rows, language: str, names: Sequence[str] = ("text",), also: Sequence[str] = OURS
) -> list[dict[str, Any]]:
    """The rows of one language: ``{language}`` in path, config and split is replaced by its code.

    ``names``: the columns that must be there; of the others, ``also`` come along, and what ``columns`` maps.

    The format follows the ending: jsonl, json (a list), csv, tsv, parquet, txt (one text a line, blank lines skipped),
    each also with ``.gz``. ``columns`` maps our names to the file's; names that are all digits are positions, from 0,
    of a csv or tsv file without a header line. In tsv files a quotation mark is a character like any other.
    Raises: DataError naming file, line and columns for anything that is missing, empty or unreadable.
    """
    return [row for _, row in read_numbered(rows, language, names, also)]


def read_numbered(
    rows: Rows, language: str, names: Sequence[str] = ("text",), also: Sequence[str] = OURS
) -> list[tuple[int, dict[str, Any]]]:
    """What ``read`` returns, each row with its number in the file, from 1."""
    where = source(rows, language)
    numbered = _hub(rows, language) if rows.path is None else _local(Path(where), rows)
    columns = {name: rows.columns.get(name, name) for name in (*names, *also, *rows.columns)}
    # Without a mapping only these must be there: unlabelled text has no label, most files no id.
    needed = {*names, *rows.columns}
    kept = itertools.islice(numbered, rows.limit)
    result = [(number, _row(where, number, found, columns, needed)) for number, found in kept]
    if not result:
        raise DataError("there are no rows", where=where, expected="at least one", fix="check path and split")
    return sampled(result, rows.sample, rows.seed, lambda item: item[1])


def source(rows: Rows, language: str) -> str:
    """The file or dataset that holds the rows of a language, as messages name it."""
    if rows.path is not None:
        return rows.path.replace("{language}", language)
    parts = (rows.hub, rows.config, rows.split)
    return " ".join(part.replace("{language}", language) for part in parts if part)


def data_hash(rows: Rows, language: str) -> str:
    """SHA-256 of what ``read`` returns, as JSON lines with sorted names: the same text elsewhere has the same hash."""
    return content_hash(read(rows, language))


def content_hash(contents: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of rows that are already read."""
    digest = hashlib.sha256()
    for row in contents:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _row(
    where: str, number: int, found: Mapping[str, Any], columns: Mapping[str, str], needed: set[str]
) -> dict[str, Any]:
    result = {}
    found = values.plain_row(found, f"{where}, row {number}")
    for name, column in columns.items():
        if column in found:
            result[name] = found[column]
        elif name in needed:
            near = difflib.get_close_matches(column, map(str, found), n=1, cutoff=0.5)
            raise DataError(
                f"there is no column {column!r}" + (f" (for {name!r})" if column != name else ""),
                where=f"{where}, row {number}",
                found=f"columns {', '.join(map(str, found))}",
                expected=f"perhaps {near[0]!r}" if near else repr(column),
                fix=f"map it: columns: {{{name}: {near[0] if near else '<name in the file>'}}}",
            )
    for name in ("text", "premise", "hypothesis", "context", "question"):
        if name in needed:
            values.text_of(result[name], name, f"{where}, row {number}, column {columns[name]!r}", numbers=False)
    if "label" in result:
        result["label"] = values.label_of(result["label"], f"{where}, row {number}, column {columns['label']!r}")
    return {name: value for name, value in result.items() if name != "id" or value is not None}


def _local(path: Path, rows: Rows) -> Numbered:
    ending = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if ending not in _READERS and ending != ".parquet":
        raise DataError(
            "the format is not known by its ending",
            where=path,
            found=ending or "no ending",
            expected=", ".join((*_READERS, ".parquet")) + " (all but parquet also with .gz)",
            fix="rename or convert the file",
        )
    if not path.is_file():
        raise DataError("there is no such file", where=path, found="nothing", fix="check the path")
    if ending == ".parquet":
        yield from _parquet(path)
        return
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        # newline="": the csv reader handles line ends inside quoted fields itself.
        with opener(path, "rt", encoding="utf-8-sig", newline="" if ending == ".csv" else None) as stream:
            yield from _READERS[ending](path, stream, rows)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "the file cannot be read", where=path, found=error, expected=f"UTF-8 {ending[1:]}", fix="repair the file"
        ) from error


def _txt(path: Path, stream: IO[str], rows: Rows) -> Numbered:
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield number, {"text": line.strip()}


def _jsonl(path: Path, stream: IO[str], rows: Rows) -> Numbered:
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield number, _object(path, number, line)


def _json(path: Path, stream: IO[str], rows: Rows) -> Numbered:
    try:
        found = json.load(stream)
    except ValueError as error:
        raise DataError("this is not JSON", where=path, found=error, fix="repair the file") from error
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError("this is not a list of objects", where=path, expected='[{"text": ...}, ...]', fix="convert it")
    yield from enumerate(found, 1)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(
            "a line is not JSON", where=f"{path}, row {number}", found=error, fix="repair the line"
        ) from error
    if not isinstance(found, dict):
        raise DataError(
            "a line is not a JSON object",
            where=f"{path}, row {number}",
            found=line.strip()[:60],
            expected='{"text": ...}',
            fix="repair the line",
        )
    return found


def _csv(path: Path, stream: IO[str], rows: Rows) -> Numbered:
    yield from _table(path, csv.reader(stream), rows)


def _tsv(path: Path, stream: IO[str], rows: Rows) -> Numbered:
    yield from _table(path, csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), rows)


def _table(path: Path, lines: Iterator[list[str]], rows: Rows) -> Numbered:
    csv.field_size_limit(2**31 - 1)  # the module's own limit, 128 KiB, is less than an article may have
    positions = bool(rows.columns) and all(column.isdigit() for column in rows.columns.values())
    header = None if positions else next(lines, [])
    if twice := sorted({name for name in header or () if name and (header or []).count(name) > 1}):
        raise DataError(
            "the header names a column twice",
            where=f"{path}, row 1",
            found=f"{twice[0]!r} in columns {', '.join(header or ())}",
            expected="names that differ",
            fix="rename one of them",
        )
    for number, fields in enumerate(lines, 1 if positions else 2):
        if not fields:
            continue
        names = header if header is not None else [str(index) for index in range(len(fields))]
        if len(fields) != len(names):
            raise DataError(
                "a row has another number of fields than the header",
                where=f"{path}, row {number}",
                found=f"{len(fields)} fields",
                expected=f"{len(names)}: {', '.join(names)}",
                fix="quote fields that hold the separator",
            )
        yield number, dict(zip(names, fields, strict=True))


def _parquet(path: Path) -> Numbered:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise _not_installed("parquet files need the library pyarrow", path, error) from error
    try:
        yield from enumerate(parquet.read_table(path).to_pylist(), 1)
    except pyarrow.ArrowException as error:
        raise DataError("this is not a parquet file", where=path, found=error, fix="write it again") from error


def _hub(rows: Rows, language: str) -> Numbered:
    load_dataset = hub_loader(source(rows, language))
    named = {name: value.replace("{language}", language) for name, value in _hub_names(rows)}
    try:
        dataset = load_dataset(**named)
    except Exception as error:  # datasets raises whatever its builders, and the network, raise
        raise DataError(
            "the hub dataset cannot be loaded",
            where=source(rows, language),
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="check hub, config, split and revision, and that there is a network",
        ) from error
    yield from enumerate(dataset, 1)


def hub_loader(where: object) -> Callable[..., Any]:
    """``datasets.load_dataset``. Raises: DataError where the library is not installed."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise _not_installed("hub datasets need the library datasets", where, error) from error
    loader: Callable[..., Any] = load_dataset
    return loader


def _not_installed(problem: str, where: object, error: ModuleNotFoundError) -> DataError:
    return DataError(problem, where=where, found=error, fix="pip install 'adamergex[hub]'")


def _hub_names(rows: Rows) -> list[tuple[str, str]]:
    names = {"path": rows.hub, "name": rows.config, "revision": rows.revision, "split": rows.split}
    return [(name, value) for name, value in names.items() if value is not None]


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".txt": _txt}
