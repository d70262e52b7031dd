"""Our answers against lm-evaluation-harness's on the same adapters, items and prompts (golden g7_harness), and against
the plain PEFT code of docs/compare.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM

from adamergex.evaluation import evaluate
from adamergex.files.records import Scores
from adamergex.jobs.settings import EvaluateJob
from adamergex.tasks.kinds import kind_of
from harness_cases import CASES, GOLDEN, items, rows, save_adapter, task_of

PAGE = Path(__file__).parents[1] / "docs" / "compare.md"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
CHOICES = [name for name, case in CASES.items() if case.task != "mgsm"]
NEAR = {"rtol": 0, "atol": 1e-4}  # nats; float32 sums of up to 219 nats, in other batches


def ours(
    case: str, output: Path, *, bare: bool = False, base: str = str(GOLDEN / "base"), **changes: Any
) -> tuple[Scores, list[dict[str, Any]]]:
    """Scores and predictions of `evaluate` for a case of the golden."""
    name = CASES[case].task
    task = task_of(name, **changes)
    job = EvaluateJob(base=base, task=task, language="zh", rows=rows(name, GOLDEN / f"{name}.jsonl"))
    scores = evaluate(job, None if bare else GOLDEN / case, output)
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return scores, [json.loads(line) for line in lines]


def log_likelihoods(found: list[dict[str, Any]]) -> np.ndarray:
    return np.array([list(item["scores"].values()) for item in found])


@pytest.mark.parametrize("case", CHOICES)
def test_choices_score_as_in_the_harness(case: str, tmp_path: Path) -> None:
    golden = EXPECTED[case]
    scores, found = ours(case, tmp_path / "out")
    assert scores.truncated == 0 and [item["id"] for item in found] == [item["id"] for item in golden["items"]]
    wanted = np.array([item["loglikelihoods"] for item in golden["items"]])
    np.testing.assert_allclose(log_likelihoods(found), wanted, **NEAR)
    assert [item["gold"] == item["predicted"] for item in found] == [item["acc"] == 1 for item in golden["items"]]
    assert scores.score == pytest.approx(100 * golden["acc"], abs=1e-9)
    assert 10 < scores.score < 90  # right and wrong answers both
    _, bare = ours(case, tmp_path / "bare", bare=True)
    assert np.abs(log_likelihoods(bare) - wanted).max() > 1  # what is compared is the adapter


@pytest.mark.parametrize("case", CHOICES)
def test_normalised_choices_are_the_harness_acc_norm(case: str, tmp_path: Path) -> None:
    golden, task = EXPECTED[case], task_of(CASES[case].task)
    choices = kind_of(task.kind).writing.choices
    assert choices is not None
    scores, found = ours(case, tmp_path / "out", normalised=True)
    characters = np.array([[len(choice) for choice in choices(task, item)] for item in items(CASES[case].task)])
    wanted = np.array([item["loglikelihoods"] for item in golden["items"]]) / characters
    np.testing.assert_allclose(log_likelihoods(found), wanted, **NEAR)
    assert [item["gold"] == item["predicted"] for item in found] == [item["acc_norm"] == 1 for item in golden["items"]]
    assert scores.score == pytest.approx(100 * golden["acc_norm"], abs=1e-9)
    assert any(item["acc"] != item["acc_norm"] for item in golden["items"])  # dividing changes answers here


def test_written_answers_are_the_harness_generate_until(tmp_path: Path) -> None:
    golden = EXPECTED["lora-mgsm"]
    scores, found = ours("lora-mgsm", tmp_path / "out", max_new_tokens=32)
    assert [item["written"] for item in found] == [item["written"].strip() for item in golden["items"]]
    assert scores.score == pytest.approx(100 * golden["exact_match"], abs=1e-9)
    assert [item["tally"][0] == 1 for item in found] == [item["exact_match"] == 1 for item in golden["items"]]
    assert len({item["written"] for item in found}) > 5


@pytest.mark.parametrize("name", ["xcopa", "xnli", "mgsm"])
def test_the_harness_was_asked_what_we_ask(name: str) -> None:
    asked, task = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")), task_of(name)
    # As the harness renders it: a template of choices gives a list's source.
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(asked["doc_to_text"])
    for item in items(name):
        assert template.render(item) == kind_of(task.kind).writing.prompt(task, item).whole
    if name == "xnli":
        assert asked["doc_to_choice"] == kind_of(task.kind).writing.choices(task, items(name)[0])
    elif name == "xcopa":
        assert asked["doc_to_choice"] == f"{{{{[{', '.join(task.choices)}]}}}}"


def test_the_page_shows_the_goldens_task() -> None:
    (block,) = re.findall(r"^```yml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert block == (GOLDEN / "xcopa.yaml").read_text(encoding="utf-8")


def test_plain_peft_code_predicts_what_evaluate_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's Python from top to bottom, on merged adapters of an encoder (two heads) and of a decoder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "base", "base")
    end_texts(Path("base"))
    save_encoder(Path("encoder"))
    shutil.copytree(GOLDEN / "ia3-xcopa", "adapters/xcopa-decoder")
    seen: dict[str, Any] = {}
    expected = {}
    for name in ("xnli", "xcopa"):
        shutil.copy(GOLDEN / f"{name}.jsonl", f"{name}.jsonl")
        Path("scratch", name).mkdir(parents=True)
        adapter = Path("adapters") / f"{name}-zh"
        save_adapter(CASES[f"lora-{name}"], adapter, Path("scratch", name), base="encoder")
        job = EvaluateJob(base="encoder", task=task_of(name), language="zh", rows=rows(name, Path(f"{name}.jsonl")))
        assert 0 < evaluate(job, adapter, Path("out", name)).truncated < 40  # cut alike too
        expected[name] = predicted(Path("out", name))
    _, decoder = ours("ia3-xcopa", Path("out", "decoder"), base="base")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), seen)
    assert len(blocks) == 3
    assert seen["relations"] == expected["xnli"] and len(set(expected["xnli"])) > 1
    assert seen["endings"] == expected["xcopa"] and set(expected["xcopa"]) == {0, 1}
    wanted = [item["loglikelihoods"] for item in EXPECTED["ia3-xcopa"]["items"]]
    np.testing.assert_allclose(log_likelihoods(decoder), wanted, **NEAR)  # an end piece is no part of the prompt
    assert seen["chosen"] == [item["predicted"] for item in decoder]
    np.testing.assert_allclose(seen["scores"], log_likelihoods(decoder), **NEAR)


def end_texts(folder: Path) -> None:
    """Make the tokenizer put an end piece after every text, as nano-causal's does."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    tokenizer["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def save_encoder(folder: Path) -> None:
    """An XLM-R of two layers with the golden's pieces, pairs framed as XLM-R frames them; some items are cut."""
    tokenizer = Tokenizer.from_file(str(GOLDEN / "base" / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, model_max_length=44).save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=46, initializer_range=0.15, pad_token_id=1, bos_token_id=0,
        eos_token_id=2,
    )  # fmt: skip
    XLMRobertaForMaskedLM(config).save_pretrained(folder)


def predicted(output: Path) -> list[Any]:
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["predicted"] for line in lines]
