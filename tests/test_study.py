"""Studies: every adapter once for all tables, only what a change touches, kill and go on, plans, lists and removal."""

from __future__ import annotations

import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from adamergex.backbones import loading
from adamergex.cli.main import main
from adamergex.config.changes import parse_change
from adamergex.config.study import Assumed, Study, inherited, parse_study
from adamergex.config.transfer import parse
from adamergex.errors import ConfigError
from adamergex.files.locks import file_lock
from adamergex.graph.inventory import Garbage, collect_garbage, entries, forget_study, garbage, record, studies
from adamergex.graph.local import StepsFailedError, run
from adamergex.graph.steps import Step, Store, short
from adamergex.jobs.settings import EvaluateJob, Structure, TrainJob
from adamergex.tables.devices import DEVICES
from adamergex.tables.estimate import backbone_parameters, estimate, flops_factor
from adamergex.tables.study import Engine, dry_run, run_study
from adamergex.tables.study_plan import StudyPlan
from adamergex.tables.transfer import transfer
from commands import command, start

QUICK = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2}
TOPICS = ("nature", "health", "sports", "travel")
TEXTS = ("the river is deep", "un bon médecin aide", "mechi ilishindwa", "trenimiz gecikti")
TARGETS = ["sw", "tr", "ar", "de", "es", "hi", "ru", "th", "vi", "zh", "yo", "fr"]
TASKS = ["topics", "intents", "stances", "tones", "genres"]


def settings(base: Path, data: Path, output: Path, tasks: list[str], **changes: Any) -> dict[str, Any]:
    files = {part: f"{data}/{{language}}.{part}.tsv" for part in ("train", "validation", "test")}
    return {
        "title": "A tiny study",
        "base": str(base),
        "structure": {"kind": "lora", "rank": 2, "alpha": 4},
        "proxy": "fr",
        "targets": ["sw", "tr"],
        "methods": ["vanilla", "english_tuning", "adamergex"],
        "task": {"optimisation": QUICK},
        "reference": {"text": f"{data}/{{language}}.txt", "segment": 16, "optimisation": QUICK},
        "merge": {"grid": [0.5, 1.0]},
        "tasks": {name: {"task": dict(files)} for name in tasks},
        "output": str(output),
        **changes,
    }


@pytest.fixture(scope="module")
def wide_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few lines of labelled and raw text for the source and twelve targets."""
    folder = tmp_path_factory.mktemp("wide")
    for number, language in enumerate(["en", *TARGETS]):
        rows = "\n".join(f"{topic}\t{text} {number}" for topic, text in zip(TOPICS, TEXTS, strict=True))
        for part in ("train", "validation", "test"):
            (folder / f"{language}.{part}.tsv").write_text(f"label\ttext\n{rows}\n", encoding="utf-8")
        # The texts differ in length, so that tables with other targets would be cut differently.
        lines = "\n".join(f"{text} {line} {number}" for line in range(8 + number) for text in TEXTS)
        (folder / f"{language}.txt").write_text(f"{lines}\n", encoding="utf-8")
    return folder


class Recorder:
    """An action for every kind that counts its labels; it fails where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.runs: Counter[str] = Counter()
        self.fails = fails

    def __getitem__(self, kind: str) -> Callable[..., None]:
        def work(job: Any, inputs: Any, output: Path, workdir: Path) -> None:
            task = getattr(job, "task", None)
            name = getattr(task, "name", getattr(task, "kind", ""))
            if self.fails and self.fails == f"{kind} {name} {getattr(job, 'language', None)}":
                raise ValueError("broken on purpose")
            self.runs[kind] += 1
            output.mkdir()
            (output / "file").write_text(kind)

        return work


def fake(plan: StudyPlan, store: Store, fails: str = "") -> Counter[str]:
    recorder = Recorder(fails)
    run(plan.steps, store, recorder, say=silent)  # type: ignore[arg-type]
    return recorder.runs


def silent(line: str) -> None:
    pass


# --- one adapter, once


