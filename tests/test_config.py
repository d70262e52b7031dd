"""Settings: every problem at once, with the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adamergex.config import load, parse
from adamergex.demo import CORPUS
from adamergex.errors import ConfigError


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
    assert "methods.0: 'adamerge' is none of" in text and "did you mean 'adamergex'?" in text
    assert "structure.rnak: no such setting; did you mean 'rank'?" in text
    assert "task.test: missing" in text
    assert "task.optimisation.learning_rate" in text and "greater than 0" in text
    assert "merge.weight" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy": None}, "proxy: missing; it is the language whose validation set tunes λ"),
        ({"targets": ["en"]}, "targets: 'en' is the source"),
        ({"targets": ["sw", "sw"]}, "targets: a language stands twice"),
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
    with pytest.raises(ConfigError, match="no such settings file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is no YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds no mapping"):
        load(tmp_path / "list.yaml")


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_settings_are_valid(path: Path) -> None:
    assert load(path).folder == str(path.parent)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_example_settings_are_valid(path: Path) -> None:
    assert load(path).targets
