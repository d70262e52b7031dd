"""λ from scores: the best of a curve or of the mean of several, or the smallest within one standard error of it.

The scores of the languages are averaged per λ, every language weighing the same. One standard error (Breiman et al.
1984, §3.4.3): the smallest |λ| whose mean is at least the best mean less its standard error over clusters of items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from adamergex import statistics
from adamergex.checkpoint import staged_directory
from adamergex.errors import ConfigError, DataError
from adamergex.statistics import Sample

FILE_NAME, ANSWERS = "tuning.json", "answers.json"
_ALIKE = 1e-9  # points: means of the same scores, summed in another order


def best(curve: Sequence[Mapping[str, Any]]) -> float:
    """The λ of the highest score; of equal scores the smallest λ."""
    top = max(point["score"] for point in curve)
    return float(min(point["weight"] for point in curve if point["score"] >= top - _ALIKE))


def within(curve: Sequence[Mapping[str, Any]], error: float) -> float:
    """The smallest |λ| whose score is within ``error`` of the highest; of λ and −λ the one that scores higher."""
    top = max(point["score"] for point in curve)
    near = [point for point in curve if point["score"] >= top - error - _ALIKE]
    return float(min(near, key=lambda point: (abs(point["weight"]), -point["score"], -point["weight"]))["weight"])


def choose(
    searches: Mapping[str, Path], *, one_standard_error: bool = False, output: Path | None = None
) -> dict[str, Any]:
    """The λ of several searches with their answers (``tuning.tune``), by language.

    Returns, and writes to ``output``/tuning.json, ``{"chosen": λ, "best": λ of the highest mean, "error": its standard
    error, "curve": [{"weight", "score", "interval"}, …] of means, "languages", "metric", "n"}``.
    Raises: ConfigError: no searches, or not of the same λs and metric; DataError: they cannot be read.
    """
    if not searches:
        raise ConfigError("there is no search to choose from", where="searches", expected="one or more languages")
    found = {language: _read(path / FILE_NAME) for language, path in searches.items()}
    grids = {tuple(point["weight"] for point in item["curve"]) for item in found.values()}
    metrics = {str(item["metric"]) for item in found.values()}
    if len(grids) > 1 or len(metrics) > 1:
        raise ConfigError(
            "the searches are not of the same kind",
            where=", ".join(map(str, searches.values())),
            found=f"{len(grids)} grids, metrics {', '.join(sorted(metrics))}",
            expected="one grid and one metric",
            fix="search all languages with the same settings",
        )
    answers = {language: _answers(path / ANSWERS) for language, path in searches.items()}
    curve, errors = [], {}
    for index, weight in enumerate(grids.pop()):
        samples = [answers[language][index] for language in searches]
        score = fmean(item["curve"][index]["score"] for item in found.values())
        ends = [float(end) for end in statistics.pooled_interval([samples])]
        curve.append({"weight": weight, "score": score, "interval": ends})
        errors[weight] = samples
    highest = best(curve)
    error = statistics.standard_error(errors[highest])
    result = {
        "chosen": within(curve, error) if one_standard_error else highest,
        "best": highest,
        "error": error,
        "curve": curve,
        "languages": list(searches),
        "metric": metrics.pop(),
        "n": sum(int(item["n"]) for item in found.values()),
    }
    if output is not None:
        with staged_directory(output) as stage:
            (stage / FILE_NAME).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def answers_of(points: Sequence[tuple[float, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """What ``choose`` needs of the predictions at every λ: items, their groups, and what counts of each."""
    items = points[0][1] if points else ()
    return {
        "ids": [item.get("id", index) for index, item in enumerate(items)],
        "groups": [item.get("group", item.get("context_id")) for item in items],
        "points": [
            {
                "weight": weight,
                "tallies": [[h, o] for h, o in zip(sample.hits.tolist(), sample.of.tolist(), strict=True)],
            }
            for weight, sample in ((weight, Sample.read(predictions)) for weight, predictions in points)
        ],
    }


def _answers(path: Path) -> list[Sample]:
    """A sample per λ, in the curve's order."""
    written = _read(path)
    about = [
        {"id": name} | ({} if group is None else {"group": group})
        for name, group in zip(written["ids"], written["groups"], strict=True)
    ]
    return [
        Sample.read([{**item, "tally": tally} for item, tally in zip(about, point["tallies"], strict=True)])
        for point in written["points"]
    ]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("a search of λ cannot be read", where=path, found=error, fix="search again") from error
