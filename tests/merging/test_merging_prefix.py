"""Prefixes: PEFT's own files against goldens, a float64 oracle for every rule, span, form and dtype, and mutations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import DTYPES, GOLDENS, Tensors, edit_config, edit_tensors, near, read, save, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from test_merging_goldens import compare_logits, compare_tensors, merged
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from adamergex.cli.main import main
from adamergex.errors import (
    AdapterFileError,
    ConfigError,
    IncompatibleAdaptersError,
    NothingMergedError,
)
from adamergex.files.lineage import Lineage
from adamergex.merging import divergence, merge, merged_tensors

KEY = "prompt_embeddings"
SPANS = ("per_layer", "per_kv", "whole")
STEP = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-24, "F64": 2.0**-50}
FORMS: dict[str, dict[str, str]] = {
    "left": {},
    "left_scaled_literal": {"form": "literal"},
    "add": {"rule": "additive"},
}


def config(tokens: int = 4, layers: int = 3, width: int = 6, **changes: Any) -> dict[str, Any]:
    return {
        "peft_type": "PREFIX_TUNING",
        "base_model_name_or_path": "BASE",
        "num_virtual_tokens": tokens,
        "num_layers": layers,
        "token_dim": width,
        "num_attention_heads": 2,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": width,
        "prefix_projection": False,
        "inference_mode": True,
        "task_type": "SEQ_CLS",
        **changes,
    }


def prompt(seed: int, tokens: int = 4, layers: int = 3, width: int = 6) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {KEY: torch.randn(tokens, 2 * layers * width, generator=generator, dtype=torch.float64)}


HEAD = {"base_model.classifier.weight": torch.arange(6.0).reshape(3, 2)}


def trio(path: Path, dtype: str = "F32", start: int = 0, **shape: int) -> dict[str, Path]:
    """Task (with a head), target reference and source reference."""
    tensors, roles = prompt(start, **shape), ("task", "target_reference", "source_reference")
    return {
        role: save(path / role, near(tensors, seed, 0.3) | (HEAD if role == "task" else {}), config(**shape), dtype)
        for seed, role in enumerate(roles, 1)
    }


def columns(span: str, layers: int, total: int) -> list[slice]:
    count = {"whole": 1, "per_layer": layers, "per_kv": 2 * layers}[span]
    return [slice(at * total // count, (at + 1) * total // count) for at in range(count)]


def oracle(rule: str, span: str, form: str, P: dict[str, np.ndarray], weight: float, layers: int = 3) -> np.ndarray:
    """METHOD's formulas once more, by numpy's own pseudo-inverse."""
    t, g, s = (P[role] for role in ("task", "target_reference", "source_reference"))
    if rule == "average":
        return (1 - weight) * t + weight * g
    if rule == "additive":
        return t + weight * (g - s)
    if rule == "multiplicative":
        return np.where(np.abs(s) < 1e-4, t, t * (weight * (g / np.where(s == 0, 1, s) - 1) + 1))
    result = t.copy()
    for place in columns(span, layers, t.shape[1]):
        D = g[:, place] @ np.linalg.pinv(s[:, place], rcond=1e-12)
        operator = weight * D if form == "literal" else np.eye(len(D)) + weight * (D - np.eye(len(D)))
        result[:, place] = operator @ t[:, place]
    return result


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("span", "form"),  # added element by element spans make no difference: the goldens have one
    [(span, form) for span in SPANS for form in sorted(FORMS) if form != "add" or span == "whole"],
)
@pytest.mark.parametrize("case", ["llama_prefix", "xlmr_prefix"])
def test_goldens(case: str, span: str, form: str, weight: float, tmp_path: Path) -> None:
    """Read from PEFT's files; another implementation's tensors, and PEFT's logits with them (grouped queries too)."""
    output = merged(case, tmp_path / "out", weight=weight, span=span, **FORMS[form])
    golden = load_file(GOLDENS / case / "expected.safetensors")
    key = f"prefix.{span}.{form}.lam{weight}"
    np.testing.assert_allclose(read(output)[KEY], golden[key].numpy(), rtol=0, atol=1e-5)
    compare_logits(case, output, key)


