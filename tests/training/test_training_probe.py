"""Heads that start from a probe: scikit-learn's solution, the frozen base's features, and the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from stopping import StopAfter
from test_training_numbers import STRUCTURES
from transformers import AutoModel, AutoTokenizer

from adamergex.adapters import loaded_adapter
from adamergex.adapters.sparse import TENSORS, read_difference
from adamergex.config.study import Assumed
from adamergex.config.train import parse_training
from adamergex.config.transfer import parse
from adamergex.errors import AdamergexError, ConfigError, TrainingError
from adamergex.graph.steps import Store
from adamergex.jobs.settings import (
    Classification,
    Optimisation,
    PairClassification,
    Rows,
    Structure,
    TrainJob,
)
from adamergex.report.results_file import as_dict
from adamergex.tables.estimate import estimate
from adamergex.tables.plan import Plan, absolute, facts
from adamergex.tables.transfer import transfer
from adamergex.tasks.rows import read
from adamergex.training import probe, train

LABELS = ("food", "sports", "travel")


def job(base: str, path: Path, structure: Structure | None = None, head: str = "cls", **settings: Any) -> TrainJob:
    quick = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "head_start": "probe"}
    return TrainJob(
        base=base,
        structure=structure or Structure(rank=2, dropout=0),
        task=Classification(labels=LABELS, max_length=32, head=head),
        language="en",
        rows=Rows(path=str(path)),
        optimisation=Optimisation(**{**quick, **settings}),
        seed=3,
    )


def drawn(rows: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(classes)
    labels = np.concatenate([np.arange(classes), generator.integers(classes, size=rows - classes)])
    middle = generator.normal(size=(classes, width))
    values = (middle[labels] + 2 * generator.normal(size=(rows, width))) * generator.lognormal(0, 2, width) + 5
    values[:, 0] = 0.25  # never varies
    return torch.from_numpy(values).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_it_is_the_logistic_regression_of_scikit_learn(classes: int, c: float) -> None:
    features, labels = drawn(120, 16, classes)
    found = probe.logistic_regression(features, labels, classes, c)
    values = features.double().numpy()
    scaled = StandardScaler().fit_transform(values)
    expected = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(scaled, labels.numpy()).predict_proba(scaled)
    logits = torch.from_numpy(values) @ found.weight.T + found.bias  # μ and σ are folded in
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, rtol=1e-3)
    again = probe.logistic_regression(features, labels, classes, c)
    assert torch.equal(again.weight, found.weight) and torch.equal(again.bias, found.bias)
    assert found.accuracy == pytest.approx((expected.argmax(1) == labels.numpy()).mean())
    assert found.loss == pytest.approx(-np.log(expected[np.arange(120), labels.numpy()]).mean(), rel=1e-3)


def test_features_that_are_not_finite_and_problems_without_a_minimum_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = drawn(60, 8, 3)
    with pytest.raises(TrainingError, match="what the head reads is not finite"):
        probe.logistic_regression(features.log(), labels, 3, 0.01)
    monkeypatch.setattr(probe, "MOST_STEPS", 2)
    with pytest.raises(TrainingError, match="found no minimum"):
        probe.logistic_regression(features, labels, 3, 1000.0)


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize(("name", "head"), [("bert", "mean"), ("bert", "cls"), ("xlm-r", "mean"), ("xlm-r", "cls")])
def test_the_head_starts_from_the_probe_of_what_it_reads(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, name: str, head: str, structure: Structure
) -> None:
    """With a step that moves nothing the saved head is the start; the adapter is what it is without a probe."""
    still = {"steps": 1, "learning_rate": 1e-9}
    asked = job(checkpoints[name], labelled, structure, head, **still)
    train.train(asked, tmp_path / "probe")
    plain = job(checkpoints[name], labelled, structure, head, head_start="random", **still)
    train.train(plain, tmp_path / "random")
    found, without = (tensors(tmp_path / side) for side in ("probe", "random"))
    last = [key for key, tensor in found.items() if "classifier" in key and len(tensor) == len(LABELS)]
    assert len(last) == 2
    for key, tensor in found.items():
        if key not in last:
            torch.testing.assert_close(tensor, without[key], rtol=0, atol=1e-7)
    about = json.loads((tmp_path / "probe" / "lineage.json").read_text())["settings"]
    assert (about["head_start"], about["probe_c"]) == ("probe", 0.01)
    assert about["training"]["probe"]["rows"] == 72
    assert loss(asked, tmp_path / "probe") == pytest.approx(about["training"]["probe"]["loss"], rel=1e-3)
    if (name, head) == ("bert", "mean") and structure.kind in ("lora", "ia3", "full", "sparse"):
        rows = [json.loads(line) for line in labelled.read_text(encoding="utf-8").splitlines()]
        weight, bias = (next(found[key].double().numpy() for key in last if found[key].ndim == n) for n in (2, 1))
        values = frozen_means(checkpoints[name], [row["text"] for row in rows])
        scaled, labels = StandardScaler().fit_transform(values), [LABELS.index(row["label"]) for row in rows]
        expected = LogisticRegression(C=0.01, tol=1e-10, max_iter=10_000).fit(scaled, labels).predict_proba(scaled)
        logits = torch.from_numpy(values @ weight.T + bias)
        np.testing.assert_allclose(logits.softmax(1).numpy(), expected, rtol=1e-3)


def loss(asked: TrainJob, folder: Path) -> float:
    """Of all training rows, without dropout."""
    loaded = train.load_for(asked)
    placed = loaded_adapter.load(loaded.model, [folder], new_modules=loaded.new_modules)
    examples = train.examples_of(asked, loaded, read(asked.task, asked.rows, asked.language))
    with torch.no_grad():
        found = float(examples.loss(placed.model.eval(), examples.batch(range(len(examples.lengths)), 0)))
    placed.detach()
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / TENSORS).is_file():
        return dict(read_difference(folder).whole)
    return {key: tensor.float() for key, tensor in loaded_adapter.read_tensors(folder).items()}


def frozen_means(base: str, texts: list[str]) -> np.ndarray:
    """Means over the tokens of the base alone, text by text."""
    model, tokenizer = AutoModel.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        found = [
            model(**tokenizer(text, return_tensors="pt", max_length=32, truncation=True)).last_hidden_state[0].mean(0)
            for text in texts
        ]
    return torch.stack(found).double().numpy()


@pytest.mark.parametrize("kind", ["lora", "sparse"])
def test_two_runs_are_bitwise_equal_and_so_is_a_resumed_one(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, kind: str
) -> None:
    asked = job(checkpoints["xlm-r"], labelled, STRUCTURES[kind], "mean", steps=12, checkpoint_every=5)
    train.train(asked, tmp_path / "one")
    torch.manual_seed(9)
    train.train(asked, tmp_path / "two", workdir=tmp_path / "other")
    for stop in (3, 7):
        with pytest.raises(KeyboardInterrupt):
            train.train(asked, tmp_path / "three", workdir=tmp_path / "work", callbacks=[StopAfter(stop)])
        assert next((tmp_path / "work").glob(f"run-*/{probe.FILE}")).stat().st_size
    train.train(asked, tmp_path / "three", workdir=tmp_path / "work")
    for path in (tmp_path / "one").iterdir():
        if path.is_file():
            for other in ("two", "three"):
                assert path.read_bytes() == (tmp_path / other / path.name).read_bytes(), path.name


def test_a_stopped_run_does_not_read_the_rows_again(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(checkpoints["xlm-r"], labelled, steps=12, checkpoint_every=5)
    with pytest.raises(KeyboardInterrupt):
        train.train(asked, tmp_path / "out", workdir=tmp_path / "work", callbacks=[StopAfter(7)])
    monkeypatch.delattr(probe, "head_inputs")
    train.train(asked, tmp_path / "out", workdir=tmp_path / "work")
    assert (tmp_path / "out" / "lineage.json").is_file()


def test_pairs_start_from_a_probe_too(checkpoints: dict[str, str], tmp_path: Path) -> None:
    rows = [
        {"premise": f"the cook baked bread {i}", "hypothesis": text, "label": label}
        for i in range(6)
        for text, label in (("food was made", "yes"), ("a train left", "no"))
    ]
    (tmp_path / "en.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = job(checkpoints["bert"], tmp_path / "en.jsonl").model_copy(
        update={"task": PairClassification(labels=("no", "yes"), head="mean")}
    )
    train.train(asked, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "lineage.json").read_text())["settings"]["training"]
    assert about["probe"]["accuracy"] == 100.0
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tuple(tensor.shape) for name, tensor in weights.items() if "classifier" in name} == {(2, 32), (2,)}


def test_it_is_part_of_the_key_and_the_default_is_not(checkpoints: dict[str, str], labelled: Path) -> None:
    kinds = [{"head_start": "random"}, {}, {"probe_c": 1.0}, {"probe_c": 0.01}]
    dumps = [job(checkpoints["bert"], labelled, **kind).model_dump_json() for kind in kinds]
    assert len(set(dumps)) == 3 and dumps[1] == dumps[3] and "head_start" not in dumps[0]


def test_what_has_no_such_head_is_refused(
    checkpoints: dict[str, str], labelled: Path, plain: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no linear last layer[\s\S]*head_start to random"):
        train.train(job(checkpoints["llama"], labelled), tmp_path / "out")
    with pytest.raises(ValueError, match="probe_c is for head_start: probe"):
        Optimisation(probe_c=1.0)
    five = job(checkpoints["bert"], labelled)
    more = five.model_copy(update={"task": Classification(labels=(*LABELS, "war"))})
    with pytest.raises(ConfigError, match=r"a label has no training row[\s\S]*no row of 'war'"):
        train.train(more, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    file = {
        "base": checkpoints["bert"], "language": "en", "output": str(tmp_path / "out"), "kind": "task",
        "task": {"kind": "tagging", "train": str(plain), "optimisation": {"head_start": "probe"}},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"task\.optimisation\.head_start: 'probe' is for classification"):
        parse_training(file)
    text = {**file, "kind": "language", "text": {"path": str(plain)}, "optimisation": {"head_start": "probe"}}
    del text["task"]
    with pytest.raises(ConfigError, match=r"optimisation\.head_start: 'probe' is for classification"):
        parse_training(text)


TABLE: dict[str, Any] = {"targets": ["sw"], "methods": ["english_tuning"], "merge": {"weight": 0.5}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"reference": {"optimisation": {"head_start": "probe"}}},
            r"reference\.optimisation\.head_start: 'probe' is for",
        ),
        (
            {"mad_x": {"language": {"optimisation": {"head_start": "probe"}}}},
            r"mad_x\.language\.optimisation\.head_start",
        ),
        (
            {"full": {"language": {"optimisation": {"head_start": "probe"}}}},
            r"full\.language\.optimisation\.head_start",
        ),
        ({"lf_sft": {"language": {"optimisation": {"head_start": "probe"}}}}, r"lf_sft\.language\.optimisation"),
        ({"task": {"labels": ["nature", "health", "sports", "travel", "war"]}}, "no row of 'war'"),
        ({"task": {"kind": "span"}}, r"task\.optimisation\.head_start: 'probe' is for classification"),
    ],
)
def test_a_table_is_refused_before_training(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    from test_pipeline import settings

    made = settings(tiny_encoder, small_data, tmp_path / "run", **TABLE)
    made["task"]["optimisation"] = {**made["task"]["optimisation"], "head_start": "probe"}
    for name, value in change.items():
        made[name] = {**made.get(name, {}), **value}
    with pytest.raises(AdamergexError, match=said):
        transfer(parse(made), say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_an_estimate_counts_the_reading_of_all_rows(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    from test_pipeline import settings

    tokens = {}
    for start in ("random", "probe"):
        made = settings(tiny_encoder, small_data, tmp_path / "run", **TABLE)
        made["task"]["optimisation"] = {"epochs": 2, "head_start": start}
        config = absolute(parse(made))
        costs = estimate(Plan(config, facts(config)).wanted, Store(tmp_path / "store"), Assumed()).kinds
        tokens[start] = costs["train"].tokens
    assert tokens["probe"] == pytest.approx(tokens["random"] * 2.5 / 2)  # forward alone is half of a step of LoRA


def test_a_table_with_a_probe(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    from test_pipeline import settings

    made = settings(
        tiny_encoder,
        small_data,
        tmp_path / "run",
        **{**TABLE, "methods": ["english_tuning", "mad_x_task_only", "full_fine_tuning"]},
    )
    made["task"]["optimisation"] = {**made["task"]["optimisation"], "head_start": "probe"}
    results = as_dict(transfer(parse(made), say=lambda line: None))
    assert len(results["cells"]) == 3 and not results["missing"]
    for adapter in results["adapters"]:
        about = json.loads((tmp_path / "run" / adapter["path"] / "lineage.json").read_text())["settings"]["training"]
        assert about["probe"]["rows"] == 24
