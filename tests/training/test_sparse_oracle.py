"""LT-SFT's language phase (2110.07560, §3) against a training written by hand in float64, tensor by tensor.

And the output matrix, which it never moves, in every family that ties it to its embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_madx import TASK, TEXT, hashes, job
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    TrainerCallback,
)

from adamergex.adapters import loaded_adapter
from adamergex.adapters.sparse import (
    SparseDifference,
    SparseTensor,
    apply_difference,
    read_difference,
    untie_output,
    write_difference,
)
from adamergex.backbones import loading
from adamergex.data import reader
from adamergex.errors import ModelError
from adamergex.files import lineage
from adamergex.jobs.settings import Structure, TrainJob
from adamergex.training import train
from adamergex.training.loop import batches

STEPS = {"first": 5, "second": 7}
RATE, CLIP = 2e-3, 1.0


@pytest.fixture(scope="module")
def tied(checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder without dropout whose output matrix is its embeddings, as XLM-R's."""
    folder = tmp_path_factory.mktemp("tied") / "xlm-r"
    model = AutoModelForMaskedLM.from_pretrained(
        checkpoints["xlm-r"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoints["xlm-r"]).save_pretrained(folder)
    return str(folder)


def language_job(base: str, rows: Path, *, entries: float, l1: float, norms: bool = True, **changes: Any) -> TrainJob:
    shape = Structure(kind="sparse", entries=entries, l1=l1, freeze_norms=norms, first_steps=STEPS["first"])
    given = {"steps": STEPS["second"], "learning_rate": RATE, "max_grad_norm": CLIP, "schedule": "linear", "warmup": 0}
    return job(base, rows, TEXT, shape, **(given | changes))


class Oracle:
    """The same training from its description: a plain float64 model, AdamW and its schedule written out.

    The output matrix is a tensor of its own that never trains; what trains is ``roberta.*`` without LayerNorm."""

    def __init__(self, base: str, wanted: TrainJob) -> None:
        self.model = AutoModelForMaskedLM.from_pretrained(base, dtype=torch.float64).train()
        words = self.model.roberta.embeddings.word_embeddings.weight
        self.model.lm_head.decoder.weight = torch.nn.Parameter(words.detach().clone(), requires_grad=False)
        norms = wanted.structure.freeze_norms
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("roberta.") and not (norms and "LayerNorm" in name))
        self.own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().clone() for name, p in self.own.items()}
        self.entries = sum(p.numel() for p in self.own.values())
        self.l1, self.wanted = wanted.structure.l1, wanted
        loaded = loading.load(base, "masked-lm")
        self.examples = train.examples_of(wanted, loaded, reader.read(wanted.rows, "en"))

    def phase(self, steps: int, masks: dict[str, torch.Tensor] | None) -> None:
        first = {name: torch.zeros_like(p) for name, p in self.own.items()}
        second = {name: torch.zeros_like(p) for name, p in self.own.items()}
        plan = batches(self.examples.lengths, 8, steps, self.wanted.seed)
        for step, rows in enumerate(plan):
            batch = self.examples.batch(rows, step)
            labels = batch.pop("labels")
            logits = self.model(**batch).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
            moved = sum((p - self.start[name]).abs().sum() for name, p in self.own.items())
            gradients = torch.autograd.grad(loss + self.l1 * moved / self.entries, list(self.own.values()))
            found = dict(zip(self.own, gradients, strict=True))
            if masks is not None:
                found = {name: gradient * masks[name] for name, gradient in found.items()}
            norm = torch.sqrt(sum(gradient.square().sum() for gradient in found.values()))
            scale = min(1.0, CLIP / (float(norm) + 1e-6))
            rate = RATE * (steps - step) / steps
            with torch.no_grad():
                for name, p in self.own.items():
                    gradient = found[name] * scale
                    first[name].mul_(0.9).add_(gradient, alpha=0.1)
                    second[name].mul_(0.999).add_(gradient.square(), alpha=0.001)
                    mean = first[name] / (1 - 0.9 ** (step + 1))
                    spread = (second[name] / (1 - 0.999 ** (step + 1))).sqrt()
                    p.sub_(rate * mean / (spread + 1e-8))

    def moved(self) -> dict[str, torch.Tensor]:
        return {name: (p.detach() - self.start[name]).abs() for name, p in self.own.items()}

    def rewind(self) -> None:
        with torch.no_grad():
            for name, p in self.own.items():
                p.copy_(self.start[name])


def widest_gap(moved: dict[str, torch.Tensor], least: int, most: int) -> int:
    """A K at which rounding cannot swap the last entry chosen and the first one left out."""
    every = torch.cat([tensor.flatten() for tensor in moved.values()]).sort(descending=True).values
    ratios = every[least:most] / every[least + 1 : most + 1]
    return least + int(ratios.argmax()) + 1