@pytest.mark.parametrize("case", ["llama_prefix", "xlmr_prefix"])
def test_per_layer_and_left_are_the_defaults_and_conditions_are_reported(case: str, tmp_path: Path) -> None:
    output = merged(case, tmp_path / "out", weight=0.3)
    compare_logits(case, output, "prefix.per_layer.left.lam0.3")
    merged(case, tmp_path / "whole", weight=0.3, span="whole")
    report = json.loads((tmp_path / "whole" / "merge_report.json").read_text())
    golden = load_file(GOLDENS / case / "expected.safetensors")
    assert [item["condition"] for item in report["modules"]] == [pytest.approx(float(golden["cond.P_rs"]), rel=1e-4)]
    with pytest.raises(AssertionError):
        compare_tensors(case, tmp_path / "whole", "prefix.per_layer.left.lam0.3")


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("rule", ["adaptive", "literal", "additive", "multiplicative", "average"])
def test_every_rule_span_and_dtype(rule: str, span: str, dtype: str, tmp_path: Path) -> None:
    paths = trio(tmp_path, dtype)
    P = {role: read(path)[KEY] for role, path in paths.items()}
    choices: dict[str, Any] = {"rule": "adaptive", "form": "literal"} if rule == "literal" else {"rule": rule}
    if rule == "average":
        del paths["source_reference"]
    merge(**paths, weight=0.7, output=tmp_path / "out", span=span, **choices)
    want = oracle(rule, span, rule, P, 0.7)
    found = tensors_of(tmp_path / "out")
    assert {value.dtype for value in found.values()} == {DTYPES[dtype]}
    # One rounding to the stored dtype of a float64 result: half a unit in the last place.
    limit = STEP[dtype] * np.abs(want) + 1e-12
    np.testing.assert_array_less(np.abs(found[KEY].double().numpy() - want), limit + 1e-30)
    task = tensors_of(paths["task"])["base_model.classifier.weight"]
    assert torch.equal(found["base_model.classifier.weight"].view(torch.uint8), task.view(torch.uint8))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 6),
    layers=st.integers(1, 3),
    width=st.sampled_from([2, 4, 6]),
    weight=st.floats(-2, 2, width=32),
    span=st.sampled_from(SPANS),
    dtype=st.sampled_from(sorted(DTYPES)),
    rule=st.sampled_from(["adaptive", "additive", "multiplicative"]),
    deficient=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:the source reference is rank-deficient")