@pytest.mark.parametrize("narrow", [False, True])
def test_twelve_targets_and_five_tasks_are_eighteen_trainings(
    tiny_encoder: Path, wide_data: Path, tmp_path: Path, narrow: bool
) -> None:
    wanted = settings(tiny_encoder, wide_data, tmp_path, TASKS, targets=TARGETS, proxy=None, merge={"weight": 0.5})
    if narrow:  # a task without some languages shares the references of the others all the same
        wanted["tasks"]["genres"]["targets"] = TARGETS[5:]
    plan = StudyPlan(parse_study(wanted))
    trainings = [step for step in plan.steps if step.kind == "train"]
    assert len(trainings) == len(TARGETS) + 1 + len(TASKS) == 18
    assert fake(plan, Store(tmp_path / "store"))["train"] == 18
    assert not fake(StudyPlan(parse_study(wanted)), Store(tmp_path / "store"))


def test_ablations_share_what_they_do_not_change(tiny_encoder: Path, wide_data: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_encoder, wide_data, tmp_path, TASKS[:2])
    wanted["variants"] = {
        "all-modules": {"merge": {"modules": "all"}, "methods": ["adamergex"]},
        "fixed": {"merge": {"weight": 0.3}, "methods": ["adamergex"]},
        "from-de": {"source": "de", "only": ["topics"]},
        "ia3": {"structure": {"kind": "ia3"}},
    }
    plan = StudyPlan(parse_study(wanted))
    names = ["", "-all-modules", "-fixed", "-from-de", "-ia3"]
    assert list(plan.tables) == [
        f"{task}{name}" for task in TASKS[:2] for name in names if task == "topics" or name != "-from-de"
    ]
    trained = Counter(step.job.structure.kind for step in plan.steps if step.kind == "train")
    # LoRA: references of en, fr, sw, tr, de; two English task adapters and a German one. (IA)³ lacks the German two.
    assert trained == Counter(lora=8, ia3=6)


