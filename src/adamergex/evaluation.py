"""Predictions for every item of a labelled set, and scores with intervals; comparisons of two systems on one set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adamergex import data, lineage
from adamergex.errors import AdapterFileError, DataError, ModelError
from adamergex.outputs import require_free, staged_directory
from adamergex.records import PREDICTIONS, read_predictions
from adamergex.tasks import resampling

if TYPE_CHECKING:
    from torch import nn

    from adamergex.models import Loaded
    from adamergex.settings import EvaluateJob
    from adamergex.tasks.kinds import Answers


def evaluate(
    job: EvaluateJob,
    adapter: Path | Sequence[Path] | None,
    output: Path | None = None,
    *,
    backbone: Loaded | None = None,
) -> dict[str, Any]:
    """Predict and score one labelled set; write predictions.jsonl and scores.json into ``output``.

    ``adapter``: a directory, or those of a stack, the first lowest, whose last one has the task: its head (encoders)
    or the answer after the prompt. None: the bare base, prompted; an encoder fills the label words into a cloze.
    Returns ``{metric: percent, "metric", "n", "interval", "scores", "truncated", "unparsable"}``: the task's metric
    ("accuracy" for labels) and its name, items, its 95 % bootstrap interval, all scores of the task, inputs that were
    cut, answers that could not be read.
    Raises: AdapterFileError, DataError, ModelError, ConfigError.
    """
    from adamergex.adapters import resident
    from adamergex.models import quiet
    from adamergex.tasks import measuring
    from adamergex.tasks import rows as task_rows

    if output is not None:
        require_free(output)  # before the work, not after it
    rows = task_rows.read(job.task, job.rows, job.language)
    with quiet():
        loaded = load_for(job, bare=adapter is None) if backbone is None else backbone
        _require_kind(job, loaded, bare=adapter is None)
        if adapter is None:
            found = predict(job, loaded, loaded.model, rows)
        else:
            stack = [Path(path) for path in ((adapter,) if isinstance(adapter, (str, Path)) else adapter)]
            for path in stack:
                lineage.require_base(path, loaded.base, loaded.sha256)
            placed = resident.load(loaded.model, stack, fresh=loaded.fresh)
            try:
                found = predict(job, loaded, placed.model, rows)
            finally:
                placed.detach()
    every = measuring.scores(job.task, found.items, job.language)
    ignored = sum(row.get("ignored", 0) for row in rows)
    scores = {**score(found.items, job.task.metric), "scores": every, "truncated": found.truncated}
    scores |= {"unparsable": found.unparsable} | ({"ignored_entities": ignored} if ignored else {})
    if output is not None:
        with staged_directory(output) as stage:
            write_predictions(stage / PREDICTIONS, found.items)
            text = json.dumps(scores | {"language": job.language}, indent=2) + "\n"
            (stage / "scores.json").write_text(text, encoding="utf-8")
    return scores


def load_for(job: EvaluateJob, *, bare: bool) -> Loaded:
    """The backbone that an evaluation needs: ``bare`` without an adapter."""
    from adamergex.tasks import kinds

    return kinds.load_for(job.task, job.base, bare=bare)


def predict(job: EvaluateJob, loaded: Loaded, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> Answers:
    """A prediction for every row, in order, how many inputs were cut, and how many answers could not be read.

    Each holds id, SHA-256 of the item (16 digits), gold and predicted answer; a score (natural logarithm) a label or
    choice where there are some; and its ``tally`` in metrics that are not right or wrong (see ``tasks.measuring``).
    """
    from adamergex.tasks import kinds
    from adamergex.tasks.rows import source

    model.eval()
    where = source(job.rows, job.language)
    return kinds.answers(job.task, rows, loaded, model, job.language, job.batch_tokens, where)


def score(predictions: Sequence[Mapping[str, Any]], metric: str = "accuracy") -> dict[str, Any]:
    """The metric in percent, number of items, and the 95 % bootstrap interval (10,000 resamples, fixed seed).

    Items without a tally are right or wrong: the share of right ones in a resample of n is exactly
    Binomial(n, accuracy) / n, so that is what is drawn.
    """
    n, counted = len(predictions), _tallies(predictions)
    if counted is not None:
        return {metric: resampling.percent(counted), "metric": metric, "n": n, "interval": resampling.interval(counted)}
    correct = sum(item["gold"] == item["predicted"] for item in predictions)
    drawn = np.random.default_rng(resampling.SEED).binomial(n, correct / n, resampling.RESAMPLES) / n
    return {metric: 100 * correct / n, "metric": metric, "n": n, "interval": resampling.ends(100 * drawn)}


Predictions = Sequence[Mapping[str, Any]] | Path | str


def paired_difference(predictions_a: Predictions, predictions_b: Predictions) -> dict[str, Any]:
    """Score of a minus score of b on the same items: percentage points, 95 % interval, p.

    Items are resampled in pairs. p is two-sided. Right or wrong: McNemar's exact test (of the items that one alone has
    right, is one side's share beyond chance?). Other metrics: how often the resampled difference has the other sign.
    Raises: DataError when the two are not predictions for the same items.
    """
    a, b = _predictions(predictions_a), _predictions(predictions_b)
    if [_item(row) for row in a] != [_item(row) for row in b]:
        raise DataError(
            "the predictions are not for the same items",
            found=f"{len(a)} and {len(b)} items",
            expected="the same texts with the same gold labels in the same order",
            fix="evaluate both on the same rows",
        )
    counted = _tallies(a), _tallies(b)
    if counted[0] is not None and counted[1] is not None:
        return resampling.paired(counted[0], counted[1])
    right = [(x["gold"] == x["predicted"], y["gold"] == y["predicted"]) for x, y in zip(a, b, strict=True)]
    n, won, lost = len(right), right.count((True, False)), right.count((False, True))
    shares = [won / n, lost / n, (n - won - lost) / n]
    drawn = np.random.default_rng(resampling.SEED).multinomial(n, shares, resampling.RESAMPLES)
    return {
        "difference": 100 * (won - lost) / n,
        "interval": resampling.ends(100 * (drawn[:, 0] - drawn[:, 1]) / n),
        "p": mcnemar(won, lost),
    }


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of ``won`` against ``lost`` under a fair coin: min(1, 2·P(X ≤ min)), X ~ Bin(won + lost, ½)."""
    total = won + lost
    tail: int = sum(math.comb(total, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / (1 << total))


def evaluate_directory(
    *,
    base: str | None,
    adapter: str | Path | Sequence[str | Path] | None,
    test: str,
    language: str,
    output: str | Path,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evaluate an adapter directory, or a stack of them, on a file; base, task and prompt come from the (last) one's
    lineage.

    Without an adapter the bare ``base`` is prompted, and the labels are those of the file.
    Raises: AdapterFileError, DataError, ModelError; also when the lineage does not tell the task or the base.
    """
    from pydantic import TypeAdapter

    from adamergex.settings import Classification, EvaluateJob, Rows, Target

    rows = Rows(path=test, columns=dict(columns or {}))
    stack = [] if adapter is None else [Path(adapter)] if isinstance(adapter, str | Path) else [*map(Path, adapter)]
    for path in stack:
        if not path.is_dir():
            raise AdapterFileError("there is no such adapter directory", where=path, fix="check the path")
    found = lineage.read(stack[-1]) if stack else None
    known = None if found is None else found.base.get("name")
    if base is None and not known:
        raise ModelError("which base is meant is not known", where=stack[-1] if stack else None, fix="name it: --base")
    task: Target
    if found is not None and found.task and found.task.get("kind") != "language-modeling":
        task = TypeAdapter(Target).validate_python(found.task)
    elif not stack:
        labels = sorted({str(row["label"]) for row in data.read(rows, language) if "label" in row})
        task = Classification(labels=tuple(labels))
    else:
        raise ModelError(
            "the adapter was not trained for a task with labels",
            where=stack[-1] if stack else None,
            found=None if found is None or not found.task else found.task.get("kind"),
            expected="a lineage.json whose task is not language modelling",
            fix="evaluate a task adapter, or one merged from it",
        )
    job = EvaluateJob(base=base or str(known), task=task, language=language, rows=rows)
    return evaluate(job, stack or None, Path(output))


def write_predictions(path: Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in predictions)
    path.write_text("".join(lines), encoding="utf-8")


def _predictions(given: Predictions) -> list[Mapping[str, Any]]:
    if not isinstance(given, (str, Path)):
        return list(given)
    return list(read_predictions(given))


def _item(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["id"], row.get("text_sha256"), row["gold"]


def _tallies(predictions: Sequence[Mapping[str, Any]]) -> Any:
    """[items, 2], or None where items are right or wrong."""
    return np.asarray([item["tally"] for item in predictions]) if "tally" in predictions[0] else None


def _require_kind(job: EvaluateJob, loaded: Loaded, *, bare: bool) -> None:
    from adamergex.tasks import kinds

    kind = kinds.model_kind(job.task, job.base, bare=bare)
    if (loaded.base, loaded.kind) != (job.base, kind):
        raise ModelError(
            "the given backbone is not the one that the job needs",
            found=f"{loaded.base}, {loaded.kind}",
            expected=f"{job.base}, {kind}",
            fix="load it with adamergex.evaluation.load_for(job, bare=...)",
        )
