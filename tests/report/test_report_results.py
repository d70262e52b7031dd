"""results.json: read, checked, written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamergex.errors import DataError
from adamergex.report import load, parse, save

Sample = Callable[..., dict[str, Any]]


def test_json_survives_a_round_trip(sample: Sample, tmp_path: Path) -> None:
    data = sample(seeds=(0, 1))
    path = save(parse(data), tmp_path / "deep" / "results.json")
    first = path.read_bytes()
    assert json.loads(first) == data
    assert save(load(path), path).read_bytes() == first


def test_optional_parts_may_be_left_out(sample: Sample) -> None:
    data = sample()
    for key in ("proxy", "tuning", "weights", "adapters", "merges", "environment", "commands", "notes"):
        del data[key]
    for cell in data["cells"]:
        for key in ("truncated", "weight", "adapter", "against", "predictions"):
            del cell[key]
    results = parse(data)
    assert results.proxy is None and results.tuning == () and results.cells[0].truncated == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("base"), r"base: Field required"),
        (lambda d: d.update(languages=[]), r"languages: Unexpected keyword argument"),
        (lambda d: d["cells"][3].update(acuracy=1.0), r"cells\.3\.acuracy: Unexpected keyword argument"),
        (lambda d: d["cells"][3].update(score="high"), r"cells\.3\.score: Input should be a valid number"),
        (lambda d: d["cells"][3].update(score=float("nan")), r"cells\.3\.score: Input should be a finite number"),
        (lambda d: d["cells"][0].update(method="magic"), r"methods: 'magic' has results and is not listed"),
        (lambda d: d["cells"].append(d["cells"][0]), r"cells: \('vanilla', 'es', 0\) is there 2 times"),
        (lambda d: d["methods"].append(d["methods"][0]), r"methods: 'vanilla' is listed 2 times"),
        (lambda d: d["cells"][0].update(interval=[9.0, 1.0]), r"vanilla, es, seed 0: interval \[9.0, 1.0\] is upside"),
    ],
)
def test_what_does_not_fit_is_refused(sample: Sample, change: Callable[[Any], Any], message: str) -> None:
    data = sample()
    change(data)
    with pytest.raises(DataError, match=message):
        parse(data)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"title": ')
    (tmp_path / "list.json").write_text("[]")
    for name, found in (("none.json", "nothing"), ("half.json", "Expecting value"), ("list.json", "list")):
        with pytest.raises(DataError, match=rf"(?s)the file of results .*{name}.*{found}"):
            load(tmp_path / name)