def test_a_change_runs_only_what_it_touches(tiny_encoder: Path, wide_data: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def runs(change: Callable[[dict[str, Any]], object] = lambda wanted: None) -> Counter[str]:
        wanted = settings(tiny_encoder, wide_data, tmp_path, TASKS[:2])
        change(wanted)
        return fake(StudyPlan(parse_study(wanted)), store)

    # A table: two references of targets, the proxy's and the source's, a task adapter; Eng-FT and base for two targets.
    assert runs() == Counter(train=6, tune=2, merge=4, evaluate=12)
    assert not runs()
    assert runs(lambda wanted: wanted.update(merge={"grid": [0.25]})) == Counter(tune=2, merge=4, evaluate=4)
    assert runs(lambda wanted: wanted.update(merge={"weight": 0.5})) == Counter(merge=4, evaluate=4)
    slower = {"optimisation": {**QUICK, "learning_rate": 1e-3}}
    assert runs(lambda wanted: wanted["tasks"]["topics"]["task"].update(slower)) == Counter(
        train=1, tune=1, merge=2, evaluate=4
    )
    more = Counter(train=1, merge=2, evaluate=6)
    assert runs(lambda wanted: wanted.update(targets=["sw", "tr", "vi"])) == more
    assert runs(lambda wanted: wanted["tasks"].update(tones=wanted["tasks"]["topics"])) == Counter(
        train=1, tune=1, merge=2, evaluate=6
    )
    assert runs(lambda wanted: wanted.update(seeds=[0, 1])) == Counter(train=6, tune=2, merge=4, evaluate=8)
    assert runs(lambda wanted: wanted.update(title="Another", output=str(tmp_path / "other"))) == Counter()


def test_a_failure_stops_only_what_needs_it(tiny_encoder: Path, wide_data: Path, tmp_path: Path) -> None:
    plan = StudyPlan(parse_study(settings(tiny_encoder, wide_data, tmp_path, TASKS[:2])))
    store = Store(tmp_path / "store")
    with pytest.raises(StepsFailedError, match="broken on purpose") as caught:
        fake(plan, store, fails="train language-modeling sw")
    missing = [step for step in plan.steps if not store.has(step)]
    assert Counter(step.kind for step in missing) == Counter(train=1, merge=2, evaluate=2)
    assert f"{len(missing)} of {len(plan.steps)} steps failed" in str(caught.value)
    for step in missing:
        assert step.kind == "train" or "sw" in step.label
        assert f"{step.kind} {step.label}" in str(caught.value)
    assert fake(plan, store) == Counter(train=1, merge=2, evaluate=2)


def test_forced_steps_and_what_needs_them_are_done_again(tiny_encoder: Path, wide_data: Path, tmp_path: Path) -> None:
    plan = StudyPlan(parse_study(settings(tiny_encoder, wide_data, tmp_path, TASKS[:2])))
    store = Store(tmp_path / "store")
    everything = fake(plan, store)

    def forced(pattern: str) -> Counter[str]:
        for step in plan.matching(pattern):
            store.forget(step)
        return fake(plan, store)

    assert forced("*") == everything
    assert forced("evaluate") == Counter(evaluate=12)
    assert forced("reference · sw*") == Counter(train=1, merge=2, evaluate=2)
    assert forced("reference · fr") == Counter(train=1, tune=2, merge=4, evaluate=4)
    with pytest.raises(ConfigError, match="no step of the study matches(.|\n)*nonsense"):
        plan.matching("nonsense")


# --- settings


def test_all_problems_of_a_study_at_once(tiny_encoder: Path, wide_data: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_encoder, wide_data, tmp_path, ["topics", "tones"], methods=["adamerge"], varaints={})
    wanted["tasks"]["tones"]["task"] = {"tran": "x"}
    wanted["tasks"]["topics"]["proxi"] = "fr"
    wanted["variants"] = {"de": {"source": "de", "only": ["topic"]}, "odd": {"merge": {"modlues": "all"}}}
    with pytest.raises(ConfigError) as caught:
        parse_study(wanted)
    text = str(caught.value)
    assert "varaints: no such setting; did you mean 'variants'?" in text
    assert text.count("methods.0: 'adamerge' is not one of") == 1  # a common setting: said once, for no table
    assert "  - methods.0" in text
    assert "tones, tones-odd: task.tran: no such setting; did you mean 'train'?" in text
    assert "tones, tones-odd: task.test: missing" in text
    assert "topics, topics-odd: proxi: no such setting; did you mean 'proxy'?" in text
    assert "variants.de.only: there is no task 'topic'; did you mean 'topics'?" in text
    assert "topics-odd, tones-odd: merge.modlues: no such setting; did you mean 'modules'?" in text


def test_contradictions_name_their_table(tiny_encoder: Path, wide_data: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_encoder, wide_data, tmp_path, ["topics", "tones"])
    wanted["variants"] = {"from-sw": {"source": "sw", "only": ["tones"]}}
    with pytest.raises(ConfigError, match="1 problem in the settings:\n  - tones-from-sw: targets: 'sw' is the source"):
        parse_study(wanted)
    with pytest.raises(ConfigError, match="tasks: missing"):
        parse_study({"base": "nano"})


def test_inheritance() -> None:
    common = {"a": {"kind": "x", "n": 1, "m": 2}, "b": [1], "c": 3}
    assert inherited(common, {"a": {"n": 5}, "b": [2]}) == {"a": {"kind": "x", "n": 5, "m": 2}, "b": [2], "c": 3}
    assert inherited(common, {"a": {"kind": "y", "k": 1}}) == {"a": {"kind": "y", "k": 1}, "b": [1], "c": 3}
    common_reference = {"reference": {"text": "t", "segment": 64}, "structure": {"rank": 4}}
    labelled = {"reference": {"kind": "task", "task": {}}, "structure": {"kind": "lora", "alpha": 8}}
    assert inherited(common_reference, labelled) == {
        "reference": {"kind": "task", "task": {}},  # text is what a reference without a kind is
        "structure": {"rank": 4, "kind": "lora", "alpha": 8},
    }
    assert inherited(common, {"a": {"m": None}, "c": None}) == {"a": {"kind": "x", "n": 1}, "b": [1]}
    assert common == {"a": {"kind": "x", "n": 1, "m": 2}, "b": [1], "c": 3}


def test_changes_have_the_last_word_in_every_table(tiny_encoder: Path, wide_data: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_encoder, wide_data, tmp_path, ["topics", "tones"])
    wanted["tasks"]["tones"]["task"]["optimisation"] = {"learning_rate": 5e-3}
    wanted["variants"] = {"ia3": {"structure": {"kind": "ia3"}, "targets": ["ar"]}}

    def changed(*texts: str) -> Study:
        return parse_study(wanted, changes=[parse_change(text) for text in texts])

    study = changed(
        "task.optimisation.learning_rate=2e-4", "targets=[sw, de]", 'reference.text={path: "x{language}", limit: 3}'
    )
    assert list(study.tables) == ["topics", "topics-ia3", "tones", "tones-ia3"]
    for table in study.tables.values():
        assert (table.task.optimisation.learning_rate, table.task.optimisation.steps) == (2e-4, QUICK["steps"])
        assert table.targets == ("sw", "de")
        assert table.reference.text is not None and (table.reference.text.limit, table.reference.segment) == (3, 16)
    study = changed("tasks.tones.targets=[sw]", "variants.fixed.merge.weight=0.5", f"store={tmp_path / 'else'}")
    assert study.store == str(tmp_path / "else") and study.tables["topics-fixed"].merge.weight == 0.5
    assert [study.tables[name].targets for name in ("topics", "tones", "tones-ia3")] == [("sw", "tr"), ("sw",), ("ar",)]
    study = changed("structure.rank=null")  # the variants have none
    assert study.tables["topics"].structure.rank == Structure().rank != wanted["structure"]["rank"]
    study = changed("tasks.tones=null", "merge.grid=null", "variants.ia3=null")
    assert list(study.tables) == ["topics"] and len(study.tables["topics"].merge.grid) == 11
    assert wanted["merge"] == {"grid": [0.5, 1.0]} and "tones" in wanted["tasks"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task.optimisation.steps", "not a setting(.|\n)*NAME=VALUE"),
        ("=3", "not a setting"),
        ("merge..grid=[0]", "not a setting"),
        ("merge.grid=[0", "the value is not valid YAML"),
        ("tasks.tons=null", "nothing to remove(.|\n)*no 'tasks.tons'(.|\n)*perhaps 'tones'"),
        ("tasks.tones.task.tset=null", "no 'tasks.tones.task.tset'(.|\n)*perhaps 'test'"),
        ("metods=null", "nothing to remove(.|\n)*no 'metods'(.|\n)*perhaps 'methods'"),
        ("merge.gird=null", "no 'merge.gird'(.|\n)*perhaps 'grid'"),
        ("task.optimisation.steps.x=null", "no 'task.optimisation.steps.x'(.|\n)*one of nothing"),
        ("base.name=x", "'base' has no settings inside"),
        ("merge.modlues=all", "  - merge.modlues: no such setting; did you mean 'modules'"),
        ("metods=[vanilla]", "  - metods: no such setting; did you mean 'methods'"),
        ("task.optimisation.steps=many", "  - task.optimisation.steps: Input should be a valid integer"),
    ],
)
def test_changes_that_fit_nothing_are_refused(
    tiny_encoder: Path, wide_data: Path, tmp_path: Path, text: str, message: str
) -> None:
    wanted = settings(tiny_encoder, wide_data, tmp_path, ["topics", "tones"])
    with pytest.raises(ConfigError, match=message):
        parse_study(wanted, changes=[parse_change(text)])