@pytest.mark.parametrize(("l1", "norms"), [(0.1, True), (200.0, True), (0.1, False)])
def test_the_language_phase_is_that_of_the_paper(
    tied: str, plain: Path, tmp_path: Path, l1: float, norms: bool
) -> None:
    oracle = Oracle(tied, language_job(tied, plain, entries=1, l1=l1, norms=norms))
    oracle.phase(STEPS["first"], None)
    moved = oracle.moved()
    count = widest_gap(moved, 600, 1200)
    threshold = torch.cat([tensor.flatten() for tensor in moved.values()]).sort(descending=True).values[count - 1]
    masks = {name: tensor >= threshold for name, tensor in moved.items()}
    assert sum(int(mask.sum()) for mask in masks.values()) == count
    oracle.rewind()
    oracle.phase(STEPS["second"], masks)

    train.train(language_job(tied, plain, entries=count, l1=l1, norms=norms), tmp_path / "out")
    found = read_difference(tmp_path / "out")
    assert not found.whole
    assert sum(len(entry.indices) for entry in found.sparse.values()) == count
    for name, mask in masks.items():
        dense = found.sparse[name].dense().double() if name in found.sparse else torch.zeros(mask.shape).double()
        chosen = torch.zeros(mask.numel(), dtype=torch.bool)
        if name in found.sparse:
            chosen[found.sparse[name].indices] = True
        assert torch.equal(chosen.view(mask.shape), mask), name
        torch.testing.assert_close(dense, oracle.own[name].detach() - oracle.start[name], rtol=2e-3, atol=2e-6)
    assert set(found.sparse) <= set(masks)  # nothing of the head, and of norms only where they train
    words = masks["roberta.embeddings.word_embeddings.weight"]
    assert 0 < int(words.sum()) < 0.7 * count


