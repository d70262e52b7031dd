"""Stacks at work: switching, mixed batches, training, compiling, checkpointing, dtypes, copies."""

from __future__ import annotations

import copy
import hashlib
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import adapter, inputs, tiny
from torch import nn
from transformers import PreTrainedModel

from adamergex.adapters.bottleneck.invertible import Nice
from adamergex.adapters.bottleneck.modules import BottleneckAdapter, BottleneckConfig
from adamergex.adapters.bottleneck.places import find_places
from adamergex.adapters.bottleneck.stack import attach
from adamergex.adapters.heads import head_of, load_head
from adamergex.errors import AdapterFileError, ConfigError, IncompatibleAdaptersError, ModelError

LANGUAGE, TASK = BottleneckConfig.pfeiffer(2, invertible=True), BottleneckConfig.pfeiffer(4)
STACKS = [("sw", "ner"), ("tr", "ner"), ("sw",), (), ("ner",), ("tr", "qa")]


def stacked(kind: str = "bert", **settings: object) -> PreTrainedModel:
    """A model with two languages and two tasks."""
    model = tiny(kind, **settings)
    adapters = [adapter(model, LANGUAGE if seed < 2 else TASK, seed) for seed in range(4)]
    attach(model, *adapters, names=["sw", "tr", "ner", "qa"]).set_stack("sw", "ner")
    return model


