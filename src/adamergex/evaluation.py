"""Predictions for every item of a labelled set, and scores with intervals; comparisons of two systems on one set."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adamergex import data, lineage
from adamergex.checkpoint import staged_directory
from adamergex.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from adamergex.models import Loaded
    from adamergex.settings import EvaluateJob

RESAMPLES = 10_000
_SEED = 20240229  # of every bootstrap: the same predictions always have the same interval


def evaluate(
    job: EvaluateJob,
    adapter: Path | Sequence[Path] | None,
    output: Path | None = None,
    *,
    backbone: Loaded | None = None,
) -> dict[str, Any]:
    """Predict and score one labelled set; write predictions.jsonl and scores.json into ``output``.

    ``adapter``: a directory, or those of a stack, the first lowest, whose last one has the task: its head (encoders)
    or the label words after the prompt (decoders). None: the bare base, prompted; an encoder fills the label words
    into a cloze. Returns ``{"accuracy", "n", "interval", "truncated"}``: percent correct, items, its 95 % bootstrap
    interval, texts that were cut.
    Raises: AdapterFileError, DataError, ModelError, ConfigError.
    """
    from adamergex.adapters import resident
    from adamergex.models import quiet

    rows = data.read(job.rows, job.language)
    with quiet():
        loaded = load_for(job, bare=adapter is None) if backbone is None else backbone
        _require_kind(job, loaded, bare=adapter is None)
        if adapter is None:
            predictions, truncated = predict(job, loaded, loaded.model, rows)
        else:
            stack = [Path(path) for path in ((adapter,) if isinstance(adapter, (str, Path)) else adapter)]
            for path in stack:
                lineage.require_base(path, loaded.base, loaded.sha256)
            placed = resident.load(loaded.model, stack, fresh=loaded.fresh)
            try:
                predictions, truncated = predict(job, loaded, placed.model, rows)
            finally:
                placed.detach()
    scores = {**score(predictions), "truncated": truncated}
    if output is not None:
        with staged_directory(output) as stage:
            write_predictions(stage / "predictions.jsonl", predictions)
            text = json.dumps(scores | {"language": job.language}, indent=2) + "\n"
            (stage / "scores.json").write_text(text, encoding="utf-8")
    return scores


def load_for(job: EvaluateJob, *, bare: bool) -> Loaded:
    """The backbone that an evaluation needs: ``bare`` without an adapter."""
    from adamergex.models import kind_for, load

    kind = kind_for(job.base, labelled=True)
    if kind == "sequence-classification" and bare:
        kind = "masked-lm"
    return load(job.base, kind, job.task.labels if kind == "sequence-classification" else None)


def predict(
    job: EvaluateJob, loaded: Loaded, model: nn.Module, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    """A prediction for every row, in order, and how many texts were cut.

    Each holds id, SHA-256 of the text (16 digits), gold and predicted label, and a score (natural logarithm) a label;
    of equal scores the label that the task names first wins.
    """
    from adamergex.adapters.peft_backed import virtual_tokens
    from adamergex.models import longest_input
    from adamergex.tasks import scoring
    from adamergex.tasks.classification import head_examples, label_indices

    model.eval()
    where = data.source(job.rows, job.language)
    longest = longest_input(loaded.model, loaded.tokenizer) - virtual_tokens(model)
    gold = label_indices(rows, job.task, where)
    if loaded.kind == "sequence-classification":
        examples = head_examples(rows, loaded.tokenizer, job.task, longest=longest, where=where)
        scores, truncated = scoring.head_scores(model, examples, job.batch_tokens), examples.truncated
    else:
        choose = scoring.cloze_scores if loaded.kind == "masked-lm" else scoring.word_scores
        texts = [str(row["text"]) for row in rows]
        scores, truncated = choose(
            model, texts, loaded.tokenizer, job.task, longest=longest, batch_tokens=job.batch_tokens
        )
    labels = job.task.labels
    predictions = [
        {
            "id": row.get("id", index),
            "text_sha256": hashlib.sha256(str(row["text"]).encode()).hexdigest()[:16],
            "gold": labels[gold[index]],
            "predicted": labels[int(scores[index].argmax())],
            "scores": {label: float(value) for label, value in zip(labels, scores[index], strict=True)},
        }
        for index, row in enumerate(rows)
    ]
    return predictions, truncated


def score(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy in percent, number of items, and the 95 % bootstrap interval (10,000 resamples, fixed seed).

    The share of correct items in a resample of n is exactly Binomial(n, accuracy) / n, so that is what is drawn.
    """
    n, correct = len(predictions), sum(item["gold"] == item["predicted"] for item in predictions)
    drawn = np.random.default_rng(_SEED).binomial(n, correct / n, RESAMPLES) / n
    return {"accuracy": 100 * correct / n, "n": n, "interval": _interval(drawn)}