def test_a_tied_output_matrix_would_take_other_entries(tied: str, plain: Path) -> None:
    """The oracle tells the two apart: with the tie nearly all that moves most are embeddings."""
    wanted = language_job(tied, plain, entries=1, l1=0.1)
    shares = []
    for parted in (True, False):
        oracle = Oracle(tied, wanted)
        if not parted:
            oracle.model.lm_head.decoder.weight = oracle.model.roberta.embeddings.word_embeddings.weight
        oracle.phase(STEPS["first"], None)
        moved = oracle.moved()
        threshold = torch.cat([tensor.flatten() for tensor in moved.values()]).sort(descending=True).values[999]
        shares.append(int((moved["roberta.embeddings.word_embeddings.weight"] >= threshold).sum()) / 1000)
    assert shares[1] > shares[0] + 0.1


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VECTORS = {"vocab_size": 120, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DECODER = {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 2,
}  # fmt: skip
TYING: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (AutoModelForMaskedLM, SMALL),
    "xlm-roberta": (AutoModelForMaskedLM, SMALL),
    "distilbert": (AutoModelForMaskedLM, {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}),
    "albert": (AutoModelForMaskedLM, {**SMALL, "embedding_size": 16}),
    "electra": (AutoModelForMaskedLM, {**SMALL, "embedding_size": 16}),
    "deberta-v2": (AutoModelForMaskedLM, SMALL),
    "modernbert": (AutoModelForMaskedLM, {**SMALL, "cls_token_id": 0, "sep_token_id": 2}),
    "gpt2": (AutoModelForCausalLM, {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "llama": (AutoModelForCausalLM, DECODER),
    "qwen3": (AutoModelForCausalLM, DECODER),
    "gemma2": (AutoModelForCausalLM, DECODER),
    "t5": (AutoModelForSeq2SeqLM, {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2,
                                   "decoder_start_token_id": 1}),
    "mbart": (AutoModelForSeq2SeqLM, SEQ2SEQ),
}  # fmt: skip


def made(kind: str, **more: Any) -> Any:
    auto, shape = TYING[kind]
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(kind, **{**VECTORS, **shape, **more})).eval()


def loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
    return found


@pytest.mark.parametrize("kind", TYING)
def test_no_family_trains_its_output_matrix(kind: str, tmp_path: Path) -> None:
    """Only embeddings of tokens that are read get a gradient, and what is written fits the tied model."""
    model = made(kind)
    embeddings = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embeddings
    untouched, tokens = hashes(model), torch.tensor([[5, 9, 17, 30, 41, 9], [7, 8, 17, 60, 61, 62]])
    tuned = loaded_adapter.attach(
        model, Structure(kind="sparse", entries=200, freeze_norms=True), task_head=False, base_sha256="b"
    )
    own = model.get_input_embeddings().weight
    output = model.get_output_embeddings().weight
    assert torch.equal(output, own) and output is not own and not output.requires_grad
    (name,) = (key for key, p in tuned.parameters().items() if p is own)
    assert not any(p is output for p in tuned.parameters().values())
    assert all(p.ndim > 1 or name.endswith("bias") for name, p in tuned.parameters().items())  # no norm's weight
    loss(model, tokens).backward()
    read = {int(token) for token in tokens.unique()} | {2, 1}  # a decoder's shifted labels
    touched = set(own.grad.abs().sum(1).nonzero().flatten().tolist())
    assert touched and touched <= read
    tuned.detach()
    assert hashes(model) == untouched and model.get_output_embeddings().weight is embeddings

    # Added to the tied base: the difference is the embeddings', the output matrix stays the base's.
    width = embeddings.shape[1]
    indices = torch.tensor([5 * width, 9 * width + 3, 17 * width + 1, 90 * width])
    difference = SparseDifference({name: SparseTensor(tuple(embeddings.shape), indices, torch.full((4,), 0.25))})
    write_difference(tmp_path / "sw", difference)
    expected = made(kind)
    before = expected.get_output_embeddings().weight.detach().clone()
    expected.get_output_embeddings().weight = torch.nn.Parameter(before)
    with torch.no_grad():
        expected.get_input_embeddings().weight += difference.sparse[name].dense()
    placed = loaded_adapter.load(model, [tmp_path / "sw"])
    with torch.no_grad():
        torch.testing.assert_close(loss(placed.model, tokens), loss(expected, tokens))
    placed.detach()
    assert hashes(model) == untouched and model.get_output_embeddings().weight is embeddings
    with torch.no_grad():
        assert abs(loss(model, tokens) - loss(expected, tokens)) > 1e-6
    by_hand = made(kind)
    assert untie_output(by_hand) and not untie_output(by_hand)
    apply_difference(by_hand, difference)
    with torch.no_grad():
        torch.testing.assert_close(loss(by_hand, tokens), loss(expected, tokens))


def test_an_output_that_is_no_matrix_of_its_own_is_refused() -> None:
    """DeBERTa's newer head multiplies with the embeddings themselves: nothing there could be frozen."""
    model = made("deberta-v2", legacy=False)
    untouched = hashes(model)
    with pytest.raises(ModelError, match="cannot be separated from its embeddings"):
        loaded_adapter.attach(model, Structure(kind="sparse", entries=200), task_head=False, base_sha256="b")
    assert hashes(model) == untouched


def test_full_fine_tuning_keeps_the_tie(tied: str) -> None:
    loaded = loading.load(tied, "masked-lm")
    tuned = loaded_adapter.attach(loaded.model, Structure(kind="full"), task_head=False, base_sha256=loaded.sha256)
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    tuned.detach()


def test_a_language_scores_as_it_was_trained(tied: str, plain: Path, tmp_path: Path) -> None:
    """Loading a difference gives the loss of the last step's model, whose output matrix was the base's."""

    class Last(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            with torch.no_grad():
                model.eval()
                self.loss = float(loss(model, tokens))

    tokens = torch.tensor([[0, 9, 17, 30, 41, 2], [0, 8, 17, 60, 61, 2]])
    last = Last()
    wanted = language_job(tied, plain, entries=400, l1=0.1)
    train.train(wanted, tmp_path / "en", callbacks=[last])
    loaded = loading.load(tied, "masked-lm")
    placed = loaded_adapter.load(loaded.model, [tmp_path / "en"])
    with torch.no_grad():
        assert float(loss(placed.model, tokens)) == pytest.approx(last.loss, rel=1e-6)
    placed.detach()
    card = (tmp_path / "en" / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(tmp_path / "en"))
    found: dict[str, Any] = {}
    exec(code, found)  # as a reader would run it
    with torch.no_grad():
        assert float(loss(found["model"].eval(), tokens)) == pytest.approx(last.loss, rel=1e-6)
    made_of = lineage.read(tmp_path / "en")
    assert made_of is not None and made_of.settings["training"]["output_matrix"] == "frozen, parted from the embeddings"


def test_a_written_task_leaves_the_output_matrix_too(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path
) -> None:
    """A decoder answers through its output matrix: the task's difference, and the language's below it, leave it."""
    base = str(tmp_path / "tied")
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"], tie_word_embeddings=True)
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(checkpoints["llama"]).save_pretrained(base)
    train.train(job(base, labelled, TASK, Structure(kind="sparse", entries=900)), tmp_path / "task")
    rows = set()
    for name, entry in read_difference(tmp_path / "task").sparse.items():
        if "embed_tokens" in name:
            rows = set((entry.indices // entry.shape[1]).tolist())
    loaded = loading.load(base, "causal-lm")
    wanted = job(base, labelled, TASK, Structure(kind="sparse", entries=900))
    examples = train.examples_of(wanted, loaded, reader.read(wanted.rows, "en"))
    read = {int(token) for i in range(len(examples.lengths)) for token in examples.batch([i], 0)["input_ids"].unique()}
    assert rows and rows <= read
