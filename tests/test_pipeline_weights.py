"""The merging rivals, λ by entropy and the ablations' settings, through the whole way on tiny models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pydantic import TypeAdapter

from adamergex.adapters import loaded_adapter
from adamergex.config.transfer import parse
from adamergex.errors import ConfigError, DataError
from adamergex.evaluation import evaluate, load_for
from adamergex.graph.steps import Store
from adamergex.jobs.settings import EvaluateJob, Rows, Structure, Task, TrainJob
from adamergex.merging import merge
from adamergex.merging.prepare import MergeSpec, prepare
from adamergex.report.results_file import as_dict
from adamergex.report.results_file import parse as parse_results
from adamergex.search.entropy import minimise
from adamergex.tables.plan import Plan, absolute, facts
from adamergex.tables.transfer import summary, transfer
from adamergex.tasks.rows import read
from adamergex.training import train
from test_pipeline import Counting, counted, settings, silent

__all__ = ["counted"]  # a fixture

ALL = MergeSpec(modules="all")
QUICK = {"steps": 12, "batch_size": 8, "learning_rate": 2e-2}
MAD_X = {"language": {"reduction": 4, "segment": 16, "optimisation": QUICK}, "task": {"reduction": 8}}
RIVALS = ["layer_swapping", "language_arithmetic", "ties", "dare", "ties_factors", "dare_factors"]


def test_the_rivals_whole_way(tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting) -> None:
    wanted = settings(
        tiny_encoder, small_data, tmp_path / "run", methods=["english_tuning", *RIVALS], targets=["sw", "tr"],
        proxy=None, seeds=[1], mad_x={**MAD_X, "arithmetic": 0.25},
        merge={"swap": {"bottom": 1, "top": 0}, "combine": {"density": 0.6}},
    )  # fmt: skip
    results = as_dict(transfer(parse(wanted), say=silent))
    # A task adapter, the references of sw and tr; the language adapters of en, sw and tr, and a task adapter on en's.
    assert counted.runs["train"] == 3 + 4 and counted.runs["tune"] == 0
    assert counted.runs["merge"] == 2 * len(RIVALS)
    cells = {(cell["method"], cell["language"], cell["seed"]): cell for cell in results["cells"]}
    assert len(cells) == (1 + len(RIVALS)) * 2
    assert all(cell["against"]["method"] == "english_tuning" for cell in cells.values() if cell["method"] in RIVALS)
    folder = tmp_path / "run" / "adapters"
    made = {name: json.loads((folder / f"{name}-sw-seed1" / "lineage.json").read_text()) for name in ("ties", "dare")}
    assert made["dare"]["merge"] | {"seed": 1, "density": 0.6} == made["dare"]["merge"]
    assert {parent["language"] for parent in made["ties"]["parents"].values()} == {"en", "sw"}
    assert {made[name]["merge"]["space"] for name in ("ties", "dare")} == {"delta"}
    assert made["ties"]["structure"]["rank"] == 32  # of full rank: exact
    swapped = json.loads((folder / "layer_swapping-tr-seed1" / "lineage.json").read_text())
    assert swapped["merge"]["layers"] == [1.0, 0.0] and swapped["language"] == "tr"
    lower = folder / "language_arithmetic-sw-seed1" / "language"
    assert json.loads((lower / "lineage.json").read_text())["merge"]["weight"] == 0.25
    table = summary(parse_results(results), tmp_path / "run")
    assert all(label in table for label in ("Layer swapping", "Language arithmetic", "TIES", "DARE", "TIES (factors)"))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Language arithmetic" in page
    counted.runs.clear()
    assert as_dict(transfer(parse(wanted), say=silent))["cells"] == results["cells"] and not counted.runs


@pytest.mark.parametrize(
    ("structure", "merge_settings", "expected"),
    [
        ("lora", {}, {"ties": ("delta", None), "dare": ("delta", None), "ties_factors": ("factors", None)}),
        ("lora", {"rank": 3}, {"ties": ("delta", 3), "dare": ("delta", 3), "dare_factors": ("factors", None)}),
        ("ia3", {}, {"ties": ("factors", None), "dare": ("factors", None)}),
    ],
)
def test_ties_and_dare_of_each_structure(
    tiny_encoder: Path,
    small_data: Path,
    tmp_path: Path,
    structure: str,
    merge_settings: dict[str, Any],
    expected: dict[str, tuple[str, int | None]],
) -> None:
    wanted = settings(
        tiny_encoder, small_data, tmp_path / "run", methods=list(expected), targets=["sw"], proxy=None, seeds=[1],
        structure={"kind": structure}, merge=merge_settings,
    )  # fmt: skip
    transfer(parse(wanted), say=silent)
    for name, (space, rank) in expected.items():
        folder = tmp_path / "run" / "adapters" / f"{name}-sw-seed1"
        made = json.loads((folder / "lineage.json").read_text())["merge"]
        assert (made["rule"], made["space"], made["rank"]) == (name, space, rank)
        cut = [item["truncation"] for item in json.loads((folder / "merge_report.json").read_text())["modules"]]
        assert all((part is not None and part > 0) == (rank is not None) for part in cut)


def test_language_arithmetic_is_the_mix_of_two_language_adapters(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    wanted = settings(
        tiny_encoder, small_data, tmp_path / "run", methods=["mad_x", "language_arithmetic"], targets=["sw"],
        proxy=None, mad_x={**MAD_X, "arithmetic": 1.0},
    )  # fmt: skip
    results = as_dict(transfer(parse(wanted), say=silent))
    found = {cell["method"]: cell for cell in results["cells"]}
    # λ = 1 is MAD-X itself, item by item.
    lines = [(tmp_path / "run" / found[name]["predictions"]).read_text() for name in ("mad_x", "language_arithmetic")]
    assert lines[0] == lines[1]
    config = absolute(parse({**wanted, "mad_x": {**MAD_X, "arithmetic": 0.3}}))
    plan, store = Plan(config, facts(config)), Store(tmp_path / "run" / "store")
    step = plan.adapters["language_arithmetic", "sw", 0][0]
    source, target = (
        loaded_adapter.read_tensors(store.path(step.inputs[role])) for role in ("task", "target_reference")
    )
    merge(
        task=store.path(step.inputs["task"]), target_reference=store.path(step.inputs["target_reference"]),
        weight=step.job.weight, rule=step.job.rule, modules=step.job.modules, output=tmp_path / "mixed",
    )  # fmt: skip
    for name, tensor in loaded_adapter.read_tensors(tmp_path / "mixed").items():
        expected = 0.7 * source[name].double() + 0.3 * target[name].double()
        assert_allclose(tensor.double().numpy(), expected.numpy(), rtol=1e-5, atol=1e-7)


class Trio:
    """Task, target and source reference on a tiny model, and the job whose inputs are looked at."""

    def __init__(
        self, base: Path, data: Path, folder: Path, structure: dict[str, Any], batch_tokens: int = 200
    ) -> None:
        config = absolute(parse(settings(base, data, folder, structure=structure, methods=["adamergex"])))
        known = facts(config)
        shared = {"base": str(base), "structure": Structure.model_validate(structure)}
        reference = {"kind": "language-modeling", "segment": 16, "segments": 8}
        for role, task, language, rows in (
            ("task", known.task, "en", "train.tsv"),
            ("target_reference", reference, "sw", "txt"),
            ("source_reference", reference, "en", "txt"),
        ):
            path = Rows(path=f"{data}/{language}.{rows}")
            job = {**shared, "task": task, "language": language, "rows": path, "optimisation": QUICK}
            train.train(TrainJob.model_validate(job), folder / role)
        self.paths: dict[str, Any] = {role: folder / role for role in ("task", "target_reference", "source_reference")}
        self.job = EvaluateJob(
            base=str(base), task=known.task, language="sw", rows=Rows(path=f"{data}/sw.test.tsv"),
            batch_tokens=batch_tokens,
        )  # fmt: skip

    def entropy(self, weight: Any, folder: Path) -> float:
        """The oracle: the merge written, loaded and evaluated the usual way; H in float64 from the stored scores."""
        merge(**self.paths, weight=weight, modules="all", output=folder / "merged")
        evaluate(self.job, folder / "merged", folder / "out")
        lines = (folder / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        found = []
        for line in lines:
            log_p = np.array(list(json.loads(line)["scores"].values()), np.float64)
            log_p -= np.logaddexp.reduce(log_p)
            found.append(-(np.exp(log_p) * log_p).sum())
        return 100 * float(np.mean(found)) / math.log(4)


LORA = {"kind": "lora", "rank": 2, "alpha": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trio:
    return Trio(tiny_encoder, small_data, tmp_path_factory.mktemp("trio"), LORA)


@pytest.mark.parametrize("structure", [LORA, {"kind": "ia3"}, {"kind": "bottleneck", "reduction": 4}])
def test_the_curve_is_the_entropy_of_what_a_merge_writes(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, structure: dict[str, Any]
) -> None:
    trio = Trio(tiny_encoder, small_data, tmp_path, structure)
    grid = [0.0, 0.25, 0.5, 0.75, 1.0]
    found = minimise(**trio.paths, job=trio.job, grid=grid, spec=ALL, output=tmp_path / "tuned")
    oracle = [trio.entropy(weight, tmp_path / f"{weight}") for weight in grid]
    assert_allclose([point.score for point in found.curve], oracle, rtol=1e-5, atol=1e-5)
    assert found.chosen == grid[int(np.argmin(oracle))] and found.reached == min(point.score for point in found.curve)
    for point in found.curve:
        assert point.interval[0] <= point.score <= point.interval[1]
    assert json.loads((tmp_path / "tuned" / "tuning.json").read_text()) == found.model_dump(exclude_unset=True)


def test_a_weight_a_layer_is_where_an_oracle_grid_has_it(encoder: Trio, tmp_path: Path) -> None:
    found = minimise(**encoder.paths, job=encoder.job, grid=[0.0, 0.5, 1.0], granularity="layer", spec=ALL)
    assert len(found.layers) == 2 and found.chosen == pytest.approx(np.mean(found.layers))
    assert all(0 <= weight <= 1 for weight in found.layers)
    assert found.reached <= min(point.score for point in found.curve) + 1e-5
    assert found.reached == pytest.approx(encoder.entropy(found.layers, tmp_path / "reached"), rel=1e-5)
    ticks = np.linspace(0, 1, 6)
    oracle = {(one, two): encoder.entropy([one, two], tmp_path / f"{one}-{two}") for one in ticks for two in ticks}
    best = min(oracle, key=oracle.__getitem__)
    assert found.reached <= oracle[best] + 1e-3  # no worse than the best of the grid
    assert_allclose(found.layers, best, atol=0.2)  # a step of the grid
    again = minimise(**encoder.paths, job=encoder.job, grid=[0.0, 0.5, 1.0], granularity="layer", spec=ALL)
    assert again == found


def test_the_gradient_is_that_of_the_written_merges(encoder: Trio, tmp_path: Path) -> None:
    """dH/dλ_l against central differences of merges that go through files."""
    from adamergex.merging import merged_tensors
    from adamergex.merging.layers import numbered
    from adamergex.search.entropy import _gradients, _Objective
    from adamergex.search.tuning import on_model, widened
    from adamergex.tasks.certainty import Unlabelled
    from adamergex.tasks.rows import read

    prepared = prepare(ALL, **encoder.paths)
    loaded, at = load_for(encoder.job, bare=False), [0.4, 0.6]
    search = on_model(prepared, [0.0], loaded)
    _, placed = next(search)
    rows = read(encoder.job.task, encoder.job.rows, "sw")
    inputs = Unlabelled(encoder.job.task, rows, loaded, placed.model.eval(), None)
    weights = torch.tensor(at, requires_grad=True)
    places, _ = numbered(prepared.own.layout.sites)
    merged = merged_tensors(
        *widened(prepared.adapters).tensors, {module: weights[place] for module, place in places.items()}, modules="all"
    )
    placed.replace({name: value.detach() for name, value in merged.items()}, where="test")
    moved = {name: value for name, value in merged.items() if value.requires_grad}
    entropy, gradients = _gradients(_Objective(prepared, inputs, 200), placed, moved)
    torch.autograd.backward(list(moved.values()), gradients)
    search.close()
    assert weights.grad is not None
    assert 100 * entropy / inputs.most == pytest.approx(encoder.entropy(at, tmp_path / "at"), rel=1e-5)
    for layer in range(2):
        ends = []
        for side in (-1, 1):
            moved_by = [weight + side * 0.02 * (place == layer) for place, weight in enumerate(at)]
            ends.append(encoder.entropy(moved_by, tmp_path / f"{layer}{side}") * inputs.most / 100)
        expected = (ends[1] - ends[0]) / 0.04
        assert float(weights.grad[layer]) == pytest.approx(expected, rel=2e-2, abs=2e-4)


def test_labels_are_never_read(encoder: Trio, tmp_path: Path) -> None:
    path = Path(str(encoder.job.rows.path))  # type: ignore[union-attr]
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    texts = [line.split("\t")[1] for line in lines]
    (tmp_path / "sw.tsv").write_text("\n".join([head, *(f"nature\t{text}" for text in texts)]) + "\n", encoding="utf-8")
    blind = encoder.job.model_copy(update={"rows": Rows(path=str(tmp_path / "sw.tsv"))})
    found = [
        minimise(**encoder.paths, job=job, grid=[0.5, 1.0], granularity="layer", spec=ALL)
        for job in (encoder.job, blind)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_models_that_write_are_as_certain_as_their_label_scores(
    families: dict[str, str], small_data: Path, tmp_path: Path, family: str
) -> None:
    """p(label) ∝ p(words, end | prompt): each probability from transformers' own loss, one label at a time."""
    from adamergex.tasks import running
    from adamergex.tasks.certainty import Unlabelled
    from adamergex.tasks.rows import read

    config = absolute(parse(settings(Path(families[family]), small_data, tmp_path)))
    task = facts(config).task.model_copy(update={"words": {"travel": "the train is late"}})
    job = EvaluateJob(
        base=families[family], task=task, language="sw", rows=Rows(path=f"{small_data}/sw.test.tsv", limit=6)
    )
    rows, loaded = read(task, job.rows, "sw"), load_for(job, bare=False)
    loaded.model.eval()
    inputs = Unlabelled(task, rows, loaded, loaded.model, None)
    found = np.zeros(len(rows))
    with torch.no_grad():
        for indices, entropies in inputs.entropies(loaded.model, 120):
            found[indices] = entropies.numpy()
        for index, row in enumerate(rows):
            log_p = []
            for label in task.labels:
                made = running.train_examples(task, [{**row, "label": label}], loaded)
                batch = made.batch([0], 0)
                labels = batch["labels"]
                learned = labels if family == "t5" else labels[:, 1:]
                loss = loaded.model(**batch).loss if family == "llama" else made.loss(loaded.model, batch)
                log_p.append(-float(loss) * int((learned != -100).sum()))
            log_p = np.array(log_p) - np.logaddexp.reduce(log_p)
            assert found[index] == pytest.approx(float(-(np.exp(log_p) * log_p).sum()), rel=1e-4, abs=1e-5)
    assert inputs.most == math.log(4)


