"""Keys, the store and the local engine: what is done is kept, what failed is named, nothing runs twice."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from adamergex.engines.local import StepsFailedError, needed, run
from adamergex.errors import DataError
from adamergex.graph import MANIFEST, Step, Store, canonical, in_order


def step(name: str, inputs: dict[str, Step] | None = None, **identity: object) -> Step:
    return Step("write", {"name": name, **identity}, {"name": name}, inputs or {}, label=name)


class Recorder:
    """An action that writes its name and its inputs' texts, counts its runs, and fails when told to."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.failing: set[str] = set()

    def __call__(self, job, inputs, output, workdir) -> None:  # type: ignore[no-untyped-def]
        self.runs[job["name"]] += 1
        output.mkdir()
        parts = [(inputs[role] / "text").read_text() for role in sorted(inputs)]
        (output / "text").write_text(f"{job['name']}({','.join(parts)})")
        if job["name"] in self.failing:
            raise DataError(f"{job['name']} broke")


def diamond() -> tuple[Step, Step, Step, Step]:
    root = step("root")
    left, right = step("left", {"a": root}), step("right", {"a": root})
    return root, left, right, step("top", {"a": left, "b": right})


def test_key_ignores_job_and_label_but_not_identity_or_inputs() -> None:
    root, left, *_ = diamond()
    assert replace(left, job={"name": "elsewhere"}, label="other").key == left.key
    assert replace(left, identity={"name": "left", "x": 1}).key != left.key
    assert replace(left, inputs={"a": step("other root")}).key != left.key
    assert replace(left, inputs={"b": root}).key != left.key


def test_canonical_json_is_sorted_and_refuses_nan() -> None:
    assert canonical({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    with pytest.raises(ValueError, match="Out of range float"):
        canonical({"a": float("nan")})


def test_inputs_come_first_and_once() -> None:
    root, left, right, top = diamond()
    assert [item.label for item in in_order([top, left])] == ["root", "left", "right", "top"]


def test_every_step_runs_once_and_never_again(tmp_path: Path) -> None:
    *_, top = diamond()
    store, action = Store(tmp_path), Recorder()
    run([top], store, {"write": action}, say=lambda line: None)
    assert (store.path(top) / "text").read_text() == "top(left(root()),right(root()))"
    assert action.runs == Counter(root=1, left=1, right=1, top=1)
    run([diamond()[-1]], Store(tmp_path), {"write": action}, say=lambda line: None)
    assert sum(action.runs.values()) == 4


def test_a_failure_stops_only_what_depends_on_it(tmp_path: Path) -> None:
    _, left, right, top = diamond()
    store, action = Store(tmp_path), Recorder()
    action.failing = {"left"}
    with pytest.raises(StepsFailedError, match=r"2 of 4 steps failed(.|\n)*write left; write top(.|\n)*left broke"):
        run([top], store, {"write": action}, say=lambda line: None)
    assert store.has(right) and not store.has(left) and not store.has(top)
    assert not list(tmp_path.rglob(".stage-*"))
    action.failing = set()
    run([top], store, {"write": action}, say=lambda line: None)
    assert action.runs == Counter(root=1, left=2, right=1, top=1)


def test_one_failed_step_raises_its_own_error(tmp_path: Path) -> None:
    action = Recorder()
    action.failing = {"root"}
    with pytest.raises(DataError, match="root broke"):
        run([step("root")], Store(tmp_path), {"write": action}, say=lambda line: None)


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    _, left, _, top = diamond()
    action = Recorder()
    run([top], Store(tmp_path), {"write": action}, say=lambda line: None)
    (Store(tmp_path).path(left) / "text").write_text("flipped")
    assert not Store(tmp_path).has(left)
    run([left], Store(tmp_path), {"write": action}, say=lambda line: None)
    assert action.runs["left"] == 2
    assert (Store(tmp_path).path(left) / "text").read_text() == "left(root())"


@pytest.mark.parametrize("content", ["", "{", '{"key": "other"}', "[]"])
def test_without_a_whole_manifest_there_is_no_result(tmp_path: Path, content: str) -> None:
    store, root = Store(tmp_path), step("root")
    run([root], store, {"write": Recorder()}, say=lambda line: None)
    (store.path(root) / MANIFEST).write_text(content)
    assert not Store(tmp_path).has(root)
    assert needed([root], Store(tmp_path)) == [root]


def test_the_manifest_names_every_file_and_input(tmp_path: Path) -> None:
    _, left, _, top = diamond()
    store = Store(tmp_path)
    run([top], store, {"write": Recorder()}, say=lambda line: None)
    manifest = json.loads((store.path(top) / MANIFEST).read_text())
    assert manifest["inputs"]["a"] == left.key
    assert set(manifest["files"]) == {"text"}
