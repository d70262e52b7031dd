"""Engines: killed anywhere they go on, a lost worker takes only its step with it, the backbone stays in memory."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adamergex.backbones import cache, loading
from adamergex.errors import DataError
from adamergex.graph.inventory import collect_garbage, garbage, record
from adamergex.graph.local import StepsFailedError, run
from adamergex.graph.steps import Step, Store, file_lock
from adamergex.graph.walk import walk
from adamergex.graph.worker import WorkerLostError, perform, sendable
from adamergex.jobs.settings import (
    Classification,
    EvaluateJob,
    LanguageModeling,
    Optimisation,
    Rows,
    Structure,
    TrainJob,
)
from adamergex.tables import actions
from counted_actions import ACTIONS, grid, main, started, step

TOPICS = ("health", "nature", "sports", "travel")  # of the shared small data
SCRIPT = Path(__file__).with_name("counted_actions.py")


def silent(line: str) -> None:
    pass


def finished(root: Path, steps: list[Step]) -> set[str]:
    store = Store(root)
    return {item.label for item in steps if store.has(item)}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("processes", "kills"), [(1, 20), (2, 4)])
def test_killed_at_random_points_nothing_finished_runs_twice(tmp_path: Path, processes: int, kills: int) -> None:
    root, log, chance = tmp_path / "store", tmp_path / "log", random.Random(7)
    width, seconds = (40, 0.004) if processes == 1 else (20, 0.01)
    steps = grid(log, width, seconds)
    command = [sys.executable, str(SCRIPT), str(root), str(log), str(width), str(seconds), str(processes)]
    for _ in range(kills):
        before, done = len(started(log)), finished(root, steps)
        target = before + chance.randint(1, 4)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(started(log)) < target and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.012))  # inside the action, at its end, in the commit, between two steps
        process.kill()
        assert process.wait() == -9, "it ended before it was killed"
        pids = {int(line.split()[2]) for line in log.read_text().splitlines()}
        while any(map(alive, pids)):  # workers notice that their parent is gone
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not set(started(log)[before:]) & done
    before, done = len(started(log)), finished(root, steps)
    main(str(root), str(log), str(width), str(seconds), str(processes))
    assert not set(started(log)[before:]) & done
    assert finished(root, steps) == {item.label for item in steps}
    # A kill costs at the most the steps that ran at that moment, one a process.
    assert len(steps) <= len(started(log)) <= len(steps) + kills * processes
    assert set(started(log)) == {item.label for item in steps}
    assert (Store(root).path(steps[-1]) / "text").read_text().count("0.") == 8
    again = len(started(log))
    main(str(root), str(log), str(width), str(seconds), "1")
    assert len(started(log)) == again
    store = Store(root)
    record(store, "killed", tmp_path, steps)
    gone = collect_garbage(store, garbage(store))
    assert not gone.entries and finished(root, steps) == {item.label for item in steps}
    assert not list((root / "partial").iterdir()) and not list(root.glob("*/.stage-*"))


def test_several_processes_share_the_work(tmp_path: Path) -> None:
    log, steps = tmp_path / "log", grid(tmp_path / "log", 6, 0.01)
    run(steps, Store(tmp_path / "store"), ACTIONS, silent, processes=2)
    assert Counter(started(log)) == Counter({item.label: 1 for item in steps})
    assert len({line.split()[2] for line in log.read_text().splitlines()} - {str(os.getpid())}) == 2


def test_a_worker_that_dies_takes_only_its_step_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    dying, fine = step(log, "dying", dies=True), step(log, "fine", seconds=0.2)
    after = [step(log, "after dying", {"a": dying}), step(log, "after fine", {"a": fine})]
    store = Store(tmp_path / "store")
    with pytest.raises(StepsFailedError, match=r"2 of 4 steps failed(.|\n)*work dying; work after dying") as caught:
        run([*after, fine], store, ACTIONS, silent, processes=2)
    assert isinstance(caught.value.__cause__, WorkerLostError)
    assert store.has(after[1]) and not store.has(after[0])


class Elsewhere:
    """A worker whose results are seen here ``delay`` seconds after it has told of them; None: never."""

    def __init__(self, store: Store, delay: float | None) -> None:
        self.store, self.delay = store, delay
        self.done: list[tuple[Step, Exception | None]] = []

    def idle(self) -> list[Any]:
        return ["there"]

    def start(self, worker: Any, step: Step) -> None:
        if self.delay is not None:
            threading.Timer(self.delay, perform, (step, self.store, ACTIONS)).start()
        self.done.append((step, None))

    def finished(self) -> list[tuple[Step, Exception | None]]:
        done, self.done = self.done, []
        return done

    def close(self) -> None:
        pass


def test_a_result_that_a_file_system_hides_for_a_while_is_waited_for(tmp_path: Path) -> None:
    log, store = tmp_path / "log", Store(tmp_path / "store")
    first = step(log, "first")
    steps = [first, step(log, "second", {"a": first})]
    walk(steps, store, Elsewhere(store, 0.3), silent, late=30)
    assert all(store.has(item) for item in steps) and started(log) == ["first", "second"]
    others = [step(log, f"lost-{number}") for number in range(4)]
    began = time.monotonic()
    with pytest.raises(StepsFailedError, match=r"4 of 4(.|\n)*not in the store that this process sees"):
        walk(others, store, Elsewhere(store, None), silent, late=0.5)
    assert 0.5 <= time.monotonic() - began < 1  # one wait, not four


def test_an_error_crosses_processes(tmp_path: Path) -> None:
    failing = step(tmp_path / "log", "failing", fails=True)
    with pytest.raises(StepsFailedError, match="ValueError: failing broke"):
        run([failing], Store(tmp_path / "store"), ACTIONS, silent, processes=2)
    assert isinstance(sendable(DataError("a", where="b")), DataError)

    class Local(Exception):
        pass

    assert str(sendable(Local("unknown elsewhere"))) == "Local: unknown elsewhere"


def test_two_drivers_on_one_store_do_a_step_once(tmp_path: Path) -> None:
    root, log = tmp_path / "store", tmp_path / "log"
    command = [sys.executable, str(SCRIPT), str(root), str(log), "5", "0.02", "1"]
    drivers = [subprocess.Popen(command) for _ in range(2)]
    assert [driver.wait(60) for driver in drivers] == [0, 0]
    assert Counter(started(log)) == Counter({item.label: 1 for item in grid(log, 5, 0)})


def test_a_lock_is_let_go_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "from adamergex.files.locks import file_lock\nimport time\nfrom pathlib import Path\n"
        f"with file_lock(Path({str(path)!r})):"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\n  print('file_lock', flush=True); time.sleep(60)"], stdout=-1
    )
    assert process.stdout is not None and process.stdout.readline() == b"file_lock\n"
    with file_lock(path, wait=False) as ours:
        assert not ours
    process.kill()
    process.wait()
    process.stdout.close()
    with file_lock(path) as ours:
        assert ours
    assert not path.exists()


# --- the backbone stays resident


class Loads:
    """The real loading, counted, with a hash of each model when it was new."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[Any] = []
        self.hashes: list[str] = []
        real = loading._load

        def load(*given: Any) -> loading.Loaded:
            found = real(*given)
            self.models.append(found.model)
            self.hashes.append(contents(found.model))
            return found

        monkeypatch.setattr(loading, "_load", load)