def digest(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


@settings(max_examples=60)
@given(
    width=st.integers(2, 65),
    rows=st.integers(1, 3),
    reduction=st.sampled_from([1.0, 1.5, 2.0, 7.0, 100.0]),
    activation=st.sampled_from(["relu", "gelu", "swish", "tanh"]),
    seed=st.integers(0, 2**31),
)
def test_nice_inverse_undoes_forward(width: int, rows: int, reduction: float, activation: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    block = Nice(width, reduction, activation)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        x = torch.randn(rows, 4, width, generator=generator).clamp(-2, 2)
        torch.testing.assert_close(block.inverse(block(x)), x, rtol=0, atol=1e-6)
        torch.testing.assert_close(block(block.inverse(x)), x, rtol=0, atol=1e-6)


def test_one_language_and_one_task_equal_the_formula() -> None:
    """METHOD.md §2, post-norm, by hand on the last layer: s <- s + A_i(LN(s)), then LN(s)."""
    model, batch, seen = stacked(), inputs("bert"), {}
    norm = model.bert.encoder.layer[-1].output.LayerNorm
    model.bert.encoder.layer[-1].output.dropout.register_forward_hook(lambda _m, _i, o: seen.update(x=o))
    model.bert.encoder.layer[-1].intermediate.register_forward_pre_hook(lambda _m, i: seen.update(r=i[0]))
    last = model(**batch, output_hidden_states=True).hidden_states[-1]
    s = seen["x"] + seen["r"]
    for name in ("sw", "ner"):
        part = model.adapter_stack.adapters[name].layers["2"]["output"]
        ln = nn.functional.layer_norm(s, (16,), norm.weight, norm.bias, norm.eps)
        s = s + part.up(torch.relu(part.down(ln)))
    torch.testing.assert_close(last, nn.functional.layer_norm(s, (16,), norm.weight, norm.bias, norm.eps))


def test_new_adapters_start_near_identity_and_always_alike() -> None:
    model, batch = tiny("bert"), inputs("bert")
    before = model(**batch).logits
    attach(model, LANGUAGE, TASK, names=["sw", "ner"])
    after = model(**batch).logits
    assert 0 < (after - before).abs().max() < 0.05 * before.abs().max()
    torch.manual_seed(99)
    again = BottleneckAdapter(LANGUAGE, find_places(model))
    assert digest(again.state_dict()) == digest(model.adapter_stack.adapters["sw"].state_dict())
    again.initialise("another start")
    assert digest(again.state_dict()) != digest(model.adapter_stack.adapters["sw"].state_dict())
    assert again.layers["0"]["output"].down.weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert not again.layers["0"]["output"].up.bias.any()


def test_switching_and_the_context_manager() -> None:
    model, batch = stacked(), inputs("bert")
    alone = {stack: model(**batch).logits for stack in STACKS if model.set_stack(*stack) is None}
    assert len({tensor.sum().item() for tensor in alone.values()}) == len(STACKS)
    model.set_stack("sw", "ner")
    with model.using("tr", "qa") as same:
        assert same is model and model.adapter_stack.active == ("tr", "qa")
        with model.using(rows=[("sw",), ()]):
            assert model.adapter_stack.active == ()
            with pytest.raises(RuntimeError, match="inside"), model.using():
                raise RuntimeError("inside")
            mixed = model(**batch).logits
        assert torch.equal(model(**batch).logits, alone["tr", "qa"])
    assert torch.equal(model(**batch).logits, alone["sw", "ner"])
    torch.testing.assert_close(mixed[0], alone[("sw",)][0])
    torch.testing.assert_close(mixed[1], alone[()][1])


def test_switching_takes_less_than_a_millisecond() -> None:
    model = tiny("bert")
    stack = attach(model).adapter_stack
    languages, tasks = [f"l{i}" for i in range(12)], [f"t{i}" for i in range(5)]
    for name in languages + tasks:
        stack.add(LANGUAGE if name in languages else TASK, name)
    times = []
    for language in languages:
        for task in tasks:
            start = time.perf_counter()
            model.set_stack(language, task)
            times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 1e-3


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", "llama", "gemma2", "mt5", "bart", "mbart"])
def test_mixed_batch_equals_separate_rows(kind: str) -> None:
    model, batch = stacked(kind), inputs(kind, rows=len(STACKS))
    with torch.no_grad():
        with model.using(rows=STACKS):
            mixed = model(**batch).logits
        for row, stack in enumerate(STACKS):
            with model.using(*stack):
                alone = model(**{name: tensor[row : row + 1] for name, tensor in batch.items()}).logits
            torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_mixed_batch_in_beam_search_and_its_gradients() -> None:
    model, batch = stacked("llama"), inputs("llama", rows=2)
    rows = [("sw", "ner"), ("tr", "qa")]
    with model.using(rows=rows):
        mixed = model.generate(**batch, max_new_tokens=4, num_beams=3, do_sample=False)
    for row, stack in enumerate(rows):
        with model.using(*stack):
            one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            alone = model.generate(**one, max_new_tokens=4, num_beams=3, do_sample=False)
        assert torch.equal(mixed[row : row + 1, : alone.shape[1]], alone)
    model.adapter_stack.train_only("sw", "qa")
    with model.using(rows=rows):
        model(**batch).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.adapter_stack.adapters["sw"].parameters())
    assert all(parameter.grad is None for parameter in model.adapter_stack.adapters["ner"].parameters())


@pytest.mark.parametrize("rows", [[("sw",)] * 3, []])
def test_rows_that_do_not_fit_the_batch(rows: list[tuple[str, ...]]) -> None:
    model = stacked()
    with pytest.raises((ModelError, ConfigError), match="row"), model.using(rows=rows):
        model(**inputs("bert"))


@pytest.mark.parametrize("kind", ["bert", "llama", "mistral", "mt5"])
def test_only_the_chosen_adapter_moves(kind: str) -> None:
    model = stacked(kind)
    model.adapter_stack.train_only("sw")
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    before = digest(named)
    moving = {name for name, parameter in named.items() if parameter.requires_grad}
    assert moving and all(name.startswith("adapter_stack.adapters.sw.") for name in moving)
    optimizer = torch.optim.SGD([item for item in model.parameters() if item.requires_grad], lr=0.5)
    model.train()
    model(**inputs(kind)).logits.square().mean().backward()
    optimizer.step()
    after = digest(named)
    assert {name for name in named if before[name] != after[name]} == moving


def test_a_head_learns_with_the_adapter_but_the_projection_never() -> None:
    model = stacked("mistral")  # an untied projection
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    with pytest.raises(ConfigError, match="stay frozen"):
        model.adapter_stack.train_only("sw", also=("lm_head",))
    with pytest.raises(ConfigError, match="no such module"):
        model.adapter_stack.train_only("sw", also=("classifer",))
    model.adapter_stack.train_only("sw", also=("model.norm",))
    assert model.model.norm.weight.requires_grad and not model.lm_head.weight.requires_grad


def gradients(model: PreTrainedModel, kind: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs(kind), **({} if kind == "bert" else {"use_cache": False})).logits.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "bart", "llama", "mbart", "t5"])
def test_gradient_checkpointing_changes_no_gradient(kind: str, reentrant: bool) -> None:
    model = stacked(kind).train()
    # Reentrant checkpoints need an input that learns: the invertible adapter at the embeddings.
    model.adapter_stack.train_only(*(("sw", "ner") if reentrant else ("ner",)))
    plain = gradients(model, kind)
    assert all(gradient.any() for gradient in plain.values())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = gradients(model, kind)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-7)


