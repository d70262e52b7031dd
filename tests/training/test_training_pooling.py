"""Heads that read the mean over a text: the formula, padding, what is saved, and how a checkpoint says it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from adamergex import evaluation
from adamergex.backbones import loading, pooling
from adamergex.errors import ModelError
from adamergex.files.lineage import read as read_lineage
from adamergex.jobs.settings import Classification, EvaluateJob, Optimisation, Rows, Structure, TrainJob
from adamergex.tasks import running
from adamergex.training import train

LABELS = ("nature", "health", "sports", "travel")


@pytest.fixture(scope="module")
def bert(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without pooler and without any head, as sentence encoders are published."""
    folder = tmp_path_factory.mktemp("bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_encoder / name, folder / name)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(tiny_encoder)), hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=48, max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def states(base: Path, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    from transformers import AutoModel

    with torch.no_grad():
        return AutoModel.from_pretrained(base)(ids, attention_mask=mask).last_hidden_state.double().numpy()


@pytest.mark.parametrize("which", ["bert", "xlm-r"])
def test_the_head_reads_the_mean_over_the_text(which: str, bert: Path, tiny_encoder: Path) -> None:
    base = bert if which == "bert" else tiny_encoder
    loaded = loading.load(str(base), "sequence-classification", ["a", "b", "c"], head="mean")
    ids = torch.tensor([[0, 10, 11, 12, 13, 2], [0, 20, 21, 2, 1, 1]])
    mask = (ids != 1).long()
    hidden = states(base, ids, mask)
    mean = np.stack([hidden[0].mean(0), hidden[1, :4].mean(0)])
    head = loaded.model.classifier

    def layer(linear: torch.nn.Linear, values: np.ndarray) -> np.ndarray:
        return values @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()

    expected = layer(head, mean) if which == "bert" else layer(head.out_proj, np.tanh(layer(head.dense, mean)))
    with torch.no_grad():
        found = loaded.model(input_ids=ids, attention_mask=mask).logits
        alone = loaded.model(input_ids=ids[1:, :4], attention_mask=mask[1:, :4]).logits
        vectors = pooling.text_vectors(loaded.model, ids, mask)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(alone[0].numpy(), expected[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vectors.numpy(), mean, rtol=1e-4, atol=1e-6)
    assert not any("pooler" in name for name in loaded.new_modules)


def test_a_multiple_choice_head_reads_the_mean_too(bert: Path) -> None:
    loaded = loading.load(str(bert), "multiple-choice", head="mean")
    ids = torch.tensor([[[0, 10, 11, 2], [0, 20, 2, 1]]])
    mask = (ids != 1).long()
    hidden = states(bert, ids[0], mask[0])
    mean = np.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])
    head = loaded.model.classifier
    with torch.no_grad():
        found = loaded.model(input_ids=ids, attention_mask=mask).logits
    expected = mean @ head.weight.detach().double().numpy().T[:, 0] + head.bias.item()
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_auto_follows_what_the_checkpoint_says(bert: Path, tmp_path: Path) -> None:
    assert loading.head_input(str(bert), "auto") == "cls"
    assert loading.head_input(str(bert), "mean") == "mean"
    said = tmp_path / "said"
    shutil.copytree(bert, said)
    (said / "1_Pooling").mkdir()
    (said / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert loading.head_input(str(said), "auto") == "mean"
    assert loading.head_input(str(said), "cls") == "cls"
    (said / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert loading.head_input(str(said), "auto") == "cls"
    (said / "1_Pooling" / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="pooling configuration is not a JSON object"):
        loading.head_input(str(said), "auto")
    config = json.loads((bert / "config.json").read_text())
    (said / "config.json").write_text(json.dumps({**config, "pooling": "mean"}))
    assert loading.head_input(str(said), "auto") == "mean"


def test_an_adapter_learns_and_answers_through_the_mean(bert: Path, small_data: Path, tmp_path: Path) -> None:
    task = Classification(labels=LABELS, head="mean")
    rows = Rows(path=str(small_data / "{language}.train.tsv"))
    job = TrainJob(
        base=str(bert),
        structure=Structure(rank=4, alpha=8),
        task=task,
        language="en",
        rows=rows,
        optimisation=Optimisation(steps=60, learning_rate=5e-3, batch_size=8),
    )
    train.train(job, tmp_path / "adapter")
    lineage = read_lineage(tmp_path / "adapter")
    assert lineage is not None and lineage.task is not None
    assert lineage.task["head"] == "mean"
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]
    evaluate = EvaluateJob(base=str(bert), task=task, language="en", rows=rows)
    found = evaluation.evaluate(evaluate, [tmp_path / "adapter"], tmp_path / "scores")
    assert found.score >= 75.0  # a guess gives 25


@pytest.mark.parametrize("which", ["albert", "distilbert"])
def test_a_model_that_gives_its_head_the_first_token_is_refused(which: str, tiny_encoder: Path, tmp_path: Path) -> None:
    """ALBERT's pooler got the first token alone: a batch of one text was read by it, others broke off."""
    from transformers import AlbertConfig, AlbertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    common = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 1}
    if which == "albert":
        size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        AlbertForMaskedLM(AlbertConfig(embedding_size=8, **size, **common)).save_pretrained(tmp_path)
    else:
        config = DistilBertConfig(dim=16, hidden_dim=24, n_layers=2, n_heads=2, **common)
        DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for load in (loading.load, loading.outline):
        with pytest.raises(ModelError, match=r"does not read hidden states[\s\S]*head: cls"):
            load(str(tmp_path), "sequence-classification", ["a", "b"], head="mean")
    assert loading.outline(str(tmp_path), "sequence-classification", ["a", "b"]) is not None


