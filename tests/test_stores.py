"""A store or a result that is damaged or forged: it is named or made again, and nothing outside is touched."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adamergex.cli.main import main
from adamergex.errors import DataError
from adamergex.files.records import predictions, read_merged, read_predictions, read_scores, read_search
from adamergex.graph import manifests
from adamergex.graph.inventory import collect_garbage, contents, describe, garbage, record, studies
from adamergex.graph.local import run
from adamergex.graph.manifests import Manifest, StoreError
from adamergex.graph.steps import MANIFEST, Step, Store
from adamergex.graph.worker import perform
from test_graph import Recorder, diamond, step

SCRIPTS = Path(__file__).parents[1] / "scripts" / "fuzz"


def silent(line: str) -> None:
    pass


def made(root: Path) -> tuple[Store, Step]:
    one = step("root")
    run([one], Store(root), {"write": Recorder()}, silent)
    return Store(root), one


def rewrite(entry: Path, **changes: Any) -> None:
    """Change a manifest and make its own hash right again, as a forger would; None takes a field away."""
    found = json.loads((entry / MANIFEST).read_text()) | changes
    found = {name: value for name, value in found.items() if value is not None and name != "sha256"}
    (entry / MANIFEST).write_text(json.dumps(found | {"sha256": manifests.digest(found)}))


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    store, one = made(tmp_path)
    path = store.path(one) / MANIFEST
    whole = path.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        assert not Store(tmp_path).has(one), (place, bytes(content[place - 20 : place + 20]))
    path.write_bytes(whole)
    assert Store(tmp_path).has(one)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text", b"rood()", "text does not have the hash"),
        ("text", None, "text is not there"),
        (MANIFEST, None, "does not exist"),
        (MANIFEST, b"\xff\xfe{}", "not valid JSON"),
        (MANIFEST, b"[" * 100_000, "not valid JSON"),
        (MANIFEST, b"{}", "no bytes, files"),
        (MANIFEST, b" " * (5 << 20), "too large"),
    ],
)
def test_what_is_damaged_is_named_and_made_again(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    store, one = made(tmp_path)
    (store.path(one) / name).unlink()
    if content is not None:
        (store.path(one) / name).write_bytes(content)
    again, said, action = Store(tmp_path), list[str](), Recorder()
    run([one], again, {"write": action}, said.append)
    assert action.runs["root"] == 1 and again.has(one) and not again.damaged
    assert said[0].startswith(f"{store.path(one)} is damaged, so it is made again") and reason in said[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../../victim": "0" * 64}}, {"files": {"/etc/passwd": "0" * 64}},
        {"files": {"a/../../b": "0" * 64}},
        {"files": {"a\\b": "0" * 64}}, {"files": {"a\0": "0" * 64}}, {"files": {"": "0" * 64}}, {"files": ["text"]},
        {"files": {"text": 5}}, {"files": None}, {"key": "../x"}, {"key": 5}, {"kind": "../write"}, {"kind": ["write"]},
        {"version": "1"},
        {"label": 5}, {"label": "x" * 2000}, {"identity": []}, {"inputs": {"a": "b"}}, {"bytes": -1}, {"bytes": 10**30},
        {"bytes": True}, {"seconds": "x"}, {"seconds": 1e300}, {"seconds": None}, {"finished": "yesterday"},
        {"finished": "2024-01-01T00:00:00"}, {"finished": "0001-01-01T00:00:00+14:00"}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_forged_manifest_is_no_result(tmp_path: Path, changes: dict[str, Any]) -> None:
    store, one = made(tmp_path / "store")
    rewrite(store.path(one))
    assert Store(store.root).has(one)  # the forger's hash is right
    rewrite(store.path(one), **changes)
    with pytest.raises(StoreError):
        manifests.read(store.path(one))
    assert not Store(store.root).has(one)
    found = contents(store)
    assert found.entries == () and found.damaged[0][0] == store.path(one)
    record(store, "A study", tmp_path, [one])
    assert garbage(store).leftovers == ()  # the study needs it, so the next run makes it again
    record(store, "A study", tmp_path, [])
    assert garbage(store).leftovers == (store.path(one),)


@pytest.mark.parametrize("part", ["file", "entry", "kind", "partial"])
def test_links_lead_nowhere(tmp_path: Path, part: str) -> None:
    """A store that came in an archive may hold links: nothing is read, written or removed through them."""
    store, one = made(tmp_path / "store")
    victim = tmp_path / "victim"
    victim.mkdir()
    for path in store.path(one).iterdir():
        (victim / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in victim.iterdir()}
    if part == "file":
        (store.path(one) / "text").unlink()
        (store.path(one) / "text").symlink_to(victim / "text")
    else:
        place = {"entry": store.path(one), "kind": store.path(one).parent, "partial": store.root / "partial"}[part]
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        place.rmdir()
        place.symlink_to(victim)
    if part in ("kind", "partial"):
        with pytest.raises(StoreError, match="a folder of the store is a link"):
            Store(store.root)
        return
    again, action = Store(store.root), Recorder()
    assert not again.has(one) and "link" in again.damaged[one.key]
    record(again, "A study", tmp_path, [])
    if part == "entry":
        assert [path for path, _ in contents(again).damaged] == [again.path(one)]
        collect_garbage(again, garbage(again))
        assert not os.path.lexists(again.path(one))
    run([one], again, {"write": action}, silent)
    assert action.runs["root"] == 1 and not again.path(one).is_symlink()
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == before


def test_an_input_is_verified_where_it_is_used(tmp_path: Path) -> None:
    root, left, *_ = diamond()
    run([root], Store(tmp_path), {"write": Recorder()}, silent)
    (Store(tmp_path).path(root) / "text").write_text("flipped")
    with pytest.raises(StoreError, match=r"an input of the step is not whole(.|\n)*text does not have the hash"):
        perform(left, Store(tmp_path), {"write": Recorder()})  # as a worker does it, with a store of its own


def test_what_a_killed_run_staged_for_a_step_goes_with_the_next(tmp_path: Path) -> None:
    store, one = made(tmp_path)
    left = store.path(one).parent / f".stage-{one.key[:20]}-left"
    other = store.path(one).parent / ".stage-00000000000000000000-other"
    left.mkdir()
    other.mkdir()
    store.forget(one)
    run([one], store, {"write": Recorder()}, silent)
    assert not left.exists() and other.exists()


@pytest.mark.parametrize(
    "content", ["[]", "{}", "{", '{"title": 5}', '{"title": "a", "output": "b", "written": "c", "keys": ["x"]}']
)
def test_a_damaged_note_is_named_and_blocks_gc_alone(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, one = made(tmp_path)
    record(store, "Mine", tmp_path / "mine", [one])
    other = store.root / "studies" / "other.json"
    other.write_text(content)
    assert main(["runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "write     root" in text and "Mine" in text and "damaged: studies/other.json (" in text
    assert main(["gc", str(tmp_path), "--yes"]) == 2
    assert "other.json" in capsys.readouterr().err and store.path(one).exists()
    own = next(path for path in (store.root / "studies").glob("mine-*.json"))
    own.write_text(content)
    record(store, "Mine", tmp_path / "mine", [one])  # a run writes its own note anew, whatever the others are
    other.unlink()
    assert [note.title for note in studies(store)] == ["Mine"]


def test_a_listing_moves_no_terminal(tmp_path: Path) -> None:
    store = Store(tmp_path)
    odd = replace(step("root"), label="a\x1b[2Jb\nwrite fake\x9b\u202e")
    run([odd], store, {"write": Recorder()}, silent)
    record(store, "t\x1b]0;title\x07", tmp_path, [odd])
    text = describe(contents(store), store.root)
    assert "a\\x1b[2Jb\\nwrite fake\\x9b\\u202e" in text and "t\\x1b]0;title\\x07" in text
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e"} and len(text.splitlines()) == 3


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    odd = {"text": "é\u2028", "numbers": [1, 2.5, 1e-300], "nested": {"b": None, "a": [True]}}
    written = Manifest(
        "0" * 64, "train", 1, "ä", odd, {"a": "1" * 64}, {"logs/x": "2" * 64}, 5, 1.25, "2026-01-01T00:00:00+00:00"
    )
    (tmp_path / MANIFEST).write_text(written.to_json(), encoding="utf-8")
    assert manifests.read(tmp_path) == written


# --- what steps leave for others to read

SCORES = {
    "metric": "f1", "f1": 50.0, "n": 2, "interval": [1.0, 2], "scores": {"f1": 50.0}, "truncated": 0, "unparsable": 0,
}  # fmt: skip
SEARCH = {"chosen": 0.5, "curve": [{"weight": 0.5, "score": 3, "interval": [1, 2]}], "metric": "accuracy"}
MERGED = {"weight": 1, "modules": [{"module": "q", "merged": True, "task": 1.0, "divergence": 0.0, "change": 0}]}
NO_SCORES = [{"n": 0}, {"n": True}, {"metric": "x"}, {"f1": "5"}, {"interval": [1]}, {"n": 2.0}]
NO_SEARCH = [{"chosen": None}, {"chosen": 1e99}, {"curve": {}}, {"curve": [{}]}, {"layers": [""]}]
NO_MERGED = [{"weight": "1"}, {"modules": {}}, {"modules": [{}]}, {"modules": [5]}]
READERS: list[tuple[Callable[[Path], Any], str, dict[str, Any], list[dict[str, Any]]]] = [
    (read_scores, "scores.json", SCORES, NO_SCORES),
    (read_search, "tuning.json", SEARCH, NO_SEARCH),
    (read_merged, "merge_report.json", MERGED, NO_MERGED),
]


@pytest.mark.parametrize(("reader", "name", "right", "wrong"), READERS, ids=["scores", "search", "merged"])
def test_records_are_typed(
    tmp_path: Path, reader: Callable[[Path], Any], name: str, right: dict[str, Any], wrong: list[dict[str, Any]]
) -> None:
    (tmp_path / name).write_text(json.dumps(right))
    reader(tmp_path)
    for change in [*wrong, *({key: "\0"} for key in right if key != "metric")]:
        (tmp_path / name).write_text(json.dumps(right | change))
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            reader(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="a pipe"):
        reader(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": 1, "gold": "a", "predicted": "b"}', "5"], "line 2"),
        (['{"id": 1, "gold": "a"}'], "predicted"),
        (['{"id": null, "gold": "a", "predicted": "b"}'], "id"),
        (['{"id": 1, "gold": 1, "predicted": 1, "tally": [1]}'], "tally"),
        (
            ['{"id": 1, "gold": 1, "predicted": 1, "tally": [1, 1]}', '{"id": 2, "gold": 1, "predicted": 1}'],
            "and others do not",
        ),
        (["[" * 5000], "nested"),
        ([""], "line 1"),
        (['"' + "a" * (5 << 20) + '"'], "longer"),
        ([], "no row"),
    ],
)
def test_predictions_are_typed_row_by_row(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(DataError, match=message):
        read_predictions(path)


def test_predictions_are_read_only_as_far_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": 1, "gold": "a", "predicted": "b"}\nbroken\n')
    assert next(predictions(path))["id"] == 1


# --- the fuzzer's short form


def test_a_hundred_and_fifty_mutants(tiny_encoder: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fuzz_stores", SCRIPTS / "stores.py")
    assert spec is not None and spec.loader is not None
    stores = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_stores"] = stores
    spec.loader.exec_module(stores)
    world = stores.World(tmp_path / "world", str(tiny_encoder))
    assert stores.fuzz(world, range(150)) == []
