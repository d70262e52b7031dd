"""Reads and checks rows of text and labels from a local file or a hub dataset, and hashes them.

Rows have our column names: ``{"text": ..., ...}``. jsonl, csv, tsv and txt need only the standard library; parquet and
the hub need the extra ``adamergex[hub]``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamergex.data import values
from adamergex.data.file_formats import Numbered, rows_of
from adamergex.data.sampling import sampled
from adamergex.data.values import Row
from adamergex.errors import DataError
from adamergex.files.inputs import Json
from adamergex.files.strict import nearest, shown

if TYPE_CHECKING:
    from adamergex.data.sources import Rows

OURS = ("label", "id")
TEXTS = ("text", "premise", "hypothesis", "context", "question")


def read(
    rows: Rows, language: str, names: Sequence[str] = ("text",), also: Sequence[str] = OURS
) -> list[dict[str, Json]]:
    """The rows of one language: ``{language}`` in path, config and split is replaced by its code.

    ``names``: required columns; ``also``: optional ones, in addition to those that ``columns`` maps.

    The format follows the ending: jsonl, json (a list), csv, tsv, parquet, txt (one text per line, blank lines
    skipped), each also with ``.gz``. ``columns`` maps our names to the file's; names that are all digits are positions,
    from 0, of a csv or tsv file without a header line. In tsv files quotation marks are ordinary characters.
    Raises: DataError with file, line and columns for anything missing, empty or unreadable.
    """
    return [row for _, row in read_numbered(rows, language, names, also)]


def read_numbered(
    rows: Rows, language: str, names: Sequence[str] = ("text",), also: Sequence[str] = OURS
) -> list[tuple[int, dict[str, Json]]]:
    """The result of ``read``, each row with its number in the file, from 1."""
    where = source(rows, language)
    numbered = _hub(rows, language) if rows.path is None else rows_of(Path(where), _positions(rows))
    columns = {name: rows.columns.get(name, name) for name in (*names, *also, *rows.columns)}
    # Other columns are optional: unlabelled text has no label, and most files have no id.
    needed = {*names, *rows.columns}
    texts = [name for name in TEXTS if name in needed]
    limited = itertools.islice(numbered, rows.limit)
    result = [(number, _row(where, number, row, columns, needed, texts)) for number, row in limited]
    if not result:
        raise DataError("there are no rows", where=where, expected="at least one", fix="check path and split")
    return sampled(result, rows.sample, rows.seed, lambda item: item[1])


def source(rows: Rows, language: str) -> str:
    """The file or dataset with the rows of a language, for messages."""
    if rows.path is not None:
        return rows.path.replace("{language}", language)
    parts = (rows.hub, rows.config, rows.split)
    return " ".join(part.replace("{language}", language) for part in parts if part)


def _positions(rows: Rows) -> int:
    """The least number of columns of a file without a header line; 0 if the mapping does not use positions."""
    columns = list(rows.columns.values())
    numbers = all(re.fullmatch("[0-9]{1,4}", column) for column in columns)
    return max(map(int, columns)) + 1 if columns and numbers else 0


def content_hash(contents: Iterable[Row]) -> str:
    """SHA-256 of rows as JSON lines with sorted names, independent of file and format."""
    digest = hashlib.sha256()
    for row in contents:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _row(
    where: str,
    number: int,
    row: Row,
    columns: Mapping[str, str],
    needed: set[str],
    texts: Sequence[str],
) -> dict[str, Json]:
    result = {}
    for name, column in columns.items():
        if column in row:
            result[name] = row[column]
        elif name in needed:
            near = nearest(column, map(str, row), 0.5)
            raise DataError(
                f"there is no column {column!r}" + (f" (for {name!r})" if column != name else ""),
                where=f"{where}, row {number}",
                found=f"columns {', '.join(map(str, row))}",
                expected=f"perhaps {near!r}" if near else repr(column),
                fix=f"map it: columns: {{{name}: {near or '<name in the file>'}}}",
            )
    for name in texts:
        if not values.is_text(result[name]):
            values.text_of(result[name], name, f"{where}, row {number}, column {columns[name]!r}", numbers=False)
    if "label" in result and not values.is_text(result["label"]):
        result["label"] = values.label_of(result["label"], f"{where}, row {number}, column {columns['label']!r}")
    for name in needed & result.keys() - {*texts, "label"}:
        if result[name] is None or result[name] == "":
            values.text_of(result[name], name, f"{where}, row {number}, column {columns[name]!r}")
    if result.get("id", "") is None:
        del result["id"]
    return result


def _hub(rows: Rows, language: str) -> Numbered:
    load_dataset = hub_loader(source(rows, language))
    names = {"path": rows.hub, "name": rows.config, "revision": rows.revision, "split": rows.split}
    given = {name: value.replace("{language}", language) for name, value in names.items() if value is not None}
    try:
        dataset = load_dataset(**given)
    except Exception as error:  # datasets passes on any error of its builders and the network
        raise DataError(
            "the hub dataset cannot be loaded",
            where=source(rows, language),
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="check hub, config, split and revision, and that there is a network",
        ) from error
    try:
        for number, row in enumerate(dataset, 1):
            yield number, values.plain_row(row, f"{source(rows, language)}, row {number}")
    except DataError:
        raise
    except Exception as error:  # such as errors of decoding images or audio
        raise DataError(
            "a row of the hub dataset cannot be read",
            where=source(rows, language),
            found=shown(str(error)),
            fix="choose a dataset of texts",
        ) from error


def hub_loader(where: object) -> Callable[..., Any]:
    """``datasets.load_dataset``. Raises: DataError without the library."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise DataError(
            "hub datasets need the library datasets", where=where, found=error, fix="pip install 'adamergex[hub]'"
        ) from error
    loader: Callable[..., Any] = load_dataset
    return loader
