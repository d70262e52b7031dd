"""One adapter trained by two processes (gloo): the losses and weights of one process, whatever is trained."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_tasks_all import FAMILIES, TASKS, rows_of
from torch import Tensor

from adamergex.adapters import sparse
from adamergex.adapters.loaded_adapter import tensors_path
from adamergex.adapters.sparse import read_difference
from adamergex.cli.main import main
from adamergex.errors import ConfigError
from adamergex.jobs.settings import (
    Classification,
    LanguageModeling,
    Optimisation,
    Rows,
    SentenceContrast,
    Structure,
    TrainJob,
)
from adamergex.training import loop, processes, train
from adamergex.training.processes import Team
from commands import team

SECONDS = 240  # after which a launch counts as hung
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TOPIC = Classification(labels=("food", "sports", "travel"), words={"food": "bread and butter", "travel": "train"})
TEXT = LanguageModeling(segment=24, segments=57)  # of batches of 7, the last of an epoch has one row
CONTRAST = SentenceContrast(max_length=24)  # whose rows are told from each other: no process may see a part of them
CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("xlm-r", TEXT, {"kind": "lora", "rank": 4, "dropout": 0}),
    ("llama", TEXT, {"kind": "lora", "rank": 4, "dropout": 0}),
    ("t5", TEXT, {"kind": "ia3"}),
    ("xlm-r", TOPIC, {"kind": "ia3"}),
    ("llama", TOPIC, {"kind": "lora", "rank": 4, "dropout": 0}),
    ("llama", TOPIC, {"kind": "prefix", "virtual_tokens": 3}),
    ("xlm-r", TEXT, {"kind": "bottleneck", "reduction": 2, "invertible": True}),
    ("xlm-r", TOPIC, {"kind": "full"}),
    ("bert", TOPIC, {"kind": "sparse", "entries": 500, "l1": 0.1}),
    ("xlm-r", CONTRAST, {"kind": "lora", "rank": 4, "dropout": 0}),
    ("bert", TOPIC, {"kind": "lora", "rank": 4, "dropout": 0}),
]
OPTIMISED: dict[int, dict[str, Any]] = {len(CASES) - 1: {"head_start": "probe"}}  # which the first process fits


def steady(base: str, folder: Path) -> str:
    """The checkpoint without dropout: what is dropped depends on the rows that a process has."""
    target = folder / Path(base).name
    if not target.exists():
        target.mkdir()
        for file in Path(base).iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        config = json.loads((target / "config.json").read_text())
        none = {name: 0.0 for name in config if "dropout" in name and isinstance(config[name], float)}
        (target / "config.json").write_text(json.dumps(config | none))
    return str(target)


def job(base: str, task: Any, structure: dict[str, Any], rows: Path, **changes: Any) -> TrainJob:
    given = {"learning_rate": 1e-3, "batch_size": 7, "max_grad_norm": 1.0, "steps": 25, "checkpoint_every": 100}
    return TrainJob(
        base=base, structure=Structure(**structure), task=task, language="en", rows=Rows(path=str(rows)),
        optimisation=Optimisation(**(given | changes)), seed=1,
    )  # fmt: skip


def wanted(made: TrainJob, output: Path, workdir: Path | None = None, stop: int = 0) -> dict[str, Any]:
    return {"job": made.model_dump(mode="json"), "output": str(output), "stop": stop,
            "workdir": str(workdir) if workdir else None}  # fmt: skip


def tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / sparse.TENSORS).is_file():
        found = read_difference(folder)
        dense = {name: torch.zeros(item.shape).flatten() for name, item in found.sparse.items()}
        for name, item in found.sparse.items():
            dense[name][item.indices.long()] = item.values
        return {**dense, **found.whole}
    return train.loaded_adapter.read_tensors(folder)


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "lineage.json").read_text())


def losses(folder: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.value for event in EventAccumulator(str(folder / "logs")).Reload().Scalars("train/loss")]


def require_same(one: Path, two: Path) -> None:
    """Losses to 1e-5 of themselves, weights to 2e-5: Adam divides by gradients that may be near zero, and those of
    attention's key biases are rounding alone (a softmax does not see what all its inputs share)."""
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)
    ours, theirs = tensors(one), tensors(two)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name.endswith("key.bias"):
            continue
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
    told, same = about(two), about(one)
    assert told["settings"]["training"].pop("processes") == 2
    assert told["start"] == same["start"] and told["data"] == same["data"]


