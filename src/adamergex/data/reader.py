"""Rows of text and labels from a local file or a hub dataset, checked while they are read, and their hash.

Every row that comes out is ``{"text": ..., ...}`` with our column names. jsonl, csv, tsv and txt need the standard
library only; parquet and the hub need the extra ``adamergex[hub]``.
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

    ``names``: the columns that must be there; of the others, ``also`` come along, and what ``columns`` maps.

    The format follows the ending: jsonl, json (a list), csv, tsv, parquet, txt (one text per line, blank lines
    skipped), each also with ``.gz``. ``columns`` maps our names to the file's; names that are all digits are positions,
    from 0, of a csv or tsv file without a header line. In tsv files a quotation mark is a character like any other.
    Raises: DataError naming file, line and columns for anything that is missing, empty or unreadable.
    """
    return [row for _, row in read_numbered(rows, language, names, also)]


def read_numbered(
    rows: Rows, language: str, names: Sequence[str] = ("text",), also: Sequence[str] = OURS
) -> list[tuple[int, dict[str, Json]]]:
    """What ``read`` returns, each row with its number in the file, from 1."""
    where = source(rows, language)
    numbered = _hub(rows, language) if rows.path is None else rows_of(Path(where), _positions(rows))
    columns = {name: rows.columns.get(name, name) for name in (*names, *also, *rows.columns)}
    # Without a mapping only these must be there: unlabelled text has no label, most files no id.
    needed = {*names, *rows.columns}
    texts = [name for name in TEXTS if name in needed]
    kept = itertools.islice(numbered, rows.limit)
    result = [(number, _row(where, number, found, columns, needed, texts)) for number, found in kept]
    if not result:
        raise DataError("there are no rows", where=where, expected="at least one", fix="check path and split")
    return sampled(result, rows.sample, rows.seed, lambda item: item[1])


def source(rows: Rows, language: str) -> str:
    """The file or dataset that holds the rows of a language, as messages name it."""
    if rows.path is not None:
        return rows.path.replace("{language}", language)
    parts = (rows.hub, rows.config, rows.split)
    return " ".join(part.replace("{language}", language) for part in parts if part)


def _positions(rows: Rows) -> int:
    """How many columns a file without a header line has at least; 0: the mapping does not name columns by position."""
    columns = list(rows.columns.values())
    numbers = all(re.fullmatch("[0-9]{1,4}", column) for column in columns)
    return max(map(int, columns)) + 1 if columns and numbers else 0


def content_hash(contents: Iterable[Row]) -> str:
    """SHA-256 of rows, as JSON lines with sorted names: the same text elsewhere has the same hash."""
    digest = hashlib.sha256()
    for row in contents:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _row(
    where: str,
    number: int,
    found: Row,
    columns: Mapping[str, str],
    needed: set[str],
    texts: Sequence[str],
) -> dict[str, Json]:
    result = {}
    for name, column in columns.items():
        if column in found:
            result[name] = found[column]
        elif name in needed:
            near = nearest(column, map(str, found), 0.5)
            raise DataError(
                f"there is no column {column!r}" + (f" (for {name!r})" if column != name else ""),
                where=f"{where}, row {number}",
                found=f"columns {', '.join(map(str, found))}",
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
    try:
        for number, row in enumerate(dataset, 1):
            yield number, values.plain_row(row, f"{source(rows, language)}, row {number}")
    except DataError:
        raise
    except Exception as error:  # of pictures, sounds and the like, which datasets decodes as it goes
        raise DataError(
            "a row of the hub dataset cannot be read",
            where=source(rows, language),
            found=shown(str(error)),
            fix="choose a dataset of texts",
        ) from error


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
