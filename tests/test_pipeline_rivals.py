"""The rivals that train weights, and XLT, through the whole way; and a method of the user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adamergex.adapters.sparse import read_difference
from adamergex.config.study import Assumed
from adamergex.config.transfer import METHODS, parse
from adamergex.errors import ConfigError
from adamergex.graph.steps import Step, Store
from adamergex.jobs.settings import (
    Classification,
    Generation,
    MultipleChoice,
    PairClassification,
    SpanAnswering,
)
from adamergex.methods import RECIPES
from adamergex.report.results_file import as_dict
from adamergex.report.results_file import parse as parse_results
from adamergex.tables.estimate import estimate
from adamergex.tables.plan import Plan, absolute, facts
from adamergex.tables.transfer import summary, transfer
from adamergex.tasks.answering.cross_lingual_thought import asked_with_xlt
from adamergex.tasks.catalogue import task_file
from test_pipeline import Counting, counted, settings, silent

__all__ = ["counted"]  # a fixture

QUICK = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3}
WEIGHTS = ["full_fine_tuning", "mlm_source", "mlm_target", "lf_sft"]
RIVALS: dict[str, Any] = {
    "full": {"language": {"segment": 16, "optimisation": QUICK}, "learning_rate": 1e-3},
    "lf_sft": {
        "language": {"segment": 16, "entries": 300, "first_steps": 2, "optimisation": QUICK},
        "task": {"entries": 0.05, "first_steps": 2, "optimisation": QUICK},
    },
    "proxy": None,
}


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_the_whole_way(
    tiny_encoder: Path, tiny_decoder: Path, small_data: Path, tmp_path: Path, counted: Counting, family: str
) -> None:
    base = tiny_encoder if family == "encoder" else tiny_decoder
    given = settings(base, small_data, tmp_path / "run", methods=["english_tuning", *WEIGHTS], **RIVALS)
    config = parse(given)
    results = as_dict(transfer(config, say=silent))
    # LoRA's task; the task on the base, on en, sw and tr; whole languages en, sw, tr; sparse ones; the sparse task.
    assert counted.runs["train"] == 1 + 4 + 3 + 3 + 1
    assert {(cell["method"], cell["language"]) for cell in results["cells"]} == {
        (method, language) for method in config.methods for language in config.targets
    }
    for cell in results["cells"]:
        found = (tmp_path / "run" / cell["predictions"]).read_text(encoding="utf-8").splitlines()
        assert cell["n"] == len(found) == 24
    table = summary(parse_results(results), tmp_path / "run")
    assert all(label in table for label in ("Full-FT", "MLM-SRC", "MLM-TRG", "LF-SFT"))
    sizes = {item["name"].partition(" ·")[0]: item for item in results["adapters"]}
    # K, and what moved exactly as far as the K-th (in the paper's code too): few steps of Adam move much equally far.
    moved = read_difference(tmp_path / "run" / "adapters" / "lf_sft-sw-seed0" / "language").sparse
    chosen = sum(len(tensor.indices) for tensor in moved.values())
    assert 300 <= chosen < 310 and sizes["sparse language"]["parameters"] in range(300, 310)
    assert sizes["sparse language"]["bytes"] < 300 * 8 + 8000 < sizes["full language"]["bytes"]
    # The output has what a cell was made of: the target's language, and a task that was learned on the source's.
    folder = tmp_path / "run" / "adapters" / "lf_sft-sw-seed0"
    assert read_difference(folder / "language").sparse and read_difference(folder / "task").sparse
    lineage = json.loads((folder / "task" / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["parents"]["base_adapter"]["language"] == "en" and lineage["language"] == "en"
    counted.runs.clear()
    assert as_dict(transfer(config, say=silent))["cells"] == results["cells"]
    assert sum(counted.runs.values()) == 0
    store, plan = Store(tmp_path / "run" / "store"), Plan(absolute(config), facts(absolute(config)))
    for (method, language, _), (*_, top) in plan.adapters.items():
        if method.startswith("mlm_"):
            below = json.loads((store.path(top) / "lineage.json").read_text())["parents"]["base_adapter"]["language"]
            assert below == (language if method == "mlm_target" else "en")


def test_languages_serve_every_task(tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting) -> None:
    shared = {"store": str(tmp_path / "store"), "methods": ["lf_sft", "mlm_target"], "targets": ["sw"], **RIVALS}
    transfer(parse(settings(tiny_encoder, small_data, tmp_path / "a", **shared)), say=silent)
    assert counted.runs["train"] == 2 + 1 + 1 + 1
    counted.runs.clear()
    other = settings(tiny_encoder, small_data, tmp_path / "b", **shared)
    other["task"]["max_length"] = 20
    transfer(parse(other), say=silent)
    assert counted.runs["train"] == 2  # the task, in two ways


def test_languages_may_have_steps_of_their_own(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    def trainings(own: dict[str, int]) -> dict[str, Step]:
        few = {"segment": 16, "optimisation": QUICK, "steps_by_language": own}
        given = {"mad_x": {"language": few}, "full": {"language": few}, "lf_sft": {"language": {**few, "entries": 300}}}
        wanted = settings(
            tiny_encoder, small_data, tmp_path, methods=["mad_x", "mlm_target", "lf_sft"], proxy=None, **given
        )
        config = absolute(parse(wanted))
        return {step.label: step for step in Plan(config, facts(config)).trainings}

    before, after = trainings({}), trainings({"sw": 2})
    own = {f"{kind} language · sw · seed 0" for kind in ("full", "sparse")} | {"language · sw · seed 0"}
    assert own < before.keys() == after.keys()
    # The target's own, and what is learned on them: MLM-TRG's task. Those of en and tr keep their keys.
    changed = {label for label in before if before[label].key != after[label].key}
    assert changed - own == {"full task on full language · sw · en · seed 0"}
    assert {after[label].job.optimisation.steps for label in own} == {2}
    assert all(before[label].job == after[label].job for label in before.keys() - own)
    with pytest.raises(ConfigError) as caught:
        trainings({"swa": 2})
    for place in ("mad_x", "full", "lf_sft"):
        assert f"{place}.language.steps_by_language: 'swa' is not one of the table's" in str(caught.value)
    assert "did you mean 'sw'?" in str(caught.value)


def test_the_task_of_lf_sft_freezes_layer_norms(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    """As composable-sft's own scripts of tasks do."""
    for given, frozen in (({}, True), ({"freeze_norms": False}, False)):
        rivals = {**RIVALS, "lf_sft": {**RIVALS["lf_sft"], "task": {**RIVALS["lf_sft"]["task"], **given}}}
        config = absolute(parse(settings(tiny_encoder, small_data, tmp_path, methods=["lf_sft"], **rivals)))
        (step,) = (step for step in Plan(config, facts(config)).trainings if step.label.startswith("sparse task"))
        assert step.job.structure.freeze_norms is frozen


