"""Predictions for every item of a labelled set, and scores with intervals; comparisons of two systems on one set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from adamergex import statistics
from adamergex.data import reader
from adamergex.data.values import Row
from adamergex.errors import AdapterFileError, ConfigError, DataError, ModelError
from adamergex.files import lineage, lineage_fields
from adamergex.files.inputs import Json
from adamergex.files.names import path_part
from adamergex.files.outputs import require_free, staged_directory
from adamergex.files.records import PREDICTIONS, Scores, read_predictions
from adamergex.statistics import mcnemar as mcnemar

if TYPE_CHECKING:
    from torch import nn

    from adamergex.backbones.loading import Loaded
    from adamergex.jobs.settings import EvaluateJob, Target
    from adamergex.tasks.task_kind import Answers


def evaluate(
    job: EvaluateJob,
    adapter: Path | Sequence[Path] | None,
    output: Path | None = None,
    *,
    backbone: Loaded | None = None,
) -> Scores:
    """Predict and score one labelled set; write predictions.jsonl and scores.json into ``output``.

    ``adapter``: a directory, or those of a stack, the first lowest, whose last one has the task: its head (encoders)
    or the answer after the prompt. None: the bare base, prompted; an encoder fills the label words into a cloze.
    Raises: AdapterFileError, DataError, ModelError, ConfigError.
    """
    from adamergex.adapters import loaded_adapter
    from adamergex.backbones.loading import quiet
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
            placed = loaded_adapter.load(loaded.model, stack, new_modules=loaded.new_modules)
            try:
                found = predict(job, loaded, placed.model, rows)
            finally:
                placed.detach()
    every = measuring.scores(job.task, found.items, job.language)
    ignored = sum(int(str(row.get("ignored", 0))) for row in rows)
    scores = Scores(
        metric=job.task.metric,
        **score(found.items)._asdict(),
        scores=every,
        truncated=found.truncated,
        unparsable=found.unparsable,
        ignored_entities=ignored,
        language=job.language,
    )
    if output is not None:
        with staged_directory(output) as stage:
            write_predictions(stage / PREDICTIONS, found.items)
            (stage / "scores.json").write_text(json.dumps(scores.document(), indent=2) + "\n", encoding="utf-8")
    return scores


def load_for(job: EvaluateJob, *, bare: bool) -> Loaded:
    """The backbone that an evaluation needs: ``bare`` without an adapter."""
    from adamergex.tasks import running

    return running.load_for(job.task, job.base, bare=bare)


def predict(job: EvaluateJob, loaded: Loaded, model: nn.Module, rows: Sequence[Row]) -> Answers:
    """A prediction for every row, in order, how many inputs were cut, and how many answers could not be read.

    Each holds id, SHA-256 of the item (16 digits), gold and predicted answer; a score (natural logarithm) a label or
    choice where there are some; and its ``tally`` in metrics that are not right or wrong (see ``tasks.measuring``).
    """
    from adamergex.tasks import running
    from adamergex.tasks.rows import source

    model.eval()
    where = source(job.rows, job.language)
    return running.predict(job.task, rows, loaded, model, job.language, job.batch_tokens, where)


Predictions = Sequence[Mapping[str, object]] | Path | str


class Score(NamedTuple):
    """A metric in percent over ``n`` items, with its 95 % interval."""

    score: float
    n: int
    interval: list[float]


def score(predictions: Predictions) -> Score:
    """The score of predictions, and its 95 % interval (see ``statistics.intervals``).

    Items are right or wrong, or have a ``tally``; those of one ``group`` (a passage, a premise) count as a cluster.
    Raises: DataError: no predictions, or they cannot be read.
    """
    found = sample(predictions)
    ends = [float(end) for end in statistics.interval(found)]
    return Score(100 * found.score, len(found.ids), ends)


class Difference(TypedDict):
    """One system minus another, in percentage points, with the 95 % interval and a two-sided p."""

    difference: float
    interval: tuple[float, float]
    p: float


def paired_difference(predictions_a: Predictions, predictions_b: Predictions) -> Difference:
    """Score of a minus score of b on the same items: percentage points, 95 % interval, two-sided p.

    p is exact for right or wrong answers (McNemar) and a paired permutation test for others, of the groups where items
    share a passage or a premise; the interval leaves out 0 exactly where p < 0.05 (see ``statistics.comparisons``).
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
    found = statistics.compare([[sample(a)]], [[sample(b)]])
    low, high = found.interval()
    return {"difference": found.difference, "interval": (float(low), float(high)), "p": found.p}