@pytest.fixture(scope="module")
def together(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """All that two processes are to train, one after the other."""
    folder = tmp_path_factory.mktemp("together")
    jobs = [
        job(
            steady(checkpoints[base], folder),
            task,
            structure,
            plain if task in (TEXT, CONTRAST) else labelled,
            **OPTIMISED.get(number, {}),
        )
        for number, (base, task, structure) in enumerate(CASES)
    ]
    dropping = job(checkpoints["xlm-r"], TEXT, {"kind": "lora", "dropout": 0.3}, plain, checkpoint_every=7)
    stopped = jobs[0].model_copy(update={"optimisation": Optimisation(
        **(jobs[0].optimisation.model_dump() | {"checkpoint_every": 7}))})  # fmt: skip
    orders = [wanted(made, folder / str(number)) for number, made in enumerate(jobs)]
    orders += [
        wanted(dropping, folder / "whole"),
        wanted(dropping, folder / "resumed", folder / "work", stop=16),
        wanted(dropping, folder / "resumed", folder / "work"),
        wanted(stopped, folder / "left", folder / "left-work", stop=16),
    ]
    (folder / "jobs.json").write_text(json.dumps(orders))
    script = Path(__file__).with_name("train_together.py")
    for process in team(script, folder / "jobs.json", timeout=SECONDS):
        assert process.returncode == 0, process.stderr
    yield {"folder": folder, "jobs": jobs, "stopped": stopped}


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}-{CASES[n][2]['kind']}-{n}")
def test_two_processes_train_what_one_trains(together: dict[str, Any], tmp_path: Path, number: int) -> None:
    train.train(together["jobs"][number], tmp_path / "one")
    require_same(tmp_path / "one", together["folder"] / str(number))


