"""The Ray engine on a real cluster of two nodes on this machine: leave out with ``-m 'not ray'``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamergex.errors import AdamergexError
from adamergex.graph.steps import Store
from adamergex.graph.walk import StepsFailedError, walk
from counted_actions import ACTIONS, grid, started, step

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install 'adamergex[ray]'"),
]
TESTS = str(Path(__file__).parent)


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one core and a second node with one core; workers find the actions of this folder."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    patch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home of whoever runs the tests
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    found = Cluster(initialize_head=True, connect=True, head_node_args=small)
    found.second = found.add_node(**small)
    found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()
    patch.undo()


def test_a_cluster_does_every_step_once(cluster: Any, tmp_path: Path) -> None:
    from adamergex.graph import ray as engine

    log, store = tmp_path / "log", Store(tmp_path / "store")
    steps = grid(log, 5, 0.05)
    engine.run(steps, store, ACTIONS, silent)
    assert Counter(started(log)) == Counter({item.label: 1 for item in steps})
    assert len({line.split()[2] for line in log.read_text().splitlines()}) == 2  # one worker for each core
    engine.run(grid(log, 5, 0.05), Store(tmp_path / "store"), ACTIONS, silent)  # a driver that comes back
    assert len(started(log)) == len(steps)
    assert len(pickle.dumps(steps[-1])) < 10_000  # what travels: paths and settings


def test_an_action_that_fails_is_not_tried_again(cluster: Any, tmp_path: Path) -> None:
    from adamergex.graph import ray as engine

    log, store = tmp_path / "log", Store(tmp_path / "store")
    failing, fine = step(log, "failing", fails=True), step(log, "fine")
    with pytest.raises(StepsFailedError, match=r"2 of 3 steps failed(.|\n)*ValueError: failing broke"):
        engine.run([step(log, "after", {"a": failing}), fine], store, ACTIONS, silent)
    assert Counter(started(log)) == Counter(failing=1, fine=1)
    dying = step(log, "dying", dies=True)
    with pytest.raises(AdamergexError, match="the worker was lost while it ran a step"):
        engine.run([dying], store, ACTIONS, silent, retries=1)
    assert Counter(started(log))["dying"] == 2


def test_a_worker_that_cannot_start_is_said(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions of a module that the driver alone can import, as where adamergex is missing on a machine; then an
    environment that cannot be made, of which Ray says so by another class of error."""
    from adamergex.graph import ray as engine

    (tmp_path / "only_here.py").write_text("def work(job, inputs, output, workdir):\n    output.mkdir()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    actions, one = {"work": importlib.import_module("only_here").work}, step(tmp_path / "log", "one")
    with pytest.raises(AdamergexError, match=r"does not start(.|\n)*No module named 'only_here'(.|\n)*every machine"):
        engine.run([one], Store(tmp_path / "store"), actions, silent, workers=1)
    import ray

    store = Store(tmp_path / "store")
    workers = engine._Cluster(ray, store, ACTIONS, 0, 0, 1, silent)
    workers.remote = ray.remote(engine._Worker).options(num_cpus=1, runtime_env={"conda": "there-is-none"})
    workers._start_worker(0)
    with pytest.raises(AdamergexError, match=r"does not start(.|\n)*every machine"):
        walk([one], store, workers, silent)


def test_a_step_that_a_worker_cannot_read_fails_alone(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamergex.graph import ray as engine

    (tmp_path / "not_there.py").write_text("def thing():\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    log, store, said = tmp_path / "log", Store(tmp_path / "store"), []
    odd = step(log, "odd", thing=importlib.import_module("not_there").thing)
    with pytest.raises(StepsFailedError, match="No module named 'not_there'"):
        engine.run([odd, step(log, "fine")], store, ACTIONS, said.append)
    assert started(log) == ["fine"] and not any("again" in line for line in said)


def test_a_store_that_is_not_shared_is_said(cluster: Any, tmp_path: Path) -> None:
    from adamergex.graph import ray as engine

    class Elsewhere(Store):
        """What a driver sees whose store is another disk than the workers'."""

        def manifest(self, step: Any) -> None:
            return None

    with pytest.raises(AdamergexError, match="not in the store that this process sees"):
        engine.run([step(tmp_path / "log", "one")], Elsewhere(tmp_path / "store"), ACTIONS, silent, late=1)


def test_ctrl_c_leaves_no_worker_in_the_cluster(cluster: Any, tmp_path: Path) -> None:
    from test_ending import ENGINE, STOPPED, alive, interrupt, start

    script, log = tmp_path / "script.py", tmp_path / "log"
    local = "run(steps, Store(Path(sys.argv[1])), ACTIONS, processes=int(sys.argv[3]))"
    assert local in ENGINE
    script.write_text(
        ENGINE.replace("graph.local", "graph.ray").replace(
            local, "run(steps, Store(Path(sys.argv[1])), ACTIONS, address=sys.argv[3], workers=2)"
        )
    )
    process = start(script, tmp_path / "store", log, cluster.address, stdout=None)
    deadline = time.monotonic() + 60
    while len(started(log)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    _, err = interrupt(process)
    assert process.returncode == 130 and STOPPED in err and "Traceback" not in err  # Ray may warn after it
    pids = {int(line.split()[2]) for line in log.read_text().splitlines()}
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids and not any(map(alive, pids))


def test_a_real_study_on_the_cluster(cluster: Any, tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    from adamergex.config.study import parse_study
    from adamergex.tables.study import Engine, run_study
    from test_study import settings

    wanted = settings(tiny_encoder, small_data, tmp_path / "ray", ["topics"], targets=["sw"])
    found = run_study(parse_study(wanted), engine=Engine("ray"), say=silent)
    assert found.steps.missing == 0
    here = {**wanted, "output": str(tmp_path / "here")}
    run_study(parse_study(here), say=silent)
    for path in sorted((tmp_path / "here" / "store").glob("*/*/adapter_model.safetensors")):
        other = tmp_path / "ray" / path.relative_to(tmp_path / "here")
        assert other.read_bytes() == path.read_bytes()


def test_a_node_that_dies_loses_nothing_but_its_step(cluster: Any, tmp_path: Path) -> None:
    """The last test here: one node is gone afterwards."""
    from adamergex.graph import ray as engine

    log, store, said = tmp_path / "log", Store(tmp_path / "store"), []
    go = tmp_path / "go"
    early = [step(log, f"early-{number}") for number in range(3)]
    late = [step(log, f"late-{number}", {"a": item}, seconds=60, until=str(go)) for number, item in enumerate(early)]
    failure: list[BaseException] = []

    def drive() -> None:
        try:
            engine.run(late, store, ACTIONS, said.append)
        except BaseException as error:
            failure.append(error)

    driver = threading.Thread(target=drive)
    driver.start()
    deadline = time.monotonic() + 60
    while sum(name.startswith("late") for name in started(log)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    running = [name for name in started(log) if name.startswith("late")]
    assert len(running) == 2  # one on each node
    cluster.remove_node(cluster.second, allow_graceful=False)
    while not any("again" in line for line in said) and time.monotonic() < deadline:
        time.sleep(0.02)
    go.touch()
    driver.join(60)
    assert not driver.is_alive() and not failure
    counts = Counter(started(log))
    assert all(store.has(item) for item in late)
    assert all(counts[item.label] == 1 for item in early)
    lost = [name for name in running if counts[name] == 2]
    assert len(lost) == 1 and sum(counts[item.label] for item in late) == 4
    assert sum("the worker was lost, again" in line for line in said) == 1
