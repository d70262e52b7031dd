"""Keys, the store and the local engine: what is done is kept, what failed is named, nothing runs twice."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from adamergex.errors import DataError
from adamergex.graph.local import StepsFailedError, needed, run
from adamergex.graph.steps import MANIFEST, Step, Store, canonical, in_order
from adamergex.graph.versions import VERSIONS, version
from adamergex.tables.actions import ACTIONS


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


def test_every_kind_of_step_has_a_version_and_no_other_place_says_one() -> None:
    assert VERSIONS.keys() == ACTIONS.keys()
    assert all(isinstance(number, int) and number >= 1 for number in VERSIONS.values())
    assert version("write") == 1  # a kind of somebody's own


def test_a_new_version_of_a_kind_gives_new_keys_there_and_above_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def steps() -> dict[str, str]:
        rows = {"base": "b", "rows": "r"}
        trained = Step("train", rows, {}, label="task")
        merged = Step("merge", {"weight": 1}, {}, {"task": trained})
        bare, scored = Step("evaluate", rows, {}), Step("evaluate", rows, {}, {"adapter": merged})
        return {"train": trained.key, "merge": merged.key, "bare": bare.key, "scored": scored.key}

    for kind in ("train", "merge", "evaluate"):
        monkeypatch.setitem(VERSIONS, kind, 7)
    before = steps()
    assert before == steps()
    # Of one version a key never changes: results of other machines and of earlier days are found again.
    assert before["train"] == "9da7c0f38a3d812b4c48f37ada2121bbd6e198dc8ff3ee6830e3411bb645164e"
    assert before["scored"] == "736cacfd4a97c94ead2a4590c4d38bc11f4c102bf1040a58e7ffadb04211a83e"
    changed = {}
    for kind in ("train", "merge", "evaluate"):
        with monkeypatch.context() as patch:
            patch.setitem(VERSIONS, kind, 8)
            changed[kind] = {name for name, key in steps().items() if key != before[name]}
    assert changed == {
        "train": {"train", "merge", "scored"},
        "merge": {"merge", "scored"},
        "evaluate": {"bare", "scored"},
    }


def test_a_result_of_an_earlier_version_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    store, wanted = Store(tmp_path / "store"), [step("adapter")]
    run(wanted, store, {"write": recorder})
    manifest = json.loads((store.path(wanted[0]) / MANIFEST).read_text())
    assert manifest["version"] == 1
    run([step("adapter")], store, {"write": recorder})
    assert recorder.runs["adapter"] == 1
    monkeypatch.setitem(VERSIONS, "write", 2)
    assert not store.has(step("adapter"))
    run([step("adapter")], store, {"write": recorder})
    assert recorder.runs["adapter"] == 2 and store.path(step("adapter")) != store.path(wanted[0])


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
