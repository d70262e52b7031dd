"""Reference tasks of sentence encoders: the losses against float64, noise, and what the untouched base teaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamergex.backbones import loading
from adamergex.errors import DataError
from adamergex.jobs.settings import SentenceAlignment, SentenceContrast
from adamergex.tasks import sentences

LANGUAGES = {
    "en": ("the river is deep", "a kind doctor helps", "the match was won", "our train is late"),
    "fr": ("la rivière est profonde", "un bon médecin aide", "le match est gagné", "notre train est en retard"),
}


def nce(a: np.ndarray, b: np.ndarray, temperature: float) -> float:
    """InfoNCE written out: -mean log softmax of the diagonal of the cosines."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.astype(np.float64), b.astype(np.float64)))
    scores = a @ b.T / temperature
    return float(np.mean([np.log(np.exp(row - row.max()).sum()) + row.max() - row[i] for i, row in enumerate(scores)]))


def vectors(base: Path, texts: list[str]) -> np.ndarray:
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base).eval()
    with torch.no_grad():
        return np.stack(
            [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().mean(0) for text in texts]
        )


@given(st.integers(2, 6), st.floats(0.02, 1.0), st.integers(0, 2**31))
def test_info_nce_is_the_formula(count: int, temperature: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, count, 5))
    found = sentences.info_nce(torch.from_numpy(a), torch.from_numpy(b), temperature)
    np.testing.assert_allclose(float(found), nce(a, b, temperature), rtol=1e-9, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):  # of a training in bfloat16: cosines are not rounded
        found = sentences.info_nce(torch.from_numpy(a).float(), torch.from_numpy(b).float(), temperature)
    np.testing.assert_allclose(float(found), nce(a, b, temperature), rtol=1e-4, atol=1e-5)


def test_alignment_teaches_the_bases_vectors_of_the_translations(tiny_encoder: Path) -> None:
    loaded = loading.load(str(tiny_encoder), "sentence-encoder")
    texts, pivots = list(LANGUAGES["fr"]), list(LANGUAGES["en"])
    task = SentenceAlignment(temperature=0.1)
    made = sentences.alignment(texts, pivots, loaded, task, longest=64, where="fr.txt")
    targets = vectors(tiny_encoder, pivots)
    np.testing.assert_allclose(made.targets.numpy(), targets, rtol=1e-4, atol=1e-6)
    z = [(x - targets.mean(0)) / targets.std(0) for x in (vectors(tiny_encoder, texts), targets)]
    expected = np.mean((z[0] - z[1]) ** 2) + (nce(z[0], z[1], 0.1) + nce(z[1], z[0], 0.1)) / 2
    loaded.model.eval()
    with torch.no_grad():
        found = made.loss(loaded.model, made.batch(range(4), 0))
    np.testing.assert_allclose(float(found), expected, rtol=2e-4)


def test_alignment_of_a_text_with_itself_has_nothing_to_move(tiny_encoder: Path) -> None:
    loaded = loading.load(str(tiny_encoder), "sentence-encoder")
    texts = list(LANGUAGES["en"])
    made = sentences.alignment(texts, texts, loaded, SentenceAlignment(), longest=64, where="en.txt")
    batch = made.batch(range(4), 0)
    found = sentences.text_vectors(loaded.model.eval(), batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(found, batch["targets"], rtol=1e-4, atol=1e-6)


def test_contrast_recognises_noisy_views(tiny_encoder: Path) -> None:
    loaded = loading.load(str(tiny_encoder), "sentence-encoder")
    texts = [*LANGUAGES["en"], *LANGUAGES["fr"]]
    task = SentenceContrast(noise=0.6)
    made = sentences.contrast(texts, loaded, task, seed=3, longest=64, where="en.txt")
    batch, again, later = made.batch(range(8), 5), made.batch(range(8), 5), made.batch(range(8), 6)
    assert torch.equal(batch["noisy_ids"], again["noisy_ids"])
    assert batch["noisy_ids"].shape != later["noisy_ids"].shape or not torch.equal(
        batch["noisy_ids"], later["noisy_ids"]
    )
    for ids, mask, noisy in zip(batch["input_ids"], batch["attention_mask"], batch["noisy_ids"], strict=True):
        whole, part = ids[mask.bool()].tolist(), [token for token in noisy.tolist() if token != 1]
        assert (part[0], part[-1]) == (0, 2)
        assert len(part) > 2
        remaining = iter(whole)
        assert all(token in remaining for token in part)  # a subsequence, in order
    loaded.model.eval()
    with torch.no_grad():
        found = made.loss(loaded.model, batch)
        views = [sentences.text_vectors(loaded.model, batch[a], batch[b]).double().numpy()
                 for a, b in (("input_ids", "attention_mask"), ("noisy_ids", "noisy_mask"))]  # fmt: skip
    np.testing.assert_allclose(float(found), nce(*views, 0.05), rtol=1e-4)


def test_noise_deletes_its_share_of_the_tokens(tiny_encoder: Path) -> None:
    loaded = loading.load(str(tiny_encoder), "sentence-encoder")
    texts = [" ".join(LANGUAGES["en"])] * 2
    made = sentences.contrast(texts, loaded, SentenceContrast(noise=0.3), seed=0, longest=64, where=None)
    inner = len(made.ids[0]) - 2
    kept = [int(made.batch([0, 1], step)["noisy_mask"].sum(1).sub(2).sum()) for step in range(400)]
    assert np.mean(kept) / (2 * inner) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("texts", [[], ["one"]])
def test_one_text_has_nothing_to_be_told_from(tiny_encoder: Path, texts: list[str]) -> None:
    loaded = loading.load(str(tiny_encoder), "sentence-encoder")
    with pytest.raises(DataError, match=r"too little text[\s\S]*en\.txt"):
        sentences.contrast(texts, loaded, SentenceContrast(), seed=0, longest=64, where="en.txt")
    with pytest.raises(DataError, match=r"too little text"):
        sentences.alignment(texts, texts, loaded, SentenceAlignment(), longest=64, where="en.txt")
