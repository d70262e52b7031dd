"""Templates filled from rows. Only one column of a prompt may be cut; the rest is always kept whole."""

from __future__ import annotations

import re

from adamergex.data.values import Row
from adamergex.errors import ConfigError, DataError
from adamergex.tasks.answering.prompts import Prompt

_NAME = re.compile(r"\{(\w+)\}")
_PREFIX = re.compile(r"([^\W\d_][^:：\n.?!{}]*?)\s*[:：]\s*$")


def names_in(template: str) -> tuple[str, ...]:
    """The columns that a template uses, without duplicates."""
    return tuple(dict.fromkeys(_NAME.findall(template)))


def filled(template: str, row: Row) -> str:
    """The template with each ``{column}`` replaced by the row's value; braces in the row's text are kept.

    A prefix that the template writes before the column ("Question: {question}") is not repeated when the row's text
    begins with it too.
    Raises: DataError: the row lacks a column.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in row:
            raise DataError(
                f"a template uses the column {match[1]!r}, which a row lacks",
                where=repr(template),
                found=f"columns {', '.join(row)}",
                fix="map the column, or change the template",
            )
        return _without_prefix(str(row[match[1]]), template[: match.start()])

    return _NAME.sub(value, template)


def _without_prefix(text: str, before: str) -> str:
    prefix = _PREFIX.search(before)
    doubled = re.match(rf"\s*{re.escape(prefix[1])}\s*[:：]\s*", text, re.IGNORECASE) if prefix else None
    return text[doubled.end() :] if doubled else text


def template_prompt(template: str, row: Row, cut: str) -> Prompt:
    """The template filled from a row; only the column ``cut`` may be cut (at its end).

    Raises: ConfigError: the template does not use that column.
    """
    if cut not in names_in(template):
        raise ConfigError(
            f"the prompt has no place for the {cut}",
            where="prompt",
            found=repr(template),
            expected=f"'{{{cut}}}' in it",
            fix=f"write {{{cut}}} where it belongs",
        )
    return Prompt(str(row[cut]), lambda text: filled(template, {**row, cut: text}))