def test_what_entropy_cannot_search_is_refused(encoder: Trio) -> None:
    with pytest.raises(ConfigError, match=r"λ in \[0, 1\]"):
        minimise(**encoder.paths, job=encoder.job, grid=[0.0, 2.0])
    with pytest.raises(ConfigError, match="a λ per layer is for the factors"):
        minimise(**encoder.paths, job=encoder.job, grid=[0.5], granularity="layer", spec=MergeSpec(space="delta"))


@pytest.mark.parametrize("granularity", ["all", "layer"])
def test_entropy_the_whole_way(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting, granularity: str
) -> None:
    wanted = settings(
        tiny_encoder, small_data, tmp_path / "run", methods=["english_tuning", "adamergex", "adamergex_cross"],
        proxy=None, merge={"weight": "entropy", "granularity": granularity, "grid": [0.5, 1.0], "unlabelled_rows": 10},
    )  # fmt: skip
    del wanted["task"]["validation"]
    results = as_dict(transfer(parse(wanted), say=silent))
    assert counted.runs["tune"] == 2 * 2  # for every target: no proxy
    assert {(run["method"], run["proxy"]) for run in results["tuning"]} == {
        (method, language) for method in ("adamergex", "adamergex_cross") for language in ("sw", "tr")
    }
    chosen = {(run["method"], run["proxy"]): run for run in results["tuning"]}
    for cell in results["cells"]:
        if cell["method"] != "english_tuning":
            run = chosen[cell["method"], cell["language"]]
            assert cell["weight"] == pytest.approx(run["chosen"])
            stored = json.loads((tmp_path / "run" / cell["adapter"] / "lineage.json").read_text())["merge"]
            assert stored.get("layers") == run["layers"]
            assert (run["layers"] is None) == (granularity == "all")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "entropy in %" in page and "Least entropy on unlabelled sw" in page
    assert "sw (entropy)" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "least entropy: adamergex sw" in summary(parse_results(results), tmp_path / "run")
    counted.runs.clear()
    assert as_dict(transfer(parse(wanted), say=silent))["cells"] == results["cells"] and not counted.runs