ONE_LAYER = {
    "bert": {"num_hidden_layers": 1},
    "llama": {"num_hidden_layers": 1},
    "t5": {"num_layers": 1, "num_decoder_layers": 1},
}


@pytest.mark.parametrize("kind", ONE_LAYER)
def test_compiled_model_follows_the_active_stack(kind: str) -> None:
    torch._dynamo.reset()
    model, batch = stacked(kind, **ONE_LAYER[kind]), inputs(kind)
    expected = {stack: model(**batch).logits for stack in STACKS[:2] if model.set_stack(*stack) is None}
    with model.using(rows=STACKS[:2]):
        mixed = model(**batch).logits
    model.set_stack("sw", "ner")
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="eager")
    for stack, logits in expected.items():
        model.set_stack(*stack)
        torch.testing.assert_close(compiled(**batch).logits, logits, rtol=1e-5, atol=1e-5)
    if kind != "t5":  # two towers take long to compile; one tower shows as much
        with model.using(rows=STACKS[:2]):
            torch.testing.assert_close(compiled(**batch).logits, mixed, rtol=1e-5, atol=1e-5)
    assert sum(torch._dynamo.utils.counters["frames"].values()) > 0  # it was compiled, not merely called
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["xlm-roberta", "llama", "mt5"])
def test_bfloat16_and_float32_adapters_on_a_bfloat16_base(kind: str) -> None:
    model, batch = stacked(kind), inputs(kind)
    exact = model(**batch).logits
    model.to(torch.bfloat16)
    near = {"rtol": 0.1, "atol": 0.06 * float(exact.abs().max())}
    half = model(**batch).logits
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, **near)
    model.adapter_stack.float()
    torch.testing.assert_close(model(**batch).logits.float(), exact, **near)
    assert model(**batch).logits.dtype == torch.bfloat16


def test_adapters_take_dtype_and_device_of_the_layers_they_meet() -> None:
    model = tiny("llama").to(torch.bfloat16)
    model.model.layers[1].to(torch.float64)  # as a model spread over devices: each layer has its own
    made = attach(model, LANGUAGE, names=["sw"]).adapter_stack.adapters["sw"]
    assert made.layers["0"]["output"].down.weight.dtype == torch.bfloat16
    assert made.layers["1"]["output"].down.weight.dtype == torch.float64
    assert made.invertible.F[0].weight.dtype == torch.bfloat16


def test_offloaded_weights_through_accelerate() -> None:
    from accelerate import cpu_offload

    model, batch = stacked("bert"), inputs("bert")
    expected = model(**batch).logits
    adapters = {name: copy.deepcopy(model.adapter_stack.adapters[name]) for name in ("sw", "ner")}
    cpu_offload(model.detach(), execution_device=torch.device("cpu"))
    assert model.bert.encoder.layer[0].output.LayerNorm.weight.device.type == "meta"
    attach(model, *adapters.values(), names=list(adapters))
    torch.testing.assert_close(model(**batch).logits, expected)


def test_distributed_data_parallel(tmp_path: Path) -> None:
    model = stacked("bert").train()
    model.adapter_stack.train_only("sw", "ner")
    plain = gradients(model, "bert")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        model.zero_grad()
        wrapped(**inputs("bert")).logits.square().mean().backward()
        for name, gradient in plain.items():
            torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient)
    finally:
        dist.destroy_process_group()


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    model, batch = stacked("bert"), inputs("bert")
    expected = model(**batch).logits
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.adapter_stack.parameters():
            parameter.zero_()
    model.set_stack("tr")
    assert torch.equal(copied(**batch).logits, expected)
    copied.set_stack("sw")
    assert model.adapter_stack.active == ("tr",)


