"""Several tables together: methods × tasks, the headline method over language × task, and the total cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adamergex.report.matrices import task_matrices
from adamergex.report.numbers import number
from adamergex.report.results import Method, Results, TrainedAdapter
from adamergex.report.summary import Mean, mean


@dataclass(frozen=True)
class Overview:
    """Means over the target languages, one column per table. ``best``: (method name, column) of the best values.

    ``adapters``: every trained adapter once, even if several tables use it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Method, tuple[Mean | None, ...]], ...]
    best: frozenset[tuple[str, int]]
    pictures: tuple[tuple[str, str], ...]
    adapters: tuple[TrainedAdapter, ...]

    caption = (
        "Mean over the target languages of each table, in percent of its own metric; the best of a column is bold; "
        "means that lack a language are marked and not compared."
    )


def under_one_title(runs: Sequence[Results]) -> tuple[str, list[Results]]:
    """The title of a report, and its tables without the part of the title that they share."""
    if len(runs) == 1:
        return runs[0].title, list(runs)
    titles = [results.title.partition(": ") for results in runs]
    if len({study for study, _, _ in titles}) > 1 or not all(name for _, _, name in titles):
        return f"{len(runs)} tables", list(runs)
    named = [replace(results, title=name) for results, (_, _, name) in zip(runs, titles, strict=True)]
    return f"{titles[0][0]}: {len(runs)} tables", named


def overview(runs: Sequence[Results]) -> Overview:
    """The tables of a report side by side, methods matched by name."""
    methods = {method.name: method for results in runs for method in results.methods}
    rows = tuple((method, tuple(mean(results, name) for results in runs)) for name, method in methods.items())
    adapters = {
        item.path or (index, item.name): item for index, results in enumerate(runs) for item in results.adapters
    }
    return Overview(
        columns=tuple(results.title for results in runs),
        rows=rows,
        best=frozenset(cell for index in range(len(runs)) for cell in _best(rows, index)),
        pictures=tuple(task_matrices("together", runs)),
        adapters=tuple(adapters.values()),
    )


def _best(rows: Sequence[tuple[Method, tuple[Mean | None, ...]]], index: int) -> list[tuple[str, int]]:
    values = [
        (method.name, item.mean)
        for method, means in rows
        if not method.oracle and (item := means[index]) and item.complete
    ]
    if len(values) < 2:
        return []
    top = number(max(value for _, value in values))
    return [(name, index) for name, value in values if number(value) == top]
