"""AdapterHub's flexible heads: the logits that AdapterHub computes, written out here, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import gelu, linear
from transformers import PreTrainedModel

from adamergex.adapters.formats.adapterhub import HeadFiles, read_head
from adamergex.adapters.heads import head_of, load_head
from adamergex.errors import IncompatibleAdaptersError

WIDTH = 16
SIZE = {"vocab_size": 40, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "num_labels": 3}  # fmt: skip
DISTIL = {"vocab_size": 40, "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "num_labels": 3}
IDS = torch.tensor([[5, 9, 7, 30], [4, 8, 12, 3]])
W1, B1 = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)), torch.ones(WIDTH) / 3
W2, B2 = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(2)), torch.tensor([0.1, 0.2, 0.3])
ONE = {"heads.a.1.weight": W2, "heads.a.1.bias": B2}
TWO = {"heads.a.1.weight": W1, "heads.a.1.bias": B1, "heads.a.4.weight": W2, "heads.a.4.bias": B2}
SEQUENCE = {"head_type": "classification", "use_pooler": False, "activation_function": "tanh"}


def built(cls: str, **settings: Any) -> PreTrainedModel:
    made = getattr(transformers, cls)
    torch.manual_seed(0)
    given = DISTIL if cls.startswith("Distil") else SIZE
    return made(made.config_class(**{**given, **settings})).eval()


def stored(folder: Path, tensors: dict[str, Tensor], config: Any) -> HeadFiles:
    (folder / "head_config.json").write_text(json.dumps({"config": config, "name": "a"}))
    torch.save(tensors, folder / "pytorch_model_head.bin")
    found = read_head(folder)
    assert found is not None
    return found


def two(states: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    return linear(act(linear(states, W1, B1)), W2, B2)


RIGHT: dict[str, tuple[str, dict[str, Tensor], dict[str, Any], Callable[[Any], Tensor]]] = {
    "bert-pooler": ("BertForSequenceClassification", ONE, SEQUENCE | {"use_pooler": True},
                    lambda out: linear(out.pooler_output, W2, B2)),
    "xlm-r-tanh": ("XLMRobertaForSequenceClassification", TWO, SEQUENCE,
                   lambda out: two(out[0][:, 0], torch.tanh)),
    "electra-gelu": ("ElectraForSequenceClassification", TWO, SEQUENCE | {"activation_function": "gelu"},
                     lambda out: two(out[0][:, 0], gelu)),
    "distilbert-relu": ("DistilBertForSequenceClassification", TWO, SEQUENCE | {"activation_function": "relu"},
                        lambda out: two(out[0][:, 0], torch.relu)),
    "several-labels": ("XLMRobertaForSequenceClassification", TWO, SEQUENCE | {"head_type":
                       "multilabel_classification"}, lambda out: two(out[0][:, 0], torch.tanh)),
    "tags": ("XLMRobertaForTokenClassification", ONE, {"head_type": "tagging", "activation_function": "tanh"},
             lambda out: linear(out[0], W2, B2)),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT)
def test_what_the_model_computes_too_is_loaded(case: Any, tmp_path: Path) -> None:
    cls, tensors, config, compute = case
    model = built(cls)
    load_head(model, stored(tmp_path, tensors, config))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, compute(model.base_model(IDS)))


def test_spans_are_loaded(tmp_path: Path) -> None:
    model = built("BertForQuestionAnswering", num_labels=2)
    tensors = {"heads.qa.1.weight": W2[:2], "heads.qa.1.bias": B2[:2]}
    load_head(model, stored(tmp_path, tensors, {"head_type": "question_answering", "activation_function": "tanh"}))
    with torch.no_grad():
        out, wanted = model(IDS), linear(model.bert(IDS)[0], W2[:2], B2[:2])
    torch.testing.assert_close(torch.stack([out.start_logits, out.end_logits], -1), wanted)


def test_choices_are_loaded_or_refused(tmp_path: Path) -> None:
    tensors = {"heads.c.1.weight": W2[:1], "heads.c.1.bias": B2[:1]}
    config = {"head_type": "multiple_choice", "activation_function": None, "use_pooler": True}
    model = built("BertForMultipleChoice")
    load_head(model, stored(tmp_path, tensors, config))
    with torch.no_grad():
        wanted = linear(model.bert(IDS).pooler_output, W2[:1], B2[:1]).view(1, 2)
        torch.testing.assert_close(model(IDS[None]).logits, wanted)
    with pytest.raises(IncompatibleAdaptersError, match="does not compute"):
        load_head(model, stored(tmp_path, tensors, config | {"use_pooler": False}))


OTHER: dict[str, tuple[str, dict[str, Tensor], Any, str]] = {
    "bert-first-state": ("BertForSequenceClassification", ONE, SEQUENCE, "use_pooler: False"),
    "xlm-r-relu": ("XLMRobertaForSequenceClassification", TWO, SEQUENCE | {"activation_function": "relu"}, "relu"),
    "xlm-r-linear": ("XLMRobertaForSequenceClassification", TWO, SEQUENCE | {"activation_function": None}, "None"),
    "xlm-r-pooler": ("XLMRobertaForSequenceClassification", TWO, SEQUENCE | {"use_pooler": True}, "use_pooler: True"),
    "electra-tanh": ("ElectraForSequenceClassification", TWO, SEQUENCE, "tanh"),
    "distilbert-tanh": ("DistilBertForSequenceClassification", TWO, SEQUENCE, "tanh"),
    "unknown-activation": ("XLMRobertaForSequenceClassification", TWO, SEQUENCE | {"activation_function": "x"}, ": x"),
    "unknown-kind": ("XLMRobertaForSequenceClassification", TWO, SEQUENCE | {"head_type": "parsing"}, "parsing"),
    "no-settings": ("XLMRobertaForSequenceClassification", TWO, None, "type: None"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER.values(), ids=OTHER)
def test_another_computation_is_refused_and_leaves_the_head(case: Any, tmp_path: Path) -> None:
    cls, tensors, config, said = case
    model = built(cls)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(IncompatibleAdaptersError, match=rf"does not compute[\s\S]*{said}"):
        load_head(model, stored(tmp_path, tensors, config))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.bert._forward_hooks if hasattr(model, "bert") else True


def test_a_head_of_another_kind_with_the_same_tensors_is_refused() -> None:
    head = head_of(built("BertForSequenceClassification"), "topics")
    with pytest.raises(IncompatibleAdaptersError, match="of another kind"):
        load_head(built("DistilBertForTokenClassification"), head)
    tagger = built("BertForTokenClassification")
    assert set(head.tensors) == {"classifier.weight", "classifier.bias"}
    with pytest.raises(IncompatibleAdaptersError, match="of another kind"):
        load_head(tagger, head)