def contents(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__name__} {module.training}\n".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(name.encode() + tensor.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(autouse=True)
def nothing_resident() -> Any:
    cache.drop_backbone()
    yield
    cache.drop_backbone()


def jobs(base: Path, data: Path, structure: Structure) -> list[Step]:
    """Two task adapters, their evaluations and two references, as steps."""
    rows, test = Rows(path=f"{data}/{{language}}.train.tsv"), Rows(path=f"{data}/{{language}}.test.tsv")
    text, quick = Rows(path=f"{data}/{{language}}.txt"), Optimisation(steps=3, learning_rate=1e-2, batch_size=8)
    task = Classification(labels=TOPICS)
    found: list[Step] = []
    for seed in (0, 1):
        job = TrainJob(
            base=str(base),
            structure=structure,
            task=task,
            language="en",
            rows=rows,
            optimisation=quick,
            seed=seed,
        )
        found.append(Step("train", job.model_dump(mode="json"), job, label=f"task {seed}"))
        test_job = EvaluateJob(base=str(base), task=task, language="sw", rows=test)
        identity = test_job.model_dump(mode="json")
        found.append(Step("evaluate", identity, test_job, {"adapter": found[-1]}, label=f"evaluate {seed}"))
    for language in ("en", "sw"):
        job = TrainJob(
            base=str(base),
            structure=structure,
            task=LanguageModeling(segment=16),
            language=language,
            rows=text,
            optimisation=quick,
        )
        found.append(Step("train", job.model_dump(mode="json"), job, label=f"reference {language}"))
    return found


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_the_backbone_is_loaded_once_for_like_steps_and_never_changes(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    steps = jobs(tiny_encoder, small_data, Structure.model_validate({"kind": kind, "rank": 2}))
    alone = Store(tmp_path / "alone")
    for item in steps:
        cache.drop_backbone()
        perform(item, alone, actions.ACTIONS)
    loads, store = Loads(monkeypatch), Store(tmp_path / "store")
    cache.drop_backbone()
    run(steps, store, actions.ACTIONS, silent, group=actions.backbone_group)
    assert len(loads.models) == 2  # one with the classification head for four steps, one masked LM for two
    assert [contents(model) for model in loads.models] == loads.hashes
    for item in steps:
        for name in ("adapter_model.safetensors", "predictions.jsonl"):
            if (alone.path(item) / name).exists():
                assert (alone.path(item) / name).read_bytes() == (store.path(item) / name).read_bytes()


def test_a_backbone_that_was_changed_or_failed_with_is_not_lent_again(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch)

    def load() -> Any:
        return loading.load(str(tiny_encoder), "masked-lm").model

    with cache.lending():
        first = load()
        assert load() is not first  # two copies within one step are two models
    with cache.lending():
        assert load() is first
    with cache.lending(), torch.no_grad():
        load().get_input_embeddings().weight.add_(1)
    with cache.lending():
        second = load()
    assert second is not first and contents(second) == loads.hashes[0]
    with pytest.raises(ValueError, match="stop"), cache.lending():
        assert load() is second
        raise ValueError("stop")
    with cache.lending():
        assert load() is not second
    assert load() is not load()  # outside of steps everyone has their own


def test_steps_of_one_backbone_follow_each_other(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    steps = jobs(tiny_encoder, small_data, Structure(rank=2))
    mixed = [steps[4], steps[0], steps[5], steps[2], steps[1], steps[3]]
    order: list[str] = []

    def noted(job: Any, inputs: Any, output: Path, workdir: Path) -> None:
        output.mkdir()
        order.append(job.task.kind)

    fake = {"train": noted, "evaluate": noted}
    run([replace(item) for item in mixed], Store(tmp_path), fake, silent, group=actions.backbone_group)
    assert order == ["language-modeling"] * 2 + ["classification"] * 4