def test_adapters_come_and_go() -> None:
    model, batch = stacked("bert"), inputs("bert")
    attach(model, adapter(model, TASK, 9), names=["extra"])
    assert model.adapter_stack.active == ("extra",) and len(model.adapter_stack.names) == 5
    model.set_stack("sw", "extra")
    model.adapter_stack.remove("extra")
    assert model.adapter_stack.active == ()
    with pytest.raises(ConfigError, match=r"no such adapter\n  found: 'nre'\n  expected: ner"):
        model.set_stack("sw", "nre")
    assert torch.equal(model(**batch).logits, tiny("bert")(**batch).logits)


def test_names_may_be_a_list() -> None:
    model = stacked("bert")
    model.set_stack(["tr", "ner"])
    assert model.adapter_stack.active == ("tr", "ner")
    with model.using(["sw", "qa"]):
        assert model.adapter_stack.active == ("sw", "qa")
    model.set_stack([])
    assert model.adapter_stack.active == ()


def test_a_stack_is_of_one_invert_head() -> None:
    model = tiny("bert")
    attach(model, TASK, names=["a"], invert_head=False)
    attach(model, TASK, names=["b"])
    attach(model, TASK, names=["c"], invert_head=False)
    with pytest.raises(ConfigError, match="another invert_head"):
        attach(model, TASK, names=["d"], invert_head=True)
    assert model.adapter_stack.names == ("a", "b", "c") and not model.adapter_stack.invert_head
    other = stacked("bert")
    assert other.adapter_stack.invert_head
    with pytest.raises(ConfigError, match="another invert_head"):
        attach(other, TASK, names=["d"], invert_head=False)


@pytest.mark.parametrize("name", ["sw", "a.b", "", "keys", None])
def test_names_that_cannot_be(name: str | None) -> None:
    model = stacked("bert")
    with pytest.raises(ConfigError, match="needs a unique name"):
        model.adapter_stack.add(TASK, name)
    with pytest.raises(ConfigError, match="needs a unique name"):
        attach(model, TASK, TASK, names=["fine", name])  # type: ignore[list-item]
    assert model.adapter_stack.names == ("sw", "tr", "ner", "qa") and model.adapter_stack.active == ("sw", "ner")


def test_one_name_for_each_adapter() -> None:
    with pytest.raises(ConfigError, match="one name per adapter"):
        attach(tiny("bert"), TASK, names=["a", "b"])


def test_saved_and_loaded_adapters_compute_the_same(tmp_path: Path) -> None:
    for kind in ("bert", "llama", "mt5"):
        model, batch = stacked(kind), inputs(kind)
        expected = model(**batch).logits
        for name in ("sw", "ner"):
            model.adapter_stack.save(name, tmp_path / kind / name)
        other = attach(tiny(kind), tmp_path / kind / "sw", tmp_path / kind / "ner")
        assert other.adapter_stack.active == ("sw", "ner")
        assert torch.equal(other(**batch).logits, expected)


def test_adapters_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = stacked("bert")
    model.adapter_stack.save("ner", tmp_path / "ner")
    with pytest.raises(IncompatibleAdaptersError, match=r"layers\.0\.output\.down\.weight(.|\n)*found: \(4, 16\)"):
        attach(tiny("bert", hidden_size=32), tmp_path / "ner")
    with pytest.raises(AdapterFileError, match=r"missing: layers\.3\.output\S* and 3 more; unexpected: none"):
        attach(tiny("bert", num_hidden_layers=4), tmp_path / "ner")
    with pytest.raises(AdapterFileError, match=r"missing: none; unexpected: layers\.2\.\S* and 3 more"):
        attach(tiny("bert", num_hidden_layers=2), tmp_path / "ner")


def test_heads_travel_by_name_or_by_order() -> None:
    model, other = tiny("bert", seed=1), tiny("bert", seed=2)
    batch = inputs("bert")
    head = head_of(model, "lm")
    load_head(other, head)
    assert torch.equal(model.cls.predictions.transform.dense.weight, other.cls.predictions.transform.dense.weight)
    with pytest.raises(IncompatibleAdaptersError, match="load the model as BertForMaskedLM"):
        load_head(tiny("distilbert"), head)
    assert model(**batch).logits.shape == other(**batch).logits.shape