def sample(predictions: Predictions) -> statistics.Sample:
    """The predictions as numbers for intervals and comparisons. Raises: DataError: none, or they cannot be read."""
    items = _predictions(predictions)
    if not items:
        raise DataError("there are no predictions", expected="at least one item", fix="evaluate on some rows")
    return statistics.Sample.read(items)


def evaluate_directory(
    *,
    base: str | None,
    adapter: str | Path | Sequence[str | Path] | None,
    test: str,
    language: str,
    output: str | Path,
    columns: Mapping[str, str] | None = None,
    task_file: str | Path | None = None,
) -> Scores:
    """Evaluate an adapter directory, or a stack of them, on a file; base, task and prompt come from the (last) one's
    lineage.

    Without an adapter the bare ``base`` is prompted, and the labels are those of the file. ``task_file``: the ``.py``
    file whose score measures the answers of a task of your own; nothing that an adapter brings is run, and a kind of
    task that its lineage names is looked up among installed packages alone.
    Raises: AdapterFileError, DataError, ModelError; also when the lineage does not tell the task or the base.
    """
    from adamergex.jobs.kinds import settings_of
    from adamergex.jobs.settings import Classification, EvaluateJob, Rows, UnlabelledTask

    path_part(language, what="the language", error=ConfigError, where="--language")
    rows = Rows(path=test, columns=dict(columns or {}))
    stack = [] if adapter is None else [Path(adapter)] if isinstance(adapter, str | Path) else [*map(Path, adapter)]
    for path in stack:
        if not path.is_dir():
            raise AdapterFileError("there is no adapter directory here", where=path, fix="check the path")
    found = lineage.read(stack[-1]) if stack else None
    known = None if found is None else found.base.get("name")
    if base is None and not known:
        raise ModelError("the base is not known", where=stack[-1] if stack else None, fix="name it: --base")
    task: Target
    kind = settings_of(found.task.get("kind")) if found is not None and found.task else None
    if found is not None and found.task and not (kind and issubclass(kind, UnlabelledTask)):
        task = _task(found.task, stack[-1], task_file)
    elif not stack:
        labels = sorted({str(row["label"]) for row in reader.read(rows, language) if "label" in row})
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


def _task(fields: Mapping[str, Json], adapter: Path, task_file: str | Path | None) -> Target:
    """The task of a lineage, scored by a shipped task or by the user's file.

    Raises: AdapterFileError for a task that is none, or whose score is a file that the user has not given.
    """
    from pydantic import TypeAdapter, ValidationError

    from adamergex.jobs.settings import Target
    from adamergex.tasks import catalogue

    wanted = fields.get("measured_as")
    if task_file is not None:
        catalogue.task_file(str(task_file))  # there, and complete
        fields = {**fields, "measured_as": str(task_file)}
        wanted = None if wanted in (None, catalogue.identity(str(task_file))) else wanted
    if wanted and lineage_fields.CUSTOM_TASK.fullmatch(str(wanted)):
        raise AdapterFileError(
            "the adapter's task is measured by a file of its author's; nothing that an adapter names is run",
            where=adapter / lineage.FILE_NAME,
            found=f"measured_as {wanted}" + (f", and {task_file} is another file" if task_file else ""),
            expected="your own copy of that file",
            fix="name it: --task-file FILE.py (task_file=...)",
        )
    try:
        task: Target = TypeAdapter(Target).validate_python(fields)
    except ValidationError as problem:
        wrong = problem.errors()[0]
        raise AdapterFileError(
            "the lineage's task is not one that can be evaluated",
            where=f"{adapter / lineage.FILE_NAME}: task.{wrong['loc'][-1] if wrong['loc'] else 'kind'}",
            found=repr(wrong["input"]),
            expected=wrong["msg"],
            fix="restore the file; an adapter that was trained here has it right",
        ) from None
    return task


def write_predictions(path: Path, predictions: Sequence[Mapping[str, object]]) -> None:
    """One JSON object a line."""
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in predictions)
    path.write_text("".join(lines), encoding="utf-8")


def _predictions(given: Predictions) -> list[Mapping[str, object]]:
    if not isinstance(given, (str, Path)):
        return list(given)
    return list(read_predictions(given))


def _item(row: Mapping[str, object]) -> tuple[object, ...]:
    return row["id"], row.get("text_sha256"), row["gold"]


def _require_kind(job: EvaluateJob, loaded: Loaded, *, bare: bool) -> None:
    from adamergex.tasks import running

    kind = running.model_kind(job.task, job.base, bare=bare)
    if (loaded.base, loaded.kind) != (job.base, kind):
        raise ModelError(
            "the given backbone is not the one that the job needs",
            found=f"{loaded.base}, {loaded.kind}",
            expected=f"{job.base}, {kind}",
            fix="load it with adamergex.evaluation.load_for(job, bare=...)",
        )