def test_the_estimate_counts_both_phases(tiny_encoder: Path, small_data: Path, tmp_path: Path) -> None:
    config = absolute(parse(settings(tiny_encoder, small_data, tmp_path, methods=["lf_sft"], **RIVALS)))
    steps = [step for step in Plan(config, facts(config)).trainings if step.label.startswith("sparse language · sw")]
    (step,) = steps
    cost = estimate([step], Store(tmp_path / "store"), Assumed(parameters=10, tokens=16)).kinds["train"]
    # (2 + 3) steps of 8 segments of 16 pieces, and 6 FLOPs for each parameter.
    assert cost.tokens == pytest.approx(5 * 8 * 16, rel=0.35) and cost.flops == pytest.approx(cost.tokens * 6 * 10)


def test_xlt_asks_the_base_and_the_tuned_model(
    tiny_decoder: Path, small_data: Path, tmp_path: Path, counted: Counting
) -> None:
    methods = ["vanilla", "english_tuning", "xlt", "xlt_english_tuning"]
    config = parse(settings(tiny_decoder, small_data, tmp_path / "run", methods=methods, proxy=None))
    results = as_dict(transfer(config, say=silent))
    assert counted.runs["train"] == 1 and len(results["cells"]) == 8
    config = absolute(config)
    plan = Plan(config, facts(config))
    asked = {cell[0]: step for cell, step in plan.evaluations.items() if cell[1] == "sw"}
    prompt = asked["xlt"].job.task.prompt
    assert prompt.startswith(
        "I want you to act as a text classification expert for Swahili.\n{text}\nYou should retell"
    )
    assert asked["xlt_english_tuning"].inputs == asked["english_tuning"].inputs
    scores = {cell["method"]: _scores(tmp_path / "run", cell) for cell in results["cells"] if cell["language"] == "sw"}
    assert scores["xlt"] != scores["vanilla"] and scores["xlt_english_tuning"] != scores["english_tuning"]


def _scores(run: Path, cell: dict[str, Any]) -> list[Any]:
    return [json.loads(line)["scores"] for line in (run / cell["predictions"]).read_text("utf-8").splitlines()]


