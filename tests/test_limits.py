"""Whole commands where the disk has no more room, or a bit of the store is wrong: one message, the old or the new."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from commands import command, start
from test_pipeline import settings

Files = dict[str, bytes]


def files(root: Path) -> Files:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished transfer, and its settings beside it."""
    folder = tmp_path_factory.mktemp("finished")
    wanted = settings(tiny_encoder, small_data, folder / "run", methods=["english_tuning", "adamergex"], targets=["sw"])
    (folder / "topics.yaml").write_text(yaml.safe_dump(wanted), encoding="utf-8")
    done = command("transfer", folder / "topics.yaml")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("largest", [2000, 20_000])
def test_a_transfer_without_room_keeps_what_was_there(
    largest: int, tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = settings(tiny_encoder, small_data, tmp_path / "run", methods=["english_tuning"], targets=["sw"])
    wanted["task"]["optimisation"]["checkpoint_every"] = 1
    (tmp_path / "topics.yaml").write_text(yaml.safe_dump(wanted), encoding="utf-8")
    done = command("transfer", tmp_path / "topics.yaml", largest=largest)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr
    assert "File too large" in done.stderr or "tensors cannot be written" in done.stderr, done.stderr
    assert not [name for name in files(tmp_path / "run") if "partial" in name.split("/")[-1]]
    assert not list((tmp_path / "run" / "store").glob("*/.stage-*"))


@pytest.mark.parametrize("largest", [10, 3000])
def test_commands_without_room_write_nothing(largest: int, finished: Path, small_data: Path, tmp_path: Path) -> None:
    base = yaml.safe_load((finished / "topics.yaml").read_text())["base"]
    trained = {}
    for path in (finished / "run" / "store" / "train").iterdir():
        found = json.loads((path / "lineage.json").read_text())
        trained[found["task"]["kind"], found["language"]] = path
    pair = ["--target-reference", trained["language-modeling", "sw"]]
    pair += ["--source-reference", trained["language-modeling", "en"]]
    task = trained["classification", "en"]
    evaluation = ["--base", base, "--adapter", task, "--language", "sw", "--test", small_data / "sw.test.tsv"]
    commands = {
        "merge": ["merge", "--task", task, *pair, "--weight", "0.5"],
        "divergence": ["divergence", *pair],
        **({"evaluate": ["evaluate", *evaluation]} if largest == 10 else {}),
        "report": ["report", finished / "run"],
    }
    for name, given in commands.items():
        done = command(*given, "--output", tmp_path / name, largest=largest)
        assert done.returncode == 2 and "File too large" in done.stderr, (name, done.stderr)
        assert "Traceback" not in done.stderr
    assert files(tmp_path) == {}
    assert {path.name for path in tmp_path.iterdir()} <= {"report"}


def test_a_finished_run_without_room_stays_as_it_is(finished: Path) -> None:
    before = files(finished)
    done = command("transfer", finished / "topics.yaml", largest=3000)
    assert done.returncode == 2 and "File too large" in done.stderr
    after = files(finished)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name] and "/studies/" not in name] == []


def test_a_flipped_bit_is_named_and_made_again(finished: Path) -> None:
    """In a manifest, in an adapter and in predictions, while nothing else is done again."""
    before = files(finished / "run")
    store = finished / "run" / "store"
    hit = [
        next(store.glob("train/*/manifest.json")), next(store.glob("merge/*/adapter_model.safetensors")),
        next(store.glob("evaluate/*/predictions.jsonl")),
    ]  # fmt: skip
    for path in hit:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    done = command("transfer", finished / "topics.yaml")
    assert done.returncode == 0, done.stderr
    for path in hit:
        assert f"{path.parent} is damaged, so it is made again" in done.stdout
    assert done.stdout.count("made again") == 3 and "[3/3]" in done.stdout and "/4]" not in done.stdout
    after = files(finished / "run")
    changing = ("manifest.json", "results.json", "report.html", "report.md")
    names = [name for name in before if not name.endswith(changing) and not {"logs", "studies"} & {*name.split("/")}]
    assert [name for name in names if before[name] != after.get(name)] == []


def test_transfers_into_one_output_wait_for_each_other(finished: Path) -> None:
    runs = [start("transfer", finished / "topics.yaml") for _ in range(3)]
    done = [run.done() for run in runs]
    assert [run.returncode for run in done] == [0] * 3, done
    said = [run.stderr for run in done]
    assert all(set(text.splitlines()) <= {line for line in text.splitlines() if "waiting for" in line} for text in said)
    assert not list((finished / "run").rglob(".*"))
