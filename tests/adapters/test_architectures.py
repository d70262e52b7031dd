"""Adapters on every architecture against the independent float64 implementation of ``adapter_reference.py``."""

from __future__ import annotations

import copy

import pytest
import torch
from adapter_reference import Plain, reference
from tiny_models import CONFIGS, SEQUENCE_TO_SEQUENCE, adapter, inputs, tiny
from torch import nn

from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.adapters.bottleneck.places import find_places
from adamergex.adapters.bottleneck.stack import attach
from adamergex.errors import ConfigError, IncompatibleAdaptersError, ModelError

PFEIFFER = BottleneckConfig.pfeiffer(2, invertible=True), BottleneckConfig.pfeiffer(4, leave_out=(1,))
HOULSBY = BottleneckConfig.houlsby(2, activation="relu"), BottleneckConfig.houlsby(4, activation="relu", leave_out=(0,))
STACKS = {"pfeiffer": PFEIFFER, "houlsby": HOULSBY, "houlsby below pfeiffer": (HOULSBY[0], PFEIFFER[1])}


def states(output: object) -> list[torch.Tensor]:
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return [tensor for name in names for tensor in (getattr(output, name, None) or ())]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_stack_equals_the_reference(kind: str, stack: str) -> None:
    model, batch = tiny(kind), inputs(kind)
    adapters = [adapter(model, config, seed) for seed, config in enumerate(STACKS[stack])]
    plain = [Plain(copy.deepcopy(item.state_dict()), item.config.reuse_norm) for item in adapters]
    with torch.no_grad():
        expected = reference(model, kind, plain)(**batch, output_hidden_states=True)
        bare = model(**batch).logits
        attach(model, *adapters, names=["language", "task"])
        single = model(**batch).logits
        double = model.double()(**batch, output_hidden_states=True)
    assert (expected.logits - bare).abs().max() > 0.1
    torch.testing.assert_close(double.logits, expected.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(single.double(), expected.logits, rtol=1e-4, atol=1e-4)
    pairs = list(zip(states(double), states(expected), strict=True))
    assert len(pairs) == len(find_places(model).layers) + (2 if kind in SEQUENCE_TO_SEQUENCE else 1)
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", CONFIGS)
def test_detached_model_is_the_model_as_it_was(kind: str) -> None:
    model, batch = tiny(kind), inputs(kind)
    model.get_input_embeddings().weight.requires_grad_(False)
    before, names = model(**batch).logits, [name for name, _ in model.named_parameters()]
    hooks_before = hooks(model)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attach(model, *(adapter(model, config, 0) for config in PFEIFFER), names=["language", "task"])
    with model.using():
        assert torch.equal(model(**batch).logits, before)
    assert model.detach() is model
    assert torch.equal(model(**batch).logits, before)
    assert [name for name, _ in model.named_parameters()] == names
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert hooks(model) == hooks_before
    assert not hasattr(model, "adapter_stack") and "set_stack" not in vars(model)


def test_recorded_hidden_states_are_those_that_the_next_layer_reads() -> None:
    model, batch = tiny("llama"), inputs("llama")
    model(**batch, output_hidden_states=True)  # installs transformers' recording hooks before ours
    item = adapter(model, BottleneckConfig.pfeiffer(2), 1)
    plain = [Plain(item.state_dict(), True)]
    expected = reference(model, "llama", plain)(**batch, output_hidden_states=True).hidden_states
    attach(model, item, names=["a"])
    for own, other in zip(model(**batch, output_hidden_states=True).hidden_states, expected, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=1e-4, atol=1e-4)


def test_t5_with_one_embedding_module_for_both_sides() -> None:
    """After resize_token_embeddings encoder and decoder share a module; only the encoder's output may change."""
    model, batch = tiny("t5"), inputs("t5")
    item = adapter(model, PFEIFFER[0], 2)
    plain = [Plain(copy.deepcopy(item.state_dict()), True)]
    expected = reference(model, "t5", plain)(**batch).logits
    model.set_input_embeddings(model.shared)
    assert model.encoder.embed_tokens is model.decoder.embed_tokens
    attach(model, item, names=["a"])
    torch.testing.assert_close(model(**batch).logits.double(), expected, rtol=1e-4, atol=1e-4)


def test_generation_with_a_cache_equals_generation_without() -> None:
    model = attach(tiny("llama"), *(adapter(tiny("llama"), config, 3) for config in PFEIFFER), names=["a", "b"])
    batch = inputs("llama")
    cached = model.generate(**batch, max_new_tokens=5, do_sample=False)
    torch.testing.assert_close(model.generate(**batch, max_new_tokens=5, do_sample=False, use_cache=False), cached)


def test_houlsby_on_pfeiffer_is_refused() -> None:
    model = tiny("bert")
    with pytest.raises(IncompatibleAdaptersError, match=r"reads x \(houlsby\) cannot be stacked on"):
        attach(model, adapter(model, PFEIFFER[1], 0), adapter(model, HOULSBY[0], 1), names=["low", "high"])
    assert not hasattr(model, "adapter_stack")  # all or nothing


def test_pfeiffer_after_attention_needs_a_post_norm_layer() -> None:
    config = BottleneckConfig.pfeiffer(2, attention=True)
    attach(tiny("bert"), config, names=["a"])
    with pytest.raises(ModelError, match="no place after attention"):
        attach(tiny("llama"), config, names=["a"])


def test_a_model_without_layers_is_refused_by_what_was_looked_for() -> None:
    model = tiny("bert")
    model.bert.encoder.layer = nn.ModuleList([nn.Linear(16, 16)])
    with pytest.raises(ModelError, match="alike layers, each with a norm 16 wide and two or more matrices"):
        attach(model, BottleneckConfig.pfeiffer(), names=["a"])


def test_a_layer_without_an_attention_module_is_refused_for_houlsby() -> None:
    model = tiny("llama")
    for layer in model.model.layers:
        layer.self_attn = nn.Linear(16, 16)
    with pytest.raises(ModelError, match="an attention module first and a feed-forward module last"):
        attach(model, BottleneckConfig.houlsby(), names=["a"])


def test_inverse_that_does_not_fit_the_projection_is_refused() -> None:
    model = tiny("electra")
    model.set_output_embeddings(nn.Linear(16, 40))
    with pytest.raises(ModelError, match="a projection that reads 16"):
        attach(model, PFEIFFER[0], names=["a"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": 0}, "reduction"),
        ({"activation": "reluu"}, "activation"),
        ({"output": False}, "output, attention"),
        ({"leave_out": (-1,)}, "leave_out"),
        ({"dropout": 1.0}, "dropout"),
        ({"scaling": float("nan")}, "scaling"),
    ],
)
def test_settings_that_no_adapter_can_have(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BottleneckConfig(**settings)  # type: ignore[arg-type]


def test_reduction_by_layer() -> None:
    model = tiny("t5")
    made = adapter(model, BottleneckConfig(reduction={"default": 2, "2": 4}), 0)
    assert made.layers["0"]["output"].down.out_features == 8
    assert made.decoder_layers["0"]["output"].down.out_features == 4  # layer 2: after the encoder's 0 and 1
    with pytest.raises(ConfigError, match='add "default"'):
        adapter(model, BottleneckConfig(reduction={"0": 2}), 0)