def test_a_run_of_two_goes_on_to_the_same_bytes_with_dropout(together: dict[str, Any]) -> None:
    whole, resumed = (tensors_path(together["folder"] / name).read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed
    assert losses(together["folder"] / "whole") == losses(together["folder"] / "resumed")
    assert not list((together["folder"] / "work").iterdir())


def test_one_process_goes_on_with_what_two_began(together: dict[str, Any], tmp_path: Path) -> None:
    folder, began = together["folder"], []
    last = next((folder / "left-work").glob("run-*/checkpoint-14"))
    generators = [torch.load(last / f"rng_state_{rank}.pth", weights_only=False)["cpu"] for rank in range(2)]
    assert not torch.equal(*generators)  # else both would drop the same places

    class Watch(train.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            began.append(state.global_step)

    train.train(together["stopped"], tmp_path / "out", workdir=folder / "left-work", callbacks=[Watch()])
    assert began == [14]
    ours = tensors(folder / "0")
    for name, tensor in tensors(tmp_path / "out").items():
        torch.testing.assert_close(tensor, ours[name], rtol=1e-5, atol=2e-5)


def test_the_command_goes_on_after_a_kill(checkpoints: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    base = steady(checkpoints["llama"], tmp_path)
    (tmp_path / "job.yaml").write_text(
        f"""{{kind: task, base: {base}, language: en, seed: 3, output: out, structure: {{kind: lora, dropout: 0}},
        task: {{train: {labelled}, prompt: '{{text}} Topic:', optimisation: {{steps: 150, batch_size: 6,
        learning_rate: 1.0e-4, checkpoint_every: 10}}}}}}"""
    )
    command = [*LAUNCH, "-m", "adamergex", "train", str(tmp_path / "job.yaml")]
    first = subprocess.Popen(command, stderr=subprocess.PIPE)
    end = time.monotonic() + SECONDS
    try:
        while not list(tmp_path.glob(".out.unfinished/run-*/checkpoint-*/complete.json")):
            assert first.poll() is None and time.monotonic() < end, first.communicate()[1]
            time.sleep(0.01)
    finally:
        kill(first)
    assert not (tmp_path / "out").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("written:") == 1 and "150 steps" in again.stdout
    assert again.stderr.count(": 150/150, loss") == 1
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")}  # of the killed run
    assert left == {"job.yaml", "llama", "out"}
    assert main(["train", str(tmp_path / "job.yaml"), "--output", str(tmp_path / "one")]) == 0
    ours, theirs = tensors(tmp_path / "one"), tensors(tmp_path / "out")
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=5e-5)
    assert about(tmp_path / "out")["settings"]["training"]["loss"] == pytest.approx(
        about(tmp_path / "one")["settings"]["training"]["loss"], rel=1e-5
    )


def kill(launcher: subprocess.Popen[bytes]) -> None:
    """A launcher and its workers, which have sessions of their own and would go on."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True)
    for number in (launcher.pid, *map(int, found.stdout.split())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    launcher.wait(timeout=30)


@pytest.mark.parametrize(
    ("kind", "family"),
    [(kind, family) for kind in TASKS for family in FAMILIES[kind]]
    + [(kind, family) for kind in ("topic", "text") for family in ("xlm-r", "llama", "t5")],
)
def test_the_weighted_losses_of_shares_are_the_loss_of_the_batch(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path, kind: str, family: str
) -> None:
    rows = {"topic": labelled, "text": plain}.get(kind, tmp_path / "rows.jsonl")
    if kind in TASKS:
        rows.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind)), encoding="utf-8")
    made = job(checkpoints[family], {"topic": TOPIC, "text": TEXT, **TASKS}[kind], {"kind": "lora"}, rows)
    backbone = train.load_for(made)
    examples = train.examples_of(made, backbone, train.read(made.task, made.rows, "en"))
    plan = [[0, 20, 3, 30, 8, 5, 11], [4, 2]]
    with torch.inference_mode():
        for step, parts in itertools.product(range(2), (1, 2)):
            batch = examples.batch(plan[step], step)
            settings = made.optimisation.model_copy(update={"accumulation": parts})
            by_rank = [loop._Steps(examples, plan, Team(rank, 3), settings)[step] for rank in range(3)]
            assert {len(shares) for shares in by_rank} == {min(parts, len(plan[step]))}  # none waits for another
            shares = list(itertools.chain(*by_rank))
            assert all(len(tensor) >= 1 for share in shares for tensor in share["batch"].values())
            losses = [examples.loss(backbone.model, share["batch"]) * share["weight"] / 3 for share in shares]
            torch.testing.assert_close(sum(losses), examples.loss(backbone.model, batch), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_refused(
    checkpoints: dict[str, str], plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert processes.launched() == Team()
    monkeypatch.setenv("RANK", "1")
    assert processes.launched() == Team()  # a scheduler's own
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.launched() == Team(1, 2)
    for verb in (["study", "x.yaml"], ["transfer", "x.yaml"], ["demo"], ["runs", "store"]):
        assert main(verb) == 2
        wanted = f"process 2 of 2: {verb[0]} does not run in several processes; only train does"
        assert wanted in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="not divided over processes"), processes.joined():
        pass
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="no process of a group"):
        processes.launched()
    small = job(checkpoints["llama"], TEXT, {"kind": "lora"}, plain, batch_size=2)
    loop.require_rows(small, Team(1, 2))
    with pytest.raises(ConfigError, match=r"(?s)fewer rows than there are.*2 rows for 3 processes"):
        loop.require_rows(small, Team(1, 3))
