"""Predictions for a labelled set, scores with intervals, and comparisons of two systems on the same set."""

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
from adamergex.files.records import PREDICTIONS, Scores, read_predictions, valid
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

    ``adapter``: a directory, or the directories of a stack from the base up, whose last one is the task adapter. None:
    the bare base with a prompt; an encoder fills the label words into a cloze.
    Raises: AdapterFileError, DataError, ModelError, ConfigError.
    """
    from adamergex.adapters import loaded_adapter
    from adamergex.backbones.loading import quiet
    from adamergex.tasks import measuring
    from adamergex.tasks import rows as task_rows

    if output is not None:
        require_free(output)  # fail early
    rows = task_rows.read(job.task, job.rows, job.language)
    with quiet():
        loaded = load_for(job, bare=adapter is None) if backbone is None else backbone
        _require_kind(job, loaded, bare=adapter is None)
        if adapter is None:
            answers = predict(job, loaded, loaded.model, rows)
        else:
            stack = [Path(path) for path in ((adapter,) if isinstance(adapter, (str, Path)) else adapter)]
            for path in stack:
                lineage.require_base(path, loaded.base, loaded.sha256)
            attached = loaded_adapter.load(loaded.model, stack, new_modules=loaded.new_modules)
            try:
                answers = predict(job, loaded, attached.model, rows)
            finally:
                attached.detach()
    all_scores = measuring.scores(job.task, answers.items, job.language)
    ignored = sum(int(str(row.get("ignored", 0))) for row in rows)
    fields = {"metric": job.task.metric, **score(answers.items)._asdict(), "scores": all_scores}
    fields |= {"truncated": answers.truncated, "unparsable": answers.unparsable, "ignored_entities": ignored}
    scores = valid(Scores, {**fields, "language": job.language}, f"the scores of {job.task.metric}, {job.language}")
    if output is not None:
        with staged_directory(output) as stage:
            write_predictions(stage / PREDICTIONS, answers.items)
            (stage / "scores.json").write_text(json.dumps(scores.document(), indent=2) + "\n", encoding="utf-8")
    return scores


def load_for(job: EvaluateJob, *, bare: bool) -> Loaded:
    """The backbone of an evaluation; ``bare``: without an adapter."""
    from adamergex.tasks import running

    return running.load_for(job.task, job.base, bare=bare)


def predict(job: EvaluateJob, loaded: Loaded, model: nn.Module, rows: Sequence[Row]) -> Answers:
    """One prediction per row, in order, the number of truncated inputs, and the number of unparsable answers.

    A prediction has id, SHA-256 of the item (16 digits), gold and predicted answer; log-probabilities of labels or
    choices, if any; and its ``tally`` for metrics other than plain accuracy (see ``tasks.measuring``).
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

    Items are right or wrong, or have a ``tally``; items of one ``group`` (a passage, a premise) form a cluster.
    Raises: DataError: no predictions, or they cannot be read.
    """
    items = sample(predictions)
    ends = [float(end) for end in statistics.interval(items)]
    return Score(100 * items.score, len(items.ids), ends)


class PairedDifference(TypedDict):
    """One system minus another, in percentage points, with the 95 % interval and a two-sided p."""

    difference: float
    interval: tuple[float, float]
    p: float


def paired_difference(predictions_a: Predictions, predictions_b: Predictions) -> PairedDifference:
    """Score of a minus score of b on the same items: percentage points, 95 % interval, two-sided p.

    p is exact for right or wrong answers (McNemar), else from a paired permutation test; items that share a passage or
    a premise are permuted as groups. The interval excludes 0 exactly if p < 0.05 (see ``statistics.comparisons``).
    Raises: DataError: the predictions are not for the same items.
    """
    a, b = _predictions(predictions_a), _predictions(predictions_b)
    if [_item(row) for row in a] != [_item(row) for row in b]:
        raise DataError(
            "the predictions are not for the same items",
            found=f"{len(a)} and {len(b)} items",
            expected="the same texts with the same gold labels in the same order",
            fix="evaluate both on the same rows",
        )
    comparison = statistics.compare([[sample(a)]], [[sample(b)]])
    low, high = comparison.interval()
    return {"difference": comparison.difference, "interval": (float(low), float(high)), "p": comparison.p}


def sample(predictions: Predictions) -> statistics.Sample:
    """The predictions as a sample for intervals and comparisons. Raises: DataError: none, or they cannot be read."""
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
    """Evaluate an adapter directory, or a stack of them, on a file; base, task and prompt come from the lineage of the
    (last) adapter.

    Without an adapter the bare ``base`` is prompted, and the labels are those of the file. ``task_file``: the ``.py``
    file with the score function of a custom task. No code of an adapter is run; a kind of task named in its lineage is
    looked up only in installed packages.
    Raises: AdapterFileError, DataError, ModelError; also if the lineage lacks the task or the base.
    """
    from adamergex.jobs.kinds import settings_of
    from adamergex.jobs.settings import Classification, EvaluateJob, Rows, UnlabelledTask

    path_part(language, what="the language", error=ConfigError, where="--language")
    rows = Rows(path=test, columns=dict(columns or {}))
    stack = [] if adapter is None else [Path(adapter)] if isinstance(adapter, str | Path) else [*map(Path, adapter)]
    for path in stack:
        if not path.is_dir():
            raise AdapterFileError("there is no adapter directory here", where=path, fix="check the path")
    record = lineage.read(stack[-1]) if stack else None
    known = None if record is None else record.base.get("name")
    if base is None and not known:
        raise ModelError("the base is not known", where=stack[-1] if stack else None, fix="name it: --base")
    task: Target
    kind = settings_of(record.task.get("kind")) if record is not None and record.task else None
    if record is not None and record.task and not (kind and issubclass(kind, UnlabelledTask)):
        task = _task(record.task, stack[-1], task_file)
    elif not stack:
        labels = sorted({str(row["label"]) for row in reader.read(rows, language) if "label" in row})
        task = Classification(labels=tuple(labels))
    else:
        raise ModelError(
            "the adapter was not trained for a task with labels",
            where=stack[-1] if stack else None,
            found=None if record is None or not record.task else record.task.get("kind"),
            expected="a lineage.json whose task is not language modelling",
            fix="evaluate a task adapter, or one merged from it",
        )
    job = EvaluateJob(base=base or str(known), task=task, language=language, rows=rows)
    return evaluate(job, stack or None, Path(output))


def _task(fields: Mapping[str, Json], adapter: Path, task_file: str | Path | None) -> Target:
    """The task of a lineage, scored by a built-in task or by the user's file.

    Raises: AdapterFileError: the task is invalid, or its score is a file that the user has not given.
    """
    from pydantic import TypeAdapter, ValidationError

    from adamergex.jobs.settings import Target
    from adamergex.tasks import catalogue

    wanted = fields.get("measured_as")
    if task_file is not None:
        catalogue.task_file(str(task_file))  # raises if missing or incomplete
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
    """Write predictions as JSON lines."""
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in predictions)
    path.write_text("".join(lines), encoding="utf-8")


def _predictions(source: Predictions) -> list[Mapping[str, object]]:
    return list(read_predictions(source) if isinstance(source, (str, Path)) else source)


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