# --- a real study, whole and killed


@pytest.fixture(scope="module")
def finished(
    tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("study")
    wanted = settings(tiny_encoder, small_data, folder / "run", ["topics", "tones"])
    wanted["tasks"]["tones"]["task"] = {**wanted["tasks"]["tones"]["task"], "max_length": 40}
    wanted["variants"] = {"all": {"merge": {"modules": "all"}, "methods": ["english_tuning", "adamergex"]}}
    run_study(parse_study(wanted), say=silent)
    return wanted, folder / "run"


def test_a_real_study_writes_every_table(finished: tuple[dict[str, Any], Path]) -> None:
    wanted, output = finished
    found = json.loads((output / "study.json").read_text(encoding="utf-8"))
    assert list(found["tables"]) == ["topics", "topics-all", "tones", "tones-all"]
    assert found["steps"]["missing"] == 0 and all(table["complete"] for table in found["tables"].values())
    for name in found["tables"]:
        results = json.loads((output / name / "results.json").read_text(encoding="utf-8"))
        assert len(results["cells"]) == 2 * len(results["methods"])
        assert (output / name / "report.html").stat().st_size > 0
    assert len(list((output / "store" / "train").iterdir())) == 6  # four references, two tasks
    lines: list[str] = []
    again = run_study(parse_study(wanted), say=lines.append)
    assert again.steps.reused == again.steps.all and not [line for line in lines if line.startswith("[")]


def test_what_failed_leaves_other_tables_whole(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    wanted, output = finished
    broken = {**wanted, "output": str(tmp_path), "store": str(output / "store"), "variants": {}}
    broken["tasks"] = {**wanted["tasks"], "odd": {"task": {**wanted["tasks"]["topics"]["task"], "max_length": 1}}}
    lines: list[str] = []
    with pytest.raises(StepsFailedError, match=r"evaluate sw · base · seed 0(.|\n)*max_length"):
        run_study(parse_study(broken), say=lines.append)
    found = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert {name: table["complete"] for name, table in found["tables"].items()} == {
        "topics": True,
        "tones": True,
        "odd": False,
    }
    assert any("not done" in line and "odd" in line for line in lines)
    assert "evaluate sw · base · seed 0 (for odd)" in found["missing"]
    assert "not done:\n  evaluate sw · base · seed 0 (for odd)" in lines[-1]


def stamps(store: Store) -> dict[str, tuple[int, int]]:
    """What tells a result from the same result made again: its manifest's inode and time of writing."""
    found = {entry.key: (entry.path / "manifest.json").stat() for entry in entries(store)}
    return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in found.items()}


def test_a_real_study_killed_while_it_trains_goes_on(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    wanted, whole = finished
    wanted = {**wanted, "output": str(tmp_path / "run")}
    file, chance = tmp_path / "study.yaml", random.Random(3)
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    store, plan = Store(tmp_path / "run" / "store"), StudyPlan(parse_study(wanted))
    redone = 0
    for _ in range(2):
        before = stamps(store) if store.root.exists() else {}
        process = start("study", file).process
        target, deadline = len(before) + chance.randint(1, 5), time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            if store.root.exists() and len(entries(store)) >= target:
                break
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -9
        after = stamps(store)
        redone += sum(after[key] != stamp for key, stamp in before.items())
    done = stamps(store)
    ran: list[str] = []
    run_study(parse_study(wanted), say=ran.append)
    assert len([line for line in ran if line.startswith("[")]) == len(plan.steps) - len(done)
    last = stamps(store)
    assert redone == 0 and all(last[key] == stamp for key, stamp in done.items())
    assert last.keys() == {step.key for step in plan.steps}
    for step in plan.steps:  # the same bytes as the study that nobody stopped
        name = "predictions.jsonl" if step.kind == "evaluate" else "adapter_model.safetensors"
        if step.kind != "tune":
            assert (store.path(step) / name).read_bytes() == (Store(whole / "store").path(step) / name).read_bytes()


def test_processes_give_the_same_bytes(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    wanted, whole = finished
    study = parse_study({**wanted, "output": str(tmp_path), "variants": {}, "targets": ["sw"]})
    found = run_study(study, engine=Engine(workers=2), say=silent)
    assert found.steps.missing == 0
    written = sorted((tmp_path / "store").glob("*/*/adapter_model.safetensors"))
    assert len(written) == 7  # references of en, fr, sw; two tasks; a merge of each
    for path in written:
        assert path.read_bytes() == (whole / path.relative_to(tmp_path)).read_bytes()


def test_a_transfer_notes_what_it_needs(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    wanted = settings(tiny_encoder, small_data, tmp_path, ["topics"], methods=["english_tuning"])
    tasks = wanted.pop("tasks")
    transfer(parse(wanted | {"task": {**wanted["task"], **tasks["topics"]["task"]}}), say=silent)
    store = Store(tmp_path / "store")
    assert {entry.studies for entry in entries(store)} == {("A tiny study",)}
    assert garbage(store) == Garbage((), ())


# --- what it will cost


def test_an_estimate_meets_what_was_trained(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    wanted, output = finished
    plan = StudyPlan(parse_study(wanted))
    trained = [step for step in plan.steps if step.kind == "train"]
    known = sum(
        json.loads((Store(output / "store").path(step) / "lineage.json").read_text())["settings"]["training"]["tokens"]
        for step in trained
    )
    found = estimate(plan.steps, Store(tmp_path), Assumed())
    assert found.kinds["train"].tokens == pytest.approx(known, rel=0.25)
    assert found.kinds["train"].flops == pytest.approx(
        4 * backbone_parameters(wanted["base"]) * found.kinds["train"].tokens, rel=1e-12
    )
    assert found.kinds["merge"].flops == 0 and not found.notes
    items = 24  # rows of a test set
    searched = sum(step.kind == "tune" for step in plan.steps) * 3  # λ = 0, 0.5, 1
    pieces = found.kinds["tune"].tokens / (items * searched)
    assert 4 < pieces < 40 and found.kinds["tune"].flops == pytest.approx(
        2 * backbone_parameters(wanted["base"]) * found.kinds["tune"].tokens, rel=1e-12
    )
    done = estimate(plan.steps, Store(output / "store"), Assumed())
    assert done.flops == 0 and done.kinds["train"].present == len(trained)


def test_parameters_are_those_outside_the_embeddings(tiny_encoder: Path) -> None:
    hidden, inner, layers = 32, 48, 2
    attention, norms = 4 * (hidden * hidden + hidden), 2 * 2 * hidden
    feed_forward = 2 * hidden * inner + inner + hidden
    pooler, first_norm = hidden * hidden + hidden, 2 * hidden
    expected = layers * (attention + feed_forward + norms) + pooler + first_norm
    assert backbone_parameters(str(tiny_encoder)) == expected


def test_factors_of_the_formula() -> None:
    rows = {"path": "{language}.tsv"}
    shared = {"base": "nano", "task": {"kind": "classification", "labels": ["a", "b"]}, "language": "sw", "rows": rows}
    assert flops_factor(EvaluateJob.model_validate(shared)) == 2
    for kind, factor in (("lora", 4), ("bottleneck", 4), ("full", 6), ("sparse", 6)):
        job = TrainJob.model_validate({**shared, "structure": {"kind": kind}, "optimisation": {}})
        assert flops_factor(job) == factor


def test_absent_rows_are_assumed_up_to_their_limit(tmp_path: Path) -> None:
    wanted = settings(Path("nano"), tmp_path / "absent", tmp_path / "run", ["topics"], methods=["vanilla"])
    wanted["tasks"]["topics"]["task"] |= {"test": {"path": "none/{language}.tsv", "limit": 7}, "labels": ["a", "b"]}
    steps = StudyPlan(parse_study(wanted), assume=True).steps
    assert [estimate(steps, Store(tmp_path), Assumed(test_rows=rows, tokens=5)).tokens for rows in (100, 3)] == [
        2 * 7 * 5,
        2 * 3 * 5,
    ]


def test_an_estimate_loads_a_tokenizer_once(
    finished: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = loading.tokenizer
    monkeypatch.setattr(loading, "tokenizer", lambda base: (loads.append(base), load(base))[1])
    steps = StudyPlan(parse_study(finished[0])).steps
    loads.clear()
    assert estimate(steps, Store(tmp_path), Assumed()).tokens > 0
    assert len(loads) == len(set(loads)) == 1


def test_a_dry_run_needs_neither_model_nor_data_nor_network(tmp_path: Path) -> None:
    wanted = settings(Path("some-org/some-7b"), tmp_path / "absent", tmp_path / "run", ["topics", "tones"])
    wanted |= {"proxy": None, "merge": {"weight": 0.5}}
    for task in wanted["tasks"].values():
        task["task"]["labels"] = ["a", "b"]
    optimisation = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-3}
    wanted["task"] = {"optimisation": optimisation}
    wanted["reference"] |= {"segments": 1000, "segment": 512, "optimisation": optimisation}
    wanted["assumed"] = {"parameters": 6.5e9, "rows": 2000, "test_rows": 100, "tokens": 64}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    result = command("study", file, "--dry-run", "--device", "a100", "--workers", 2)
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    # References of en, sw, tr and two task adapters; 3 epochs each.
    tokens = 3 * (3 * 1000 * 512 + 2 * 2000 * 64)
    flops = 4 * 6.5e9 * tokens
    assert rows["train"][:3] == ["5", "0", "5"]
    assert [float(value) for value in rows["train"][3:5]] == pytest.approx([tokens, flops], rel=0.05)
    assert float(rows["train"][5]) == pytest.approx(flops / (2 * 312e12 * 0.35) / 3600, rel=0.01)
    assert rows["evaluate"][:3] == ["12", "0", "12"]
    assert float(rows["evaluate"][3]) == pytest.approx(12 * 100 * 64, rel=0.05)
    assert "assumed" in result.stdout and "parameters without embeddings: 6.5e+09" in result.stdout
    assert not (tmp_path / "run").exists()


def test_language_adapters_cost_steps_of_segments(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """MAD-X's have no number of segments: steps × batch × segment pieces, whatever the rows of text are."""
    wanted, _ = finished
    adapters = {"language": {"segment": 16, "optimisation": {"steps": 30, "batch_size": 4}}}
    changes = {"methods": ["mad_x"], "mad_x": adapters, "variants": {}, "store": str(tmp_path)}
    study = parse_study({**wanted, **changes})
    languages = [step for step in StudyPlan(study).steps if step.label.startswith("language")]
    assert len(languages) == 3
    assert estimate(languages, Store(tmp_path), Assumed()).tokens == pytest.approx(3 * 30 * 4 * 16)
    absent = parse_study({**wanted, **changes, "reference": {**wanted["reference"], "text": "none/{language}.txt"}})
    languages = [step for step in StudyPlan(absent, assume=True).steps if step.label.startswith("language")]
    found = estimate(languages, Store(tmp_path), Assumed(segments=500))
    assert found.tokens == pytest.approx(3 * 30 * 4 * 16) and "which is not here: 500" in found.notes[0]


def test_measured_speed_replaces_the_table(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    wanted, _ = finished
    study = parse_study({**wanted, "store": str(tmp_path)})
    found = estimate(StudyPlan(study).steps, Store(tmp_path), study.assumed)
    flops = 4 * backbone_parameters(wanted["base"])
    assert found.speed("h200", 1000.0) == pytest.approx(1000 * flops)
    assert found.speed("h200", None) == DEVICES["h200"].flops
    assert "1000 trained tokens a second" in dry_run(study, tokens_per_second=1000.0)


# --- lists and removal


def leaf(name: str, inputs: dict[str, Step] | None = None) -> Step:
    return Step("write", {"name": name}, {"task": {"name": name}}, inputs or {}, label=name)


def test_only_what_no_study_needs_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, root = Store(tmp_path / "store"), leaf("root")
    one, two, odd = leaf("one", {"a": root}), leaf("two", {"a": root}), leaf("odd")
    run([one, two, odd], store, Recorder(), say=silent)  # type: ignore[arg-type]
    record(store, "First", tmp_path / "first", [one])
    record(store, "Second", tmp_path / "second", [two])
    found = {entry.label: entry for entry in entries(store)}
    assert found["root"].studies == ("First", "Second") and found["odd"].studies == ()
    assert found["one"].bytes == 5
    stopped = store.workdir(leaf("three"))
    resumable = store.workdir(replace(one, identity={"name": "later"}))
    record(store, "Second", tmp_path / "second", [two, replace(one, identity={"name": "later"})])
    stage = store.root / "write" / f".stage-{short(odd.key)}-abc"
    stage.mkdir()
    agreed = garbage(store)
    assert [entry.label for entry in agreed.entries] == ["odd"] and set(agreed.leftovers) == {stopped, stage}
    collect_garbage(store, agreed)
    assert resumable.exists() and not stopped.exists() and not stage.exists()
    assert sorted(entry.label for entry in entries(store)) == ["one", "root", "two"]
    with pytest.raises(ConfigError, match=r"no study of this name(.|\n)*First, Second"):
        forget_study(store, "Thrid")
    monkeypatch.chdir(tmp_path)
    forget_study(store, "first/")  # its folder, as the user sees it from here
    collect_garbage(store, garbage(store))
    assert sorted(entry.label for entry in entries(store)) == ["root", "two"]
    record(store, "Renamed", tmp_path / "second", [root])  # the same output: the new note replaces the old one
    assert [note.title for note in studies(store)] == ["Renamed"]
    collect_garbage(store, garbage(store))
    assert [entry.label for entry in entries(store)] == ["root"] and not resumable.exists()


def test_what_is_in_progress_is_never_removed(tmp_path: Path) -> None:
    store, running = Store(tmp_path / "store"), leaf("running")
    record(store, "Another", tmp_path / "other", [])
    with store.lock(running), store.producing(running) as output:
        output.mkdir()
        assert store.workdir(running).exists()
        assert garbage(store) == Garbage((), ())
    stage = store.root / "write" / f".stage-{short(running.key)}-abc"
    stage.mkdir()
    agreed = garbage(store)
    assert len(agreed.entries) == 1 and agreed.leftovers == (stage,)
    with store.lock(running):  # started between the question and the answer
        assert collect_garbage(store, agreed).entries == ()
    record(store, "Late", tmp_path / "late", [running])
    assert collect_garbage(store, agreed).entries == ()
    assert store.has(running)
    with file_lock(store.root / "studies" / ".lock", wait=False) as free:
        assert free


def test_the_verbs(
    finished: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    wanted, output = finished
    file, store = tmp_path / "study.yaml", tmp_path / "store"
    small = {**wanted, "output": str(tmp_path / "run"), "store": str(store), "variants": {}, "targets": ["sw"]}
    small |= {"methods": ["english_tuning"], "tasks": {"topics": wanted["tasks"]["topics"]}}
    file.write_text(yaml.safe_dump({**small, "title": "Small"}), encoding="utf-8")
    assert main(["study", str(file), "--dry-run", "--device", "cpu"]) == 0
    assert "1 tables, 1 cells" in capsys.readouterr().out and not store.exists()
    assert main(["study", str(file), "--dry-run", "--set", "targets=[sw, tr]", "--set", "seeds=[0, 1]"]) == 0
    assert "1 tables, 4 cells" in capsys.readouterr().out
    assert main(["study", str(file)]) == 0
    assert "2 steps, 0 of them reused" in capsys.readouterr().out
    assert main(["study", str(file), "--force", "evaluate"]) == 0
    assert "2 steps, 1 of them reused" in capsys.readouterr().out
    assert main(["runs", str(store)]) == 0
    listed = capsys.readouterr().out
    assert "task · en · seed 0" in listed and "Small" in listed and "2 results" in listed
    file.write_text(yaml.safe_dump({**small, "title": "Small", "seeds": [1]}), encoding="utf-8")
    assert main(["study", str(file)]) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))  # then nobody answers
    assert main(["gc", str(store)]) == main(["gc", str(store)]) == 0
    assert "nothing removed" in capsys.readouterr().out and len(entries(Store(store))) == 4
    assert main(["gc", str(store), "--yes"]) == 0
    assert "removed: 2 results" in capsys.readouterr().out
    assert {entry.label.rpartition(" ")[2] for entry in entries(Store(store))} == {"1"}
    assert main(["gc", str(store)]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert main(["gc", str(store), "--forget", "Small", "--yes"]) == 0
    assert not entries(Store(store))
    assert main(["gc", str(store)]) == 2
    assert "everything would be removed" in capsys.readouterr().err
    assert main(["runs", str(tmp_path / "none")]) == 2
    assert "there is no store" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", str(file), "--workers", "0"])
    assert "'0' is not a number of workers" in capsys.readouterr().err
    file.write_text("tasks: {}\nbase: nano\n", encoding="utf-8")
    assert main(["study", str(file)]) == 2
    assert "adamergex: " in capsys.readouterr().err
