"""λ from scores: the best of a curve or of the mean of several, or the smallest within one standard error of it.

The scores of the languages are averaged per λ, every language weighing the same. One standard error (Breiman et al.
1984, §3.4.3): the smallest |λ| whose mean is at least the best mean less its standard error over clusters of items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from adamergex import statistics
from adamergex.errors import ConfigError, DataError
from adamergex.files.inputs import Json
from adamergex.files.outputs import staged_directory
from adamergex.files.records import ANSWERS, TUNING, Point, Search, SearchAnswers, read_answers, read_search
from adamergex.statistics import Sample

_ALIKE = 1e-9  # points: means of the same scores, summed in another order


def best(curve: Sequence[Point]) -> float:
    """The λ of the highest score; of equal scores the smallest λ."""
    top = max(point.score for point in curve)
    return min(point.weight for point in curve if point.score >= top - _ALIKE)


def within(curve: Sequence[Point], error: float) -> float:
    """The smallest |λ| whose score is within ``error`` of the highest; of λ and −λ the one that scores higher."""
    top = max(point.score for point in curve)
    near = [point for point in curve if point.score >= top - error - _ALIKE]
    return min(near, key=lambda point: (abs(point.weight), -point.score, -point.weight)).weight


def choose(searches: Mapping[str, Path], *, one_standard_error: bool = False, output: Path | None = None) -> Search:
    """The λ of several searches with their answers (``tuning.tune``), by language; also written to
    ``output``/tuning.json. The curve holds means, ``best`` the λ of the highest, ``error`` its standard error.

    Raises: ConfigError: no searches, or not of the same λs and metric; DataError: they cannot be read.
    """
    if not searches:
        raise ConfigError("there is no search to choose from", where="searches", expected="one or more languages")
    found = {language: read_search(path) for language, path in searches.items()}
    grids = {tuple(point.weight for point in item.curve) for item in found.values()}
    metrics = {item.metric for item in found.values()}
    if len(grids) > 1 or len(metrics) > 1:
        raise ConfigError(
            "the searches are not of the same kind",
            where=", ".join(map(str, searches.values())),
            found=f"{len(grids)} grids, metrics {', '.join(sorted(metrics))}",
            expected="one grid and one metric",
            fix="search all languages with the same settings",
        )
    answers = {language: _samples(read_answers(path), found[language], path) for language, path in searches.items()}
    curve, samples = [], []
    for index, weight in enumerate(grids.pop()):
        samples.append([answers[language][index] for language in searches])
        score = fmean(item.curve[index].score for item in found.values())
        ends = [float(end) for end in statistics.pooled_interval([samples[-1]])]
        curve.append(Point(weight=weight, score=score, interval=ends))
    highest = best(curve)
    error = next(
        statistics.standard_error(own) for point, own in zip(curve, samples, strict=True) if point.weight == highest
    )
    search = Search(
        chosen=within(curve, error) if one_standard_error else highest,
        curve=curve,
        metric=metrics.pop(),
        n=sum(item.n for item in found.values()),
        languages=list(searches),
        best=highest,
        error=error,
    )
    return written(search, output)


def written(search: Search, output: Path | str | None, answers: dict[str, Json] | None = None) -> Search:
    """The search, as ``output``/tuning.json too where there is an output; ``answers`` beside it."""
    if output is not None:
        with staged_directory(output) as stage:
            (stage / TUNING).write_text(search.model_dump_json(exclude_unset=True, indent=2) + "\n", encoding="utf-8")
            if answers is not None:
                (stage / ANSWERS).write_text(json.dumps(answers) + "\n", encoding="utf-8")
    return search


def answers_of(points: Sequence[tuple[float, Sequence[Mapping[str, Json]]]]) -> dict[str, Json]:
    """What ``choose`` needs of the predictions at every λ: items, their groups, and what counts of each."""
    items = points[0][1] if points else ()
    return {
        "ids": [item.get("id", index) for index, item in enumerate(items)],
        "groups": [item.get("group", item.get("context_id")) for item in items],
        "points": [
            {
                "weight": weight,
                "tallies": [[h, o] for h, o in zip(sample.hits.tolist(), sample.totals.tolist(), strict=True)],
            }
            for weight, sample in ((weight, Sample.read(predictions)) for weight, predictions in points)
        ],
    }


def _samples(written: SearchAnswers, search: Search, where: Path) -> list[Sample]:
    """A sample per λ, in the curve's order. Raises: DataError: the answers are of other λs."""
    weights = [point.weight for point in written.points]
    if weights != [point.weight for point in search.curve]:
        raise DataError(
            "the answers of a search are not those of its curve",
            where=where / ANSWERS,
            found=f"λ of {len(weights)} points",
            expected=f"those of the {len(search.curve)} points of {TUNING}",
            fix="remove this directory and search again",
        )
    about = [
        {"id": name} | ({} if group is None else {"group": group})
        for name, group in zip(written.ids, written.groups, strict=True)
    ]
    return [
        Sample.read([{**item, "tally": tally} for item, tally in zip(about, point.tallies, strict=True)])
        for point in written.points
    ]