def without_labels(path: Path, label: bool | None) -> str:
    """The rows of a labelled file with their labels, with empty ones (False), or without the column (None)."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    place = lines[0].index("label")
    for line in lines if label is None else lines[1:] if label is False else []:
        line[place : place + 1] = [] if label is None else [""]
    return "".join("\t".join(line) + "\n" for line in lines)


def test_entropy_reads_files_without_labels(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting
) -> None:
    """And is the same search, under the same key, as with them."""
    wanted = settings(
        tiny_encoder, small_data, tmp_path / "run", methods=["adamergex"], targets=["sw"], proxy=None,
        merge={"weight": "entropy", "grid": [0.5, 1.0], "unlabelled": "validation"},
    )  # fmt: skip
    file = tmp_path / "sw.tsv"
    wanted["task"] |= {"labels": ["nature", "health", "sports", "travel"], "validation": f"{tmp_path}/{{language}}.tsv"}
    found = []
    for label in (True, False, None):
        file.write_text(without_labels(small_data / "sw.validation.tsv", label), encoding="utf-8")
        found.append(as_dict(transfer(parse(wanted), say=silent))["tuning"])
    assert counted.runs["tune"] == 1 and found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("task", "labelled"),
    [
        ({"kind": "classification", "labels": ["a", "b"]}, {"text": "one", "label": "b"}),
        ({"kind": "pair-classification", "labels": ["a", "b"]}, {"premise": "p", "hypothesis": "h", "label": "b"}),
        (
            {"kind": "multiple-choice", "context": "{text}", "choices": ["x", "y"], "prompt": "{text}"},
            {"text": "t", "x": "1", "y": "2", "label": 1},
        ),
        ({"kind": "tagging", "types": ["PER"]}, {"tokens": ["Ann", "ran"], "tags": ["B-PER", "O"]}),
    ],
)
def test_rows_without_labels_are_read_alike(task: dict[str, Any], labelled: dict[str, Any], tmp_path: Path) -> None:
    found, kind = [], TypeAdapter(Task).validate_python(task)
    for row in (labelled, {name: value for name, value in labelled.items() if name not in ("label", "tags")}):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
        rows = Rows(path=str(tmp_path / "rows.jsonl"), columns={"label": "label"} if "label" in labelled else {})
        found.append(read(kind, rows, "en", labelled=False))
    assert found[0] == found[1] and found[0][0].keys() >= labelled.keys()
    with pytest.raises(DataError, match="there is no column '(label|tags)'"):
        read(kind, rows, "en")


def test_a_labelled_task_as_reference(tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting) -> None:
    """Table 5: the references are trained on labelled rows of the source and of every target."""
    train = {"train": f"{small_data}/{{language}}.train.tsv", "optimisation": QUICK}
    wanted = settings(
        tiny_encoder, small_data, tmp_path / "run", methods=["english_tuning", "adamergex", "average"],
        reference={"kind": "task", "task": {**train, "name": "topics"}}, merge={"weight": 0.5}, proxy=None,
    )  # fmt: skip
    results = as_dict(transfer(parse(wanted), say=silent))
    assert counted.runs["train"] == 4  # the task; the references of en, sw, tr
    adapters = {(item["name"], item["language"]) for item in results["adapters"]}
    assert adapters == {("task · en · seed 0", "en")} | {
        (f"reference · {language} · seed 0", language) for language in ("en", "sw", "tr")
    }
    assert {item["task"] for item in results["adapters"]} == {"classification"}
    merged = tmp_path / "run" / "adapters" / "adamergex-sw-seed0"
    parents = json.loads((merged / "lineage.json").read_text())["parents"]
    assert {role: parent["language"] for role, parent in parents.items()} == {
        "task": "en", "target_reference": "sw", "source_reference": "en"
    }  # fmt: skip
    report = json.loads((merged / "merge_report.json").read_text())
    assert report["heads"] and report["ignored_heads"] and report["counts"]["changed"]
    counted.runs.clear()
    assert as_dict(transfer(parse(wanted), say=silent))["cells"] == results["cells"] and not counted.runs


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("modules", {"merge": {"weight": 0.5, "modules": "all"}}),
        ("source", {"source": "fr", "targets": ["sw"]}),
        ("structure", {"structure": {"kind": "ia3"}}),
        ("backbone", {"base": "llama"}),
    ],
)
def test_the_settings_of_the_ablations(
    tiny_encoder: Path, small_data: Path, families: dict[str, str], tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    if name == "backbone":
        changes = {"base": families[changes["base"]]}
    wanted = settings(
        Path(changes.pop("base", tiny_encoder)), small_data, tmp_path / "run",
        **{"methods": ["adamergex"], "targets": ["sw"], "proxy": None, "merge": {"weight": 0.5}, **changes},
    )  # fmt: skip
    (cell,) = as_dict(transfer(parse(wanted), say=silent))["cells"]
    merged = tmp_path / "run" / cell["adapter"]
    lineage, report = (json.loads((merged / f"{file}.json").read_text()) for file in ("lineage", "merge_report"))
    assert lineage["structure"]["kind"] == report["kind"] == wanted["structure"]["kind"]
    assert lineage["parents"]["task"]["language"] == lineage["parents"]["source_reference"]["language"]
    assert lineage["parents"]["task"]["language"] == wanted.get("source", "en")
    whole = name in ("modules", "structure")
    assert (report["counts"]["copied"] == 0) == whole and report["counts"]["changed"] > 0
    assert lineage["base"]["name"] == wanted["base"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["ties"], "structure": {"kind": "prefix"}}, "ties is for lora and ia3, the structure is prefix"),
        ({"methods": ["dare_factors"], "structure": {"kind": "ia3"}}, "dare_factors is for lora, the structure is ia3"),
        ({"methods": ["layer_swapping"], "structure": {"kind": "prefix"}}, "layer_swapping is for adapters in layers"),
        ({"merge": {"granularity": "layer"}}, "only entropy finds a λ per layer"),
        ({"merge": {"weight": "entropy", "granularity": "layer", "space": "delta"}}, "is for factors, here is space"),
        ({"merge": {"weight": "entropy", "grid": [2.0]}}, r"minimised over λ in \[0, 1\]"),
        ({"merge": {"swap": {"botom": 1}}}, "did you mean 'bottom'"),
        ({"merge": {"combine": {"density": 0}}}, "merge.combine.density"),
        ({"reference": {"kind": "task"}}, "reference.task: missing"),
        ({"reference": {"kind": "tsak"}}, "reference.kind: 'tsak' is not one of"),
        ({"reference": {"kind": "task", "task": {"train": "en.tsv"}}}, "reference.task.train: 'en.tsv' has no"),
        (
            {"methods": ["mad_x"], "reference": {"kind": "task", "task": {"train": "{language}.tsv"}}},
            "reference.text: missing; mad_x trains on it",
        ),
        ({"reference": {"txt": "{language}.txt"}}, "reference.txt: no such setting; did you mean 'text'"),
    ],
)
def test_settings_that_do_not_go_together(
    small_data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(settings(tmp_path, small_data, tmp_path, **changes))


def test_old_merges_keep_their_keys(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    """Stores of before there were rivals stay good: the identities of merges and searches hold what they held."""
    config = absolute(parse(settings(tiny_encoder, small_data, tmp_path)))
    plan = Plan(config, facts(config))
    merges = {step.kind: step for stack in plan.adapters.values() for step in stack}
    assert set(merges["merge"].identity) == {"rule", "space", "modules", "rank", "weight"}
    assert all(set(step.identity) == {"merge", "grid", "evaluate"} for step in plan.tunings.values())