Predictions = Sequence[Mapping[str, Any]] | Path | str


def paired_difference(predictions_a: Predictions, predictions_b: Predictions) -> dict[str, Any]:
    """Accuracy of a minus accuracy of b on the same items: percentage points, 95 % interval, McNemar's exact p.

    Items are resampled in pairs. p is two-sided: of the items that one alone has right, is one side's share beyond
    chance? Raises: DataError when the two are not predictions for the same items.
    """
    a, b = _predictions(predictions_a), _predictions(predictions_b)
    if [_item(row) for row in a] != [_item(row) for row in b]:
        raise DataError(
            "the predictions are not for the same items",
            found=f"{len(a)} and {len(b)} items",
            expected="the same texts with the same gold labels in the same order",
            fix="evaluate both on the same rows",
        )
    right = [(x["gold"] == x["predicted"], y["gold"] == y["predicted"]) for x, y in zip(a, b, strict=True)]
    n, won, lost = len(right), right.count((True, False)), right.count((False, True))
    drawn = np.random.default_rng(_SEED).multinomial(n, [won / n, lost / n, (n - won - lost) / n], RESAMPLES)
    return {
        "difference": 100 * (won - lost) / n,
        "interval": _interval((drawn[:, 0] - drawn[:, 1]) / n),
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
    """Evaluate an adapter directory, or a stack of them, on a file; base, labels and prompt come from the (last) one's
    lineage.

    Without an adapter the bare ``base`` is prompted, and the labels are those of the file.
    Raises: DataError, ModelError; also when the lineage does not tell the task or the base.
    """
    from adamergex.settings import Classification, EvaluateJob, Rows

    rows = Rows(path=test, columns=dict(columns or {}))
    stack = [] if adapter is None else [Path(adapter)] if isinstance(adapter, str | Path) else [*map(Path, adapter)]
    found = lineage.read(stack[-1]) if stack else None
    known = None if found is None else found.base.get("name")
    if base is None and not known:
        raise ModelError("which base is meant is not known", where=stack[-1] if stack else None, fix="name it: --base")
    if found is not None and found.task and found.task.get("kind") == "classification":
        task = Classification.model_validate(found.task)
    elif not stack:
        labels = sorted({str(row["label"]) for row in data.read(rows, language) if "label" in row})
        task = Classification(labels=tuple(labels))
    else:
        raise ModelError(
            "the adapter was not trained for a task with labels",
            where=stack[-1] if stack else None,
            found=None if found is None or not found.task else found.task.get("kind"),
            expected="a lineage.json whose task is a classification",
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
    try:
        with Path(given).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError("the predictions cannot be read", where=given, found=error, fix="evaluate again") from error


def _item(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["id"], row.get("text_sha256"), row["gold"]


def _interval(drawn: Any) -> list[float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [100 * float(low), 100 * float(high)]


def _require_kind(job: EvaluateJob, loaded: Loaded, *, bare: bool) -> None:
    from adamergex.models import kind_for

    kind = kind_for(job.base, labelled=True)
    kind = "masked-lm" if kind == "sequence-classification" and bare else kind
    if (loaded.base, loaded.kind) != (job.base, kind):
        raise ModelError(
            "the given backbone is not the one that the job needs",
            found=f"{loaded.base}, {loaded.kind}",
            expected=f"{job.base}, {kind}",
            fix="load it with adamergex.evaluation.load_for(job, bare=...)",
        )
