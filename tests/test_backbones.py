"""The shipped backbones: whole, small, sharing one tokenizer, and as good as their cards say."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from adamergex.backbones.base_files import resolve
from adamergex.backbones.loading import load
from adamergex.config.transfer import parse
from adamergex.report.results_file import as_dict
from adamergex.tables.demo import CORPUS
from adamergex.tables.transfer import transfer

NAMES = ("nano", "nano-causal")


@pytest.mark.parametrize("name", NAMES)
def test_size_dtype_and_card(name: str) -> None:
    folder = Path(resolve(name))
    assert (folder / "model.safetensors").stat().st_size <= 20e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    for fact in ("CC0", "CC BY-SA 4.0", "Majority class", "Never seen", "sw*", "steps"):
        assert fact in card
    assert {p.dtype for p in load(name, "masked-lm" if name == "nano" else "causal-lm").model.parameters()} == {
        torch.float32
    }


def test_one_tokenizer_serves_both_and_loses_nothing() -> None:
    one, other = (load(name, kind).tokenizer for name, kind in zip(NAMES, ("masked-lm", "causal-lm"), strict=True))
    for text in ("Daktari alisema kwamba mgonjwa amepona.", "The parliament voted 312 to 4.", "国会通过了法案 🤖"):
        plain, opened = one(text).input_ids, other(text).input_ids
        assert plain == [*opened, one.eos_token_id]  # a decoder's texts stay open at their end
        assert one.decode(one(text).input_ids, skip_special_tokens=True) == text


def test_nano_knows_languages_better_than_chance() -> None:
    """Masked pieces of the demo's French text: cross entropy well under that of a uniform guess over the vocabulary."""
    loaded = load("nano", "masked-lm")
    texts = (CORPUS / "fr.text.txt").read_text(encoding="utf-8").splitlines()[:60]
    batch = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    chosen = (torch.rand(batch.input_ids.shape, generator=generator) < 0.15) & (batch.input_ids > 4)
    inputs = batch.input_ids.masked_fill(chosen, loaded.tokenizer.mask_token_id)
    with torch.no_grad():
        logits = loaded.model(input_ids=inputs, attention_mask=batch.attention_mask).logits[chosen]
    loss = torch.nn.functional.cross_entropy(logits, batch.input_ids[chosen]).item()
    assert loss < 0.75 * torch.log(torch.tensor(float(loaded.tokenizer.vocab_size))).item()


@pytest.mark.parametrize("name", NAMES)
def test_the_demo_runs_scaled_down(name: str, tmp_path: Path) -> None:
    settings = yaml.safe_load((CORPUS / f"{name}.yaml").read_text(encoding="utf-8"))
    settings |= {"folder": str(CORPUS), "output": str(tmp_path / "demo"), "targets": ["sw"], "merge": {"grid": [0.5]}}
    for part in ("task", "reference"):
        settings[part]["optimisation"] |= {"steps": 2}
        settings["mad_x"]["task" if part == "task" else "language"]["optimisation"] |= {"steps": 2}
    settings["task"]["validation"] = {"path": settings["task"]["validation"], "limit": 12}
    settings["task"]["test"] = {"path": settings["task"]["test"], "limit": 12}
    results = as_dict(transfer(parse(settings), say=lambda line: None))
    assert {cell["method"] for cell in results["cells"]} == set(settings["methods"])
    assert "report.html" in {path.name for path in (tmp_path / "demo").iterdir()}


DATA = os.environ.get("ADAMERGEX_DATA")


@pytest.mark.skipif(not DATA, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_the_truth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero-shot accuracy on SIB-200, computed again from the shipped weights, for one seen and one unseen language."""
    assert DATA is not None
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts" / "pretrain"))
    import probe

    monkeypatch.setattr(probe, "LANGUAGES", ("en", "sw"))
    loaded = load(name, "masked-lm" if name == "nano" else "causal-lm")
    found = probe.probe(loaded.model, loaded.tokenizer, Path(DATA), name == "nano-causal", split="test")
    card = (Path(resolve(name)) / "README.md").read_text(encoding="utf-8")
    header, values = re.search(r"^(\| en .*)\n.*\n(\| .*)$", card, re.MULTILINE).groups()  # type: ignore[union-attr]
    claimed = dict(zip(header.strip("| ").split(" | "), values.strip("| ").split(" | "), strict=True))
    with gzip.open(Path(DATA) / "sib200" / "en.test.jsonl.gz", "rt", encoding="utf-8") as lines:
        items = len([json.loads(line) for line in lines])
    one_item = 100 / items  # another CPU may round one borderline item the other way
    assert found["en"] == pytest.approx(float(claimed["en"]), abs=one_item + 0.06)
    assert found["sw"] == pytest.approx(float(claimed["sw*"]), abs=one_item + 0.06)