def test_xlt_writes_and_reads_what_follows_its_mark(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model never says "Choice number:", so that what is read is tried on given texts as well."""
    rows = [
        {"premise": "it rained", "choice1": "the street is wet", "choice2": "the sun shines", "label": label}
        for label in (0, 1, 1, 0)
    ]
    for part, language in (("train", "en"), ("test", "sw")):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{language}.{part}.jsonl").write_text(text, encoding="utf-8")
    said = [
        "The premise says that it rained.\nStep 2 is easy.\nChoice number: 1\n\nPremise: another\nChoice number: 2",
        "Choice number: (2)",
        "Choice number: the sun shines.",
        "I cannot say.",
    ]
    seen: list[Any] = []

    def write(model: Any, prompts: Any, *args: Any, **options: Any) -> tuple[list[str], int]:
        seen.append(([prompt.whole for prompt in prompts], options))
        return said, 0

    given = settings(tiny_decoder, tmp_path, tmp_path / "run", methods=["xlt"], targets=["sw"], proxy=None)
    given["task"] = {
        "kind": "multiple-choice", "context": "{premise}", "train": f"{tmp_path}/{{language}}.train.jsonl",
        "test": f"{tmp_path}/{{language}}.test.jsonl",
    }  # fmt: skip
    (cell,) = as_dict(transfer(parse(given), say=silent))["cells"]  # for real: nothing that it writes has the mark
    assert cell["unparsable"] == 4 and cell["score"] == 0
    monkeypatch.setattr("adamergex.tasks.answering.generating.generate", write)
    (cell,) = as_dict(transfer(parse(given | {"output": str(tmp_path / "said")}), say=silent))["cells"]
    (prompts, options), *_ = seen
    assert prompts[0] == (
        "I want you to act as a commonsense reasoning expert for Swahili.\n"
        "Here is a premise: it rained\nHelp me pick the more plausible option: "
        "-choice1: the street is wet, -choice2: the sun shines\n"
        "You should retell the premise and the options in English.\n"
        "You should do step-by-step answer to pick a choice.\nYou should step-by-step answer the request.\n"
        "You should tell me the choice number in this format 'Choice number:'."
    )
    assert options["stop"] == () and options["thought"] >= 256
    assert cell["score"] == 75 and cell["unparsable"] == 1


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mgsm", ["an arithmetic reasoning expert for Thai", "Request: {question}", "'Answer:'"]),
        ("xnli", ["'Relationship:'"]),
        ("xcopa", ["'Choice number:'"]),
        ("xquad", ["{context}\nQuestion: {question}", "the answer in Thai", "'Answer:'"]),
        ("xlsum", ["summarize the entire text", "the summary in this format", "'Summary:'"]),
        ("sib200", ["a text classification expert for Thai.\n{text}\n", "\nTopic:"]),
    ],
)
def test_every_task_of_the_paper_has_its_form(name: str, parts: list[str]) -> None:
    task = task_file(name).TASK
    asked = asked_with_xlt(task, "th")
    assert isinstance(asked, (Classification, Generation, MultipleChoice, PairClassification, SpanAnswering))
    assert type(asked).model_validate(asked.model_dump()) == asked
    for part in parts:
        assert part in asked.prompt
    # Nothing is left of the template but columns of the rows.
    assert set(re.findall(r"{(\w+)}", asked.prompt)) <= set(re.findall(r"{(\w+)}", task.prompt + "{context}{question}"))
    assert "answer_after" not in task.model_dump() or task.answer_after is not None


XLT = {  # Huang et al. 2023, table 8, but for the line that names the expert
    "mgsm": """Request: {question}
You should retell the request in English.
You should do step-by-step answer to obtain a number answer.
You should step-by-step answer the request.
You should tell me the answer in this format 'Answer:'.""",
    "xcopa": """Here is a premise: {premise}. What is the {question}? Help me pick the more plausible option: \
-choice1: {choice1}, -choice2: {choice2}
You should retell the premise and the options in English.
You should do step-by-step answer to pick a choice.
You should step-by-step answer the request.
You should tell me the choice number in this format 'Choice number:'.""",
    "xnli": """Premise: {premise}
Hypothesis: {hypothesis}
You should retell the premise and hypothesis in English.
You should judge whether the hypothesis is true (entailment), false (contradiction), or undetermined (neutral) given \
the premise. The relationship can be chosen from entailment, contradiction, and neutral.
You should step-by-step answer the request.
You should tell me the relationship in this format 'Relationship:'.""",
    "xlsum": """{text}
You should retell the input text in English.
You should think step-by-step to summarize the entire text in a maximum of two sentences.
You should step-by-step answer the request.
You should tell me the summary in this format 'Summary:'.""",
}
NAMES = [
    ("swh_Latn", "Swahili"), ("deu_Latn", "German"), ("zho_Hans", "Chinese"), ("arb_Arab", "Arabic"), ("ne", "Nepali"),
    ("pt-BR", "Portuguese"), ("bn", "Bengali"), ("prs_Arab", "Persian"), ("quy_Latn", "Quechua"), ("om", "Oromo"),
]  # fmt: skip
EXPERTS = {
    "mgsm": "an arithmetic reasoning", "xcopa": "a commonsense reasoning", "xnli": "a natural language inference",
    "xlsum": "a multilingual summarization",
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "language"), [("sw", "Swahili"), ("zh", "Chinese"), ("ar", "Arabic"), ("bzd", "bzd"), *NAMES]
)
@pytest.mark.parametrize("name", XLT)
def test_xlts_whole_text(name: str, code: str, language: str) -> None:
    asked = asked_with_xlt(task_file(name).TASK, code)
    assert asked.prompt == f"I want you to act as {EXPERTS[name]} expert for {language}.\n{XLT[name]}"
    assert XLT[name].endswith(f"'{asked.answer_after}'.")


def test_xlt_names_other_labels_by_their_words() -> None:
    task = PairClassification(labels=("yes", "no"), words={"yes": "follows", "no": "does not follow"})
    assert "can be chosen from follows and does not follow." in asked_with_xlt(task, "sw").prompt


def test_what_cannot_be_is_said_before_anything_is_trained(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    for method in ("xlt", "xlt_english_tuning"):
        config = absolute(parse(settings(tiny_encoder, small_data, tmp_path, methods=[method], proxy=None)))
        with pytest.raises(ConfigError, match="needs a generating model"):
            facts(config)
    tags = {"kind": "tagging", "types": ["PER"], "train": str(small_data / "{language}.train.tsv"),
            "test": str(small_data / "{language}.test.tsv")}  # fmt: skip
    config = absolute(parse(settings(tiny_encoder, small_data, tmp_path, methods=["xlt"], proxy=None, task=tags)))
    with pytest.raises(ConfigError, match="no XLT prompt for a tagging task"):
        facts(config)
    given = settings(
        tiny_encoder, small_data, tmp_path, structure={"kind": "full"}, methods=["lf-sft"],
        lf_sft={"language": {"optimisation": {"weight_decay": 0.1}, "entris": 3}},
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        parse(given)
    assert "lf_sft.language.entris: no such setting; did you mean 'entries'?" in str(caught.value)
    assert "methods.0: 'lf-sft' is not one of" in str(caught.value) and "did you mean 'lf_sft'" in str(caught.value)
    given |= {"methods": ["lf_sft"], "lf_sft": {"language": {"optimisation": {"weight_decay": 0.1}}}}
    with pytest.raises(ConfigError, match=r"(?s)'full' is not an adapter.*lf_sft.language.optimisation.weight_decay"):
        parse(given)


PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def test_a_method_of_the_users_own(tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting) -> None:
    """The file that docs/methods.md shows, as it stands there."""
    (code,) = re.findall(r"```python\n# my_recipe.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_recipe.py").write_text(code, encoding="utf-8")
    methods = ["english_tuning", "average", "my_recipe.py:target_heavy"]
    given = settings(tiny_encoder, small_data, tmp_path / "run", methods=methods, proxy=None, folder=str(tmp_path))
    results = as_dict(transfer(parse(given), say=silent))
    assert counted.runs["train"] == 3 and counted.runs["merge"] == 4  # AriMerge's adapters serve it as well
    own = results["methods"][-1]
    assert (own["name"], own["label"]) == ("target_heavy", "target heavy") and own["about"].startswith("AriMerge")
    cells = [cell for cell in results["cells"] if cell["method"] == "target_heavy"]
    assert [cell["weight"] for cell in cells] == [0.8, 0.8]
    assert (tmp_path / "run" / "adapters" / "target_heavy-sw-seed0" / "lineage.json").is_file()
    assert "target heavy" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "no such recipe file"),
        ("1 / 0", "does not run"),
        ("", "no such function"),
        ("def mine(cell):\n    return cell.merg()", "the recipe does not run"),
        ("def mine(cell):\n    return 3", "something else than adapters"),
        (
            "def mine(cell):\n    a = cell.train(cell.task, cell.source)\n"
            "    return cell.merge(task=a, target_reference=cell.train(cell.reference, cell.target), rule='average')",
            "no validation set is named",
        ),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, code: str | None, message: str
) -> None:
    if code is not None:
        (tmp_path / "own.py").write_text(code, encoding="utf-8")
    given = settings(tiny_encoder, small_data, tmp_path / "run", methods=["own.py:mine"], proxy=None)
    with pytest.raises(ConfigError, match=message):
        transfer(parse(given | {"folder": str(tmp_path)}), say=silent)


def test_the_page_has_every_method() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in METHODS:
        assert f"`{name}`" in page and RECIPES[name].label in page, name
    assert set(METHODS) == set(RECIPES)
