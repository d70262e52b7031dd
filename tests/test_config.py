"""Settings: every problem at once, with the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adamergex.config.study import Assumed
from adamergex.config.train import parse_training
from adamergex.config.transfer import load, parse
from adamergex.errors import ConfigError
from adamergex.tables.demo import CORPUS
from adamergex.tables.plan import Plan, train_job
from adamergex.tables.sketch import assumed_facts, needs_references, sketched


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "base": "nano",
        "proxy": "fr",
        "targets": ["sw"],
        "task": {"train": "en.jsonl", "validation": "{language}.jsonl", "test": "{language}.jsonl"},
        "reference": {"text": "{language}.txt"},
        **changes,
    }


def test_defaults_are_the_papers() -> None:
    config = parse(settings())
    assert (config.structure.kind, config.structure.rank, config.structure.alpha) == ("lora", 8, 16.0)
    assert (config.task.optimisation.learning_rate, config.task.optimisation.epochs) == (2e-4, 3)
    assert config.reference.segment == 512
    assert config.merge.grid[0] == 0.0 and config.merge.weight == "tuned"


SAID = {"learning_rate": 3e-4, "warmup": 0.05}


def rates(kind: str, **optimisation: Any) -> set[tuple[str, float, float]]:
    """(structure, learning rate, warm-up) of every training of a table."""
    own = {"train": "en.jsonl", "test": "{language}.jsonl", "labels": ["a", "b"], "optimisation": optimisation}
    reference = {"text": "{language}.txt", "optimisation": optimisation}
    config = parse(settings(structure={"kind": kind}, methods=["adamergex", "mad_x", "full_fine_tuning"],
                            task=own, reference=reference, merge={"weight": 0.5}))  # fmt: skip
    jobs = [step.job for step in Plan(config, assumed_facts(config, Assumed())).trainings]
    return {(job.structure.kind, job.optimisation.learning_rate, job.optimisation.warmup) for job in jobs}


@pytest.mark.parametrize(
    ("kind", "rate", "warmup"),
    [("lora", 2e-4, 0.05), ("prefix", 2e-4, 0.05), ("bottleneck", 2e-4, 0.05), ("ia3", 5e-4, 0.03)],
)
def test_a_structure_has_its_own_rate_unless_one_is_said(kind: str, rate: float, warmup: float) -> None:
    others = {("bottleneck", 1e-4, 0.0), ("bottleneck", 2e-4, 0.05), ("full", 2e-5, 0.05)}  # language and task, weights
    assert rates(kind) == {(kind, rate, warmup), *others}
    assert rates(kind, warmup=0.1) >= {(kind, rate, 0.1)}
    assert {item for item in rates(kind, learning_rate=2e-4) if item[0] == kind} >= {(kind, 2e-4, warmup)}
    shared = {"base": "nano", "language": "en", "structure": {"kind": kind}, "output": "out"}
    own = {"kind": "task", "task": {"train": "en.jsonl", "labels": ["a", "b"]}, **shared}
    found = train_job(parse_training(own)).optimisation
    assert (found.learning_rate, found.warmup) == (rate, warmup)
    found = train_job(parse_training({**own, "task": {**own["task"], "optimisation": SAID}})).optimisation
    assert (found.learning_rate, found.warmup) == (3e-4, 0.05)
    text = {"kind": "language", "text": "en.txt", **shared}
    for said, wanted in (
        ({}, (rate, warmup) if kind == "ia3" else (1e-4, 0)),  # the others': MAD-X's
        ({"optimisation": {"steps": 5}}, (rate, warmup) if kind == "ia3" else (1e-4, 0)),
        ({"optimisation": SAID}, (3e-4, 0.05)),
    ):
        found = train_job(parse_training({**text, **said})).optimisation
        assert (found.learning_rate, found.warmup) == wanted
        assert found.schedule == "linear" and found.steps == (5 if "steps" in said.get("optimisation", {}) else 50_000)


def test_zero_is_always_in_the_grid() -> None:
    assert parse(settings(merge={"grid": [0.5, 0.25]})).merge.grid == (0.0, 0.25, 0.5)


def test_all_problems_at_once_with_the_nearest_names() -> None:
    broken = settings(
        tragets=["de"],
        methods=["adamerge", "vanilla"],
        structure={"kind": "lora", "rnak": 4},
        merge={"weight": "best"},
        task={"train": "en.jsonl", "optimisation": {"learning_rate": -1}},
    )
    with pytest.raises(ConfigError) as caught:
        parse(broken)
    text = str(caught.value)
    assert "tragets: no such setting; did you mean 'targets'?" in text
    assert "methods.0: 'adamerge' is not one of" in text and "did you mean 'adamergex'?" in text
    assert "structure.rnak: no such setting; did you mean 'rank'?" in text
    assert "task.test: missing" in text
    assert "task.optimisation.learning_rate" in text and "greater than 0" in text
    assert "merge.weight" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy": None}, "proxy: missing; it is the language whose validation set tunes λ"),
        ({"targets": ["en"]}, "targets: 'en' is the source"),
        ({"targets": ["sw", "sw"]}, "targets: 'sw' is listed twice"),
        ({"proxy": "en"}, "proxy: 'en' is the source"),
        ({"structure": {"kind": "ia3"}, "merge": {"space": "delta"}}, "merge.space: 'delta' is for lora"),
        ({"structure": {"kind": "ia3"}, "methods": ["adamergex_delta"]}, "methods: adamergex_delta is for lora"),
        ({"merge": {"rank": 4}}, "merge.rank: truncates delta merges only"),
        ({"reference": {"text": "all.txt"}}, r"reference.text: 'all.txt' has no \{language\}"),
        ({"reference": {"text": {"path": "a{language}", "hub": "b"}}}, "give either 'path'"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(settings(**changes))


def test_a_fixed_weight_needs_no_proxy() -> None:
    assert parse(settings(proxy=None, merge={"weight": 0.5})).merge.weight == 0.5


def test_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the settings file does not exist"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="is not a mapping"):
        load(tmp_path / "list.yaml")


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_settings_are_valid(path: Path) -> None:
    assert load(path).folder == str(path.parent)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_example_settings_are_valid(path: Path) -> None:
    assert load(path).targets


@pytest.mark.parametrize(
    ("methods", "needed", "bare"),
    [
        (["vanilla"], False, True),
        (["xlt"], False, True),
        (["english_tuning", "full_fine_tuning", "mad_x", "lf_sft"], False, False),
        (["average"], True, False),
        (["layer_swapping"], True, False),
        (["ties_factors"], True, False),
        (["adamergex_cross"], True, False),
    ],
)
def test_what_a_recipe_asks_for_is_seen_in_what_it_builds(methods: list[str], needed: bool, bare: bool) -> None:
    own = {"train": "en.jsonl", "validation": "{language}.jsonl", "test": "{language}.jsonl", "labels": ["a", "b"]}
    config = parse(settings(methods=methods, task=own))
    assert needs_references(config) is needed
    assert (sketched(config, methods[0], "sw")[1] is None) is bare


@pytest.mark.parametrize("asks", [True, False])
def test_what_a_users_own_recipe_asks_for_is_seen_too(tmp_path: Path, asks: bool) -> None:
    trained = "cell.train(cell.reference, cell.target)" if asks else "cell.train(cell.task, cell.source)"
    (tmp_path / "own.py").write_text(f"def mine(cell):\n    return {trained}\n")
    own = {"train": "en.jsonl", "test": "{language}.jsonl", "labels": ["a", "b"]}
    config = parse(settings(methods=[f"{tmp_path}/own.py:mine"], task=own, proxy=None))
    assert needs_references(config) is asks
