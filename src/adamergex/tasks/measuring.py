"""Scores of predictions, and each item's share of the score for intervals and comparisons.

Every main metric is a ratio of sums, 100 · Σ hits / Σ of: accuracy, exact match and ROUGE-L with of = 1 per item,
entity F1 with hits = 2·TP and of = predicted + gold entities of a sentence.
Resampling items resamples both sums (see ``statistics``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from adamergex.data.values import Row
from adamergex.errors import ConfigError
from adamergex.files.inputs import Json
from adamergex.jobs.settings import Target
from adamergex.metrics.checks import known
from adamergex.tasks.catalogue import task_file
from adamergex.tasks.kinds import kind_of
from adamergex.tasks.task_kind import Items, right_or_wrong

Item = Row
Tally = tuple[float, float]


def scores(task: Target, items: Sequence[Item], language: str) -> dict[str, float]:
    """All scores of the task, in percent. Raises: DataError as the metric does."""
    return _score(task)([item["predicted"] for item in items], [item["gold"] for item in items], language)


def _score(task: Target) -> Callable[[Items, Items, str], dict[str, float]]:
    """The score function: that of the task file named by ``measured_as``, else the kind's."""
    return kind_of(task).score if task.measured_as is None else task_file(task.measured_as).score


def require_metric(task: Target) -> None:
    """Check with an example answer that the task's ``metric`` is one of its scores.

    Raises: ConfigError, DataError: there is no such task file, or no such metric.
    """
    score, (answer, reference) = _score(task), kind_of(task).example(task)
    try:
        example_scores = score([answer], [reference], "en")
    except Exception:  # a user's function may reject the example; real answers are checked again
        return
    known(task.metric, example_scores, "metric", f"the scores of {task.name}")


def tallied(task: Target, items: Sequence[dict[str, Json]], language: str) -> list[dict[str, Json]]:
    """The items with their ``tally`` [hits, of]; plain accuracy needs none.

    Raises: ConfigError: the task's ``metric`` is not one of its scores, or is not the ratio of the items' sums.
    """
    whole = known(task.metric, scores(task, items, language), "metric", f"the scores of {task.name}")
    if _score(task) is right_or_wrong:
        return list(items)
    tallies = [_tally(task, item, language) for item in items]
    hits, of = (math.fsum(column) for column in zip(*tallies, strict=True))
    if not math.isclose(100 * hits / of if of else 0.0, whole, abs_tol=1e-6):
        raise ConfigError(
            "the task's metric is neither a mean over items nor entity F1",
            where=f"{task.name}, {task.metric}",
            found=f"{whole:.6f} for all items, {100 * hits / of if of else 0.0:.6f} from single items",
            expected="a metric whose interval follows from resampled items",
            fix="choose another metric",
        )
    return [{**item, "tally": list(tally)} for item, tally in zip(items, tallies, strict=True)]


def _tally(task: Target, item: Item, language: str) -> Tally:
    if tally := kind_of(task).tally:
        return tally(item)
    return scores(task, [item], language)[task.metric] / 100, 1.0