def test_an_outline_with_the_mean_is_the_models(bert: Path, tiny_encoder: Path) -> None:
    for base in (bert, tiny_encoder):
        found = loading.outline(str(base), "sequence-classification", ["a", "b"], head="mean")
        assert found is not None and all(parameter.is_meta for parameter in found.model.parameters())


def test_a_model_without_such_a_head_is_refused(families: dict[str, str]) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(ModelError, match=r"cannot read the mean[\s\S]*head: cls"):
        pooling.read_by_mean(AutoModelForCausalLM.from_pretrained(families["llama"]))


def named(bert: Path, tmp_path: Path, **config: object) -> Path:
    """The encoder as a sentence encoder is published: its config says how a text is read."""
    said = Path(shutil.copytree(bert, tmp_path / "said"))
    known = json.loads((said / "config.json").read_text())
    (said / "config.json").write_text(json.dumps({**known, "pooling": "mean", **config}))
    return said


def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.tsv"
    path.write_text("label\ttext\nnature\tthe river is deep\nhealth\ta kind doctor helps\n", encoding="utf-8")
    return path


def test_without_a_head_a_sentence_encoder_answers_by_the_nearest_name(bert: Path, tmp_path: Path) -> None:
    """log softmax of cosines over 0.01, against the formula on transformers' own states; nothing is trained."""
    base, words = named(bert, tmp_path), {"nature": "river"}
    task = Classification(labels=LABELS, words=words)
    job = EvaluateJob(base=str(base), task=task, language="en", rows=Rows(path=str(rows(tmp_path))))
    evaluation.evaluate(job, None, tmp_path / "out")
    found = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(base)

    def vector(text: str) -> np.ndarray:
        ids = torch.tensor([tokenizer(text).input_ids])
        mean = states(base, ids, torch.ones_like(ids))[0].mean(0)
        return mean / np.linalg.norm(mean)

    names = [vector(f"Topic: {words.get(label, label)}") for label in LABELS]
    for item, text in zip(found, ("the river is deep", "a kind doctor helps"), strict=True):
        cosines = np.array([vector(text) @ name for name in names]) / 0.01
        expected = cosines - np.log(np.exp(cosines - cosines.max()).sum()) - cosines.max()
        np.testing.assert_allclose([item["scores"][label] for label in LABELS], expected, atol=1e-3)
        assert item["predicted"] == LABELS[int(expected.argmax())]


@pytest.mark.parametrize(
    ("config", "head", "kind"),
    [
        ({}, "auto", "sentence-encoder"),
        ({}, "mean", "sentence-encoder"),
        ({}, "cls", "masked-lm"),
        ({"pooling": None}, "auto", "masked-lm"),
        ({"architectures": ["BertForMaskedLM"]}, "auto", "masked-lm"),  # it has a head that can fill a cloze
        ({"architectures": None}, "auto", "masked-lm"),
    ],
)
def test_only_a_sentence_encoder_without_a_cloze_answers_so(
    config: dict[str, object], head: pooling.HeadInput, kind: str, bert: Path, tmp_path: Path
) -> None:
    task = Classification(labels=LABELS, head=head)
    assert running.model_kind(task, str(named(bert, tmp_path, **config)), bare=True) == kind