def test_laws(
    seed: int, tokens: int, layers: int, width: int, weight: float, span: str, dtype: str, rule: str, deficient: bool
) -> None:
    """λ = 0, and equal references, give the task's bits; a saved divergence gives the bytes of the three adapters.

    Also where a virtual token of the references is zero, or spans are narrower than the tokens are many."""
    shape = {"tokens": tokens, "layers": layers, "width": width}
    with TemporaryDirectory() as folder:
        path = Path(folder)
        paths = trio(path, dtype, seed, **shape)
        if deficient and tokens > 1:
            for role in ("target_reference", "source_reference"):
                tensors = tensors_of(paths[role])
                tensors[KEY][0] = 0
                edit_tensors(paths[role], tensors)
        task = (paths["task"] / "adapter_model.safetensors").read_bytes()
        merge(**paths, weight=0.0, output=path / "zero", span=span, rule=rule)
        assert tensors_of(path / "zero")[KEY].view(torch.uint8).equal(tensors_of(paths["task"])[KEY].view(torch.uint8))
        edited = tensors_of(paths["target_reference"])
        references = {role: paths[role] for role in ("target_reference", "source_reference")}
        choices: dict[str, Any] = {"span": span, "rule": rule}
        try:
            merge(**paths, weight=weight, output=path / "out", **choices)
        except NothingMergedError:
            return
        divergence(**references, output=path / "d", **choices)
        merge(task=paths["task"], divergence=path / "d", weight=weight, output=path / "again", **choices)
        ours, theirs = ((path / name / "adapter_model.safetensors").read_bytes() for name in ("out", "again"))
        assert ours == theirs
        save(path / "same", edited, config(**shape), dtype)
        with pytest.raises(NothingMergedError):
            merge(task=paths["task"], target_reference=paths["target_reference"], source_reference=path / "same",
                  weight=weight or 1.0, output=path / "equal", **choices)  # fmt: skip
        assert task == (paths["task"] / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("span", SPANS)
def test_task_equal_to_source_at_weight_one_gives_the_target(span: str, tmp_path: Path) -> None:
    """As far as the rows of the source reference reach: exactly where the target is a mixture of them."""
    paths = trio(tmp_path, "F64")
    source = tensors_of(paths["source_reference"])
    mixture = torch.randn(4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    edit_tensors(paths["target_reference"], {KEY: mixture @ source[KEY]})
    edit_tensors(paths["task"], source)
    merge(**paths, weight=1.0, output=tmp_path / "out", span=span)
    np.testing.assert_allclose(read(tmp_path / "out")[KEY], (mixture @ source[KEY]).numpy(), rtol=0, atol=1e-10)


def test_a_module_whose_references_agree_keeps_its_bits(tmp_path: Path) -> None:
    """Also negative zeros: -0 + λ·0 would be +0. Here the first layer of three."""
    paths = trio(tmp_path)
    task, target, source = (tensors_of(path) for path in paths.values())
    task[KEY][0, :12] = -0.0
    source[KEY][:, :12] = target[KEY][:, :12]
    edit_tensors(paths["task"], task)
    edit_tensors(paths["source_reference"], source)
    report = merge(**paths, weight=0.5, output=tmp_path / "out")
    ours = tensors_of(tmp_path / "out")[KEY]
    assert torch.equal(ours[:, :12].contiguous().view(torch.uint8), task[KEY][:, :12].contiguous().view(torch.uint8))
    assert [item.changed for item in report.modules] == [False, True, True]


def test_spans_can_be_selected(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    report = merge(**paths, weight=0.5, output=tmp_path / "out", modules=r"layers\.1")
    assert (report.matched, report.copied, report.changed) == (1, 2, 1)
    ours, task = tensors_of(tmp_path / "out")[KEY], tensors_of(paths["task"])[KEY]
    assert torch.equal(ours[:, :12], task[:, :12]) and torch.equal(ours[:, 24:], task[:, 24:])
    assert not torch.equal(ours[:, 12:24], task[:, 12:24])
    with pytest.raises(NothingMergedError, match="no module matches"):
        merge(**paths, weight=0.5, output=tmp_path / "none", modules="attention-qv")


def test_a_rank_deficient_source_is_told(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    source = tensors_of(paths["source_reference"])
    source[KEY][2, :12] = source[KEY][1, :12]
    edit_tensors(paths["source_reference"], source)
    with pytest.warns(RuntimeWarning, match=r"rank-deficient in 1 spans \(at most 1 directions, in layers\.0\)"):
        report = merge(**paths, weight=0.5, output=tmp_path / "out")
    assert [item.deficient for item in report.modules] == [1, 0, 0]
    assert "warning: the source reference is rank-deficient" in str(report)
    assert all(item.condition is not None and item.condition < 1e7 for item in report.modules)


def test_literal_has_no_identities(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    merge(**paths, weight=0.0, output=tmp_path / "zero", form="literal")
    assert not tensors_of(tmp_path / "zero")[KEY].any()


def test_a_projection_is_materialised(tmp_path: Path) -> None:
    """PEFT saves the materialised prefix; a training checkpoint of its modules holds the encoder's parameters."""
    base = AutoModelForCausalLM.from_pretrained(GOLDENS / "bases" / "llama")
    torch.manual_seed(0)
    settings = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=7
    )
    model = get_peft_model(base, settings)
    model.save_pretrained(tmp_path / "saved")
    assert set(load_file(tmp_path / "saved" / "adapter_model.safetensors")) == {KEY}
    (tmp_path / "raw").mkdir()
    raw = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("prompt_encoder.")}
    assert len(raw) == 5
    save_file(raw, tmp_path / "raw" / "adapter_model.safetensors")
    (tmp_path / "raw" / "adapter_config.json").write_text((tmp_path / "saved" / "adapter_config.json").read_text())
    found = {}
    for name in ("saved", "raw"):
        target = save(tmp_path / f"{name}-g", near(load_file(tmp_path / "saved" / "adapter_model.safetensors"), 1),
                      json.loads((tmp_path / "saved" / "adapter_config.json").read_text()))  # fmt: skip
        references = {"target_reference": target, "source_reference": tmp_path / name}
        merge(task=tmp_path / name, **references, weight=0.5, output=tmp_path / f"{name}-out")
        found[name] = read(tmp_path / f"{name}-out")
        assert json.loads((tmp_path / f"{name}-out" / "adapter_config.json").read_text())["prefix_projection"] is False
    np.testing.assert_allclose(found["raw"][KEY], found["saved"][KEY], rtol=0, atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(GOLDENS / "bases" / "llama")
    wrapped = PeftModel.from_pretrained(plain, tmp_path / "raw-out")
    loaded = wrapped.prompt_encoder["default"].embedding.weight
    np.testing.assert_allclose(loaded.detach().numpy(), found["raw"][KEY], rtol=0, atol=1e-7)


def test_encoder_decoders(tmp_path: Path) -> None:
    """Two submodules: PEFT's own files of a T5 whose heads × d_kv differ from d_model, merged and loaded again."""
    size = {"d_model": 16, "d_kv": 5, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    ids = torch.tensor([[3, 4, 5]])
    paths = {}
    for seed, role in enumerate(("task", "target_reference", "source_reference")):
        torch.manual_seed(0)
        base = T5ForConditionalGeneration(T5Config(vocab_size=30, **size)).eval()
        torch.manual_seed(seed)
        settings = PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=3, token_dim=10)
        get_peft_model(base, settings).save_pretrained(tmp_path / role)
        paths[role] = tmp_path / role
    P = {role: read(path)[KEY] for role, path in paths.items()}
    merge(**paths, weight=0.6, output=tmp_path / "out")
    want = oracle("adaptive", "per_layer", "left", P, 0.6, layers=2)
    np.testing.assert_allclose(read(tmp_path / "out")[KEY], want, rtol=1e-6, atol=1e-7)
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(T5Config(vocab_size=30, **size)).eval()
    before = base(input_ids=ids, decoder_input_ids=ids).logits
    wrapped = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        assert not torch.allclose(wrapped(input_ids=ids, decoder_input_ids=ids).logits, before)


def test_two_merges_are_the_same_bytes_and_swapped_references_are_not(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for name in ("one", "two"):
        merge(**paths, weight=0.5, output=tmp_path / name)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    swapped = {"target_reference": paths["source_reference"], "source_reference": paths["target_reference"]}
    merge(task=paths["task"], **swapped, weight=0.5, output=tmp_path / "swapped")
    assert not torch.equal(tensors_of(tmp_path / "swapped")[KEY], tensors_of(tmp_path / "one")[KEY])


@pytest.mark.parametrize(
    ("shape", "changes", "error", "message"),
    [
        ({"tokens": 5}, {}, IncompatibleAdaptersError, "num_virtual_tokens in the config differs"),
        ({"layers": 2}, {}, IncompatibleAdaptersError, "num_layers in the config differs"),
        ({"layers": 6, "width": 3}, {}, IncompatibleAdaptersError, "num_layers in the config differs"),
        ({}, {"num_attention_heads": 3}, IncompatibleAdaptersError, "num_attention_heads in the config differs"),
        ({}, {"num_transformer_submodules": 2}, IncompatibleAdaptersError, "num_transformer_submodules in the"),
        ({}, {"base_model_name_or_path": "OTHER"}, IncompatibleAdaptersError, "different base models"),
        ({}, {"num_virtual_tokens": 5}, AdapterFileError, "the prefix does not have the shape in the config"),
        ({}, {"token_dim": None}, AdapterFileError, "lacks the shape"),
        ({}, {"peft_type": "PROMPT_TUNING"}, IncompatibleAdaptersError, "prompt_tuning adapters is not supported"),
    ],
)
def test_another_prefix_is_refused(
    shape: dict[str, int], changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    paths = trio(tmp_path)
    paths["source_reference"] = save(tmp_path / "other", prompt(3, **shape), config(**shape))
    edit_config(paths["source_reference"], **changes)
    with pytest.raises(error, match=message):
        merge(**paths, weight=0.5, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    for change, message in (
        ("drop", "does not have the shape in the config"),
        ("nan", "not finite"),
        ("dtype", "dtype of prompt"),
    ):
        paths = trio(tmp_path / change)
        tensors = tensors_of(paths["target_reference"])
        if change == "drop":
            tensors = {"other": tensors[KEY]}
        elif change == "nan":
            tensors[KEY][1, 2] = float("nan")
        else:
            tensors[KEY] = tensors[KEY].half()
        edit_tensors(paths["target_reference"], tensors)
        with pytest.raises((AdapterFileError, IncompatibleAdaptersError), match=message):
            merge(**paths, weight=0.5, output=tmp_path / change / "out")
    paths = trio(tmp_path / "large", "F16")
    with pytest.raises(AdapterFileError, match="does not fit its dtype"):
        merge(**paths, weight=1e9, output=tmp_path / "large" / "out")


def test_a_divergence_fits_its_rule_and_span_only(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    references = {role: paths[role] for role in ("target_reference", "source_reference")}
    divergence(**references, output=tmp_path / "d", span="whole")
    for choices in ({}, {"span": "per_kv"}, {"span": "whole", "rule": "additive"}):
        with pytest.raises(IncompatibleAdaptersError, match="divergence was made for another merge"):
            merge(task=paths["task"], divergence=tmp_path / "d", weight=0.5, output=tmp_path / "out", **choices)
    with pytest.raises(IncompatibleAdaptersError, match="not a task adapter"):
        merge(**(paths | {"task": tmp_path / "d"}), weight=0.5, output=tmp_path / "out")
    for form in ("left", "literal"):  # one divergence serves both forms
        merge(
            task=paths["task"], divergence=tmp_path / "d", weight=0.5, output=tmp_path / form, span="whole", form=form
        )
        merge(**paths, weight=0.5, output=tmp_path / f"{form}-3", span="whole", form=form)
        assert torch.equal(tensors_of(tmp_path / form)[KEY], tensors_of(tmp_path / f"{form}-3")[KEY])


def test_two_starts_in_the_lineages_are_refused(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for role, path in paths.items():
        Lineage(start=("a" if role == "task" else "b") * 64).write(path)
    with pytest.raises(IncompatibleAdaptersError, match="different random starts"):
        merge(**paths, weight=0.5, output=tmp_path / "out")
    merge(**paths, weight=0.5, output=tmp_path / "out", allow_different_start=True)


def test_options_belong_to_prefixes(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for choices, message in (
        ({"span": "layer"}, "no such span"),
        ({"form": "right"}, "no such form"),
        ({"form": "left", "rule": "additive"}, "for prefixes and their own rule"),
        ({"space": "delta"}, "delta space is for LoRA"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge(**paths, weight=0.5, output=tmp_path / "out", **choices)
    lora = GOLDENS / "llama_lora_qv"
    with pytest.raises(ConfigError, match="for prefixes"):
        merge(task=lora / "task", target_reference=lora / "ref_tgt", source_reference=lora / "ref_src",
              weight=0.5, output=tmp_path / "out", span="whole")  # fmt: skip


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("rule", ["adaptive", "additive", "multiplicative", "average"])
def test_resident_tensors_give_the_bytes_of_files(rule: str, dtype: str, tmp_path: Path) -> None:
    paths = trio(tmp_path, dtype)
    tensors = {role: tensors_of(path) for role, path in paths.items()}
    if rule == "average":
        del paths["source_reference"]
    for weight in (0.0, 0.7):
        merge(**paths, weight=weight, output=tmp_path / str(weight), rule=rule)
        found = merged_tensors(*tensors.values(), weight, kind="prefix", rule=rule, layers=3)
        assert all(torch.equal(found[name], value) for name, value in tensors_of(tmp_path / str(weight)).items())
    arrays = [{KEY: value[KEY].double().numpy()} for value in tensors.values()]
    same = merged_tensors(*arrays, 0.7, kind="prefix", rule=rule, layers=3, span="whole")
    P = dict(zip(tensors, (array[KEY] for array in arrays), strict=True))
    np.testing.assert_allclose(same[KEY], oracle(rule, "whole", "left", P, 0.7), rtol=1e-9, atol=1e-9)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = trio(tmp_path)
    references = ["--target-reference", str(paths["target_reference"])]
    references += ["--source-reference", str(paths["source_reference"])]
    merging = ["merge", "--task", str(paths["task"]), "--weight", "0.5"]
    assert main([*merging, *references, "--span", "per_kv", "--form", "literal", "--output", str(tmp_path / "a")]) == 0
    assert "span per_kv, form literal" in capsys.readouterr().out
    assert main(["divergence", *references, "--span", "per_kv", "--output", str(tmp_path / "d")]) == 0
    saved = [*merging, "--divergence", str(tmp_path / "d"), "--output", str(tmp_path / "b")]
    assert main(saved) == 2
    assert "merge with --span per_kv --rule adaptive" in capsys.readouterr().err
    assert main([*saved, "--span", "per_kv", "--form", "literal"]) == 0
    assert torch.equal(tensors_of(tmp_path / "a")[KEY], tensors_of(tmp_path / "b")[KEY])
    told = json.loads((tmp_path / "a" / "lineage.json").read_text())
    assert told["structure"] == {"kind": "prefix", "virtual_tokens": 4}
    assert (told["merge"]["rule"], told["merge"]["span"], told["merge"]["form"]) == ("prefix", "per_kv", "literal")


def test_merging_prefixes_loads_no_torch(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    arguments = {role: str(path) for role, path in paths.items()} | {"output": str(tmp_path / "out")}
    code = (
        f"import sys; from adamergex import merge; merge(**{arguments}, weight=0.5)\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
