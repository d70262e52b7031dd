"""Golden values of ``adapters`` 1.3.0 and composable-sft, read from those libraries' own files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from adamergex.adapters.bottleneck.invertible import Nice
from adamergex.adapters.bottleneck.stack import attach
from adamergex.adapters.formats.adapterhub import export_adapter, import_adapter, read_adapter
from adamergex.adapters.sparse import (
    SparseDifference,
    applied,
    apply_difference,
    export_difference,
    read_difference,
    write_difference,
)

GOLDENS = Path(__file__).parents[1] / "goldens"
MADX, SFT = GOLDENS / "g1_madx", GOLDENS / "g4_sft" / "xlmr_tokcls"
CASES = ("xlmr_seqbn", "bert_seqbn", "xlmr_leaveout")
CLASSES = {
    "lm": AutoModelForMaskedLM,
    "tokcls": AutoModelForTokenClassification,
    "seqcls": AutoModelForSequenceClassification,
}
SETUPS = {
    "none": (),
    "lang": ("lang",),
    "lang2": ("lang2",),
    "task": ("task",),
    "stack_lang_task": ("lang", "task"),
    "stack_lang2_task": ("lang2", "task"),
}
NEAR = {"rtol": 0.0, "atol": 1e-4}


def base(case: str, head: str) -> PreTrainedModel:
    return CLASSES[head].from_pretrained(MADX / "bases" / case.split("_")[0] / f"base_{head}").eval()


def folders(case: str) -> list[Path]:
    return [MADX / case / "adapters" / name for name in ("lang", "lang2", "task")]


def check(model: PreTrainedModel, case: str, key: str) -> None:
    expected = load_file(MADX / case / "expected.safetensors")
    batch = {name: expected[name] for name in ("input_ids", "attention_mask")}
    for setup, names in SETUPS.items():
        with torch.no_grad(), model.using(*names):
            output = model(**batch, output_hidden_states=True)
        torch.testing.assert_close(output.logits, expected[f"{key}.{setup}.logits"], **NEAR)
        torch.testing.assert_close(torch.stack(output.hidden_states), expected[f"{setup}.hidden_states"], **NEAR)


@pytest.mark.parametrize("key", ["lm_inv", "lm_noinv", "tokcls", "seqcls"])
@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits_of_all_setups(case: str, key: str) -> None:
    check(attach(base(case, key.split("_")[0]), *folders(case), invert_head=key != "lm_noinv"), case, key)


def test_the_inverse_really_runs_in_the_plain_masked_lm() -> None:
    """adapters skips it in transformers' own head classes; here the two goldens must be far apart, and ours lm_inv."""
    expected = load_file(MADX / "xlmr_seqbn" / "expected.safetensors")
    assert (expected["lm_inv.lang.logits"] - expected["lm_noinv.lang.logits"]).abs().max() > 1


@pytest.mark.parametrize("case", CASES)
def test_imported_and_exported_again_they_compute_the_same(case: str, tmp_path: Path) -> None:
    model = base(case, "lm")
    for folder in folders(case):
        import_adapter(folder, tmp_path / "ours" / folder.name)
        export_adapter(tmp_path / "ours" / folder.name, tmp_path / "theirs" / folder.name, model)
    names = ("lang", "lang2", "task")
    check(attach(model, *(tmp_path / "ours" / name for name in names)), case, "lm_inv")
    model.detach()
    check(attach(model, *(tmp_path / "theirs" / name for name in names)), case, "lm_inv")


@pytest.mark.parametrize("case", CASES)
def test_export_restores_names_tensors_and_config_of_the_original(case: str, tmp_path: Path) -> None:
    for folder in folders(case):
        export_adapter(folder, tmp_path / folder.name, base(case, "lm"))
        own = torch.load(tmp_path / folder.name / "pytorch_adapter.bin", weights_only=True)
        theirs = torch.load(folder / "pytorch_adapter.bin", weights_only=True)
        assert set(own) == set(theirs) and all(torch.equal(own[key], theirs[key]) for key in own)
        written, original = (
            json.loads((place / "adapter_config.json").read_text()) for place in (tmp_path / folder.name, folder)
        )
        assert written == original


def test_an_xlmr_adapter_loads_on_bert_by_structure() -> None:
    """The same layers under other names: only the numbers of the layers count."""
    xlmr, bert = (attach(base(case, "lm"), *folders("xlmr_seqbn")) for case in ("xlmr_seqbn", "bert_seqbn"))
    for name in xlmr.adapter_stack.names:
        one, other = (model.adapter_stack.adapters[name].state_dict() for model in (xlmr, bert))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("suffix", ["", ".f64"])
@pytest.mark.parametrize("case", sorted(json.loads((GOLDENS / "g2_nice" / "nice.json").read_text())["cases"]))
def test_nice(case: str, suffix: str) -> None:
    golden = load_file(GOLDENS / "g2_nice" / "nice.safetensors")
    prefix = f"{case}{suffix}."
    values = {key.removeprefix(prefix): tensor for key, tensor in golden.items() if key.startswith(prefix)}
    if not suffix:
        values = {key: tensor for key, tensor in values.items() if not key.startswith("f64.")}
    width, activation, reduction = case.split("_")[:3]
    block = Nice(int(width[1:]), float(reduction[1:]), activation).to(values["x"].dtype)
    block.load_state_dict({key: tensor for key, tensor in values.items() if key[:2] in ("F.", "G.")})
    near = {"rtol": 0.0, "atol": 1e-12 if suffix else 1e-5}
    with torch.no_grad():
        torch.testing.assert_close(block(values["x"]), values["y"], **near)
        torch.testing.assert_close(block.inverse(values["y"]), values["x_back"], **near)
        torch.testing.assert_close(block.inverse(values["x"]), values["inv_of_x"], **near)


def sft() -> tuple[PreTrainedModel, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    expected = load_file(SFT / "expected.safetensors")
    return base("xlmr", "tokcls"), expected, {key[3:]: expected[key] for key in expected if key.startswith("in.")}


SFT_CASES = {
    "none": (),
    "lang": (("lang", False),),
    "task": (("task", True),),
    "task_noabs": (("task", False),),
    "task+lang": (("task", True), ("lang", False)),
    "lang+task": (("lang", False), ("task", True)),
    "task+lang2": (("task", True), ("lang2", False)),
}


@pytest.mark.parametrize("form", ["theirs", "ours", "exported"])
@pytest.mark.parametrize("case", SFT_CASES)
def test_sparse_differences(case: str, form: str, tmp_path: Path) -> None:
    model, expected, batch = sft()
    for name, whole in SFT_CASES[case]:
        difference = read_difference(SFT / name / "pytorch_diff.bin")
        if form != "theirs":
            write = write_difference if form == "ours" else export_difference
            difference = read_difference(write(tmp_path / name, difference))
        apply_difference(model, difference, with_whole=whole)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected[f"logits.{case}"], rtol=0, atol=1e-5)


def test_languages_change_places_and_the_base_comes_back() -> None:
    model, expected, batch = sft()
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    task, lang, lang2 = (read_difference(SFT / name) for name in ("task", "lang", "lang2"))
    with torch.no_grad():
        with applied(model, task, lang):
            torch.testing.assert_close(model(**batch).logits, expected["logits.task+lang"], rtol=0, atol=1e-5)
        assert all(torch.equal(parameter, start[name]) for name, parameter in model.named_parameters())
        apply_difference(model, task)
        apply_difference(model, lang, with_whole=False)
        undone = {name: replace(entry, values=-entry.values) for name, entry in lang.sparse.items()}
        apply_difference(model, SparseDifference(undone))
        apply_difference(model, lang2, with_whole=False)
        torch.testing.assert_close(model(**batch).logits, expected["logits.swap_lang_to_lang2"], rtol=0, atol=1e-4)


def test_the_sparse_format_as_the_peer_decodes_it(tmp_path: Path) -> None:
    """``format.*``: one tensor decoded; our export has the peer's own steps and order of values."""
    expected = load_file(SFT / "expected.safetensors")
    difference = read_difference(SFT / "lang")
    export_difference(tmp_path / "out", difference)
    raw = torch.load(tmp_path / "out" / "pytorch_diff.bin", weights_only=True)["diffs"]
    name = next(
        name
        for name, entry in raw.items()
        if torch.equal(torch.tensor(entry["index_steps"]), expected["format.index_steps"])
    )
    assert torch.equal(raw[name]["values"], expected["format.values"])
    assert tuple(raw[name]["size"]) == tuple(expected["format.size"].tolist())
    assert torch.equal(difference.sparse[name].dense(), expected["format.dense"])
    flat = np.asarray(raw[name]["index_steps"]).cumsum()
    rows, columns = flat % raw[name]["size"][0], flat // raw[name]["size"][0]
    assert np.array_equal(expected["format.dense"].numpy()[rows, columns], raw[name]["values"].numpy())


def test_read_adapter_names_tensors_by_structure() -> None:
    files = read_adapter(MADX / "xlmr_leaveout" / "adapters" / "lang")
    assert files.name == "lang" and files.config.leave_out == (2,) and files.config.invertible
    assert sorted(files.tensors)[:2] == ["invertible.F.0.bias", "invertible.F.0.weight"]
    assert {key.split(".")[1] for key in files.tensors if key.startswith("layers")} == {"0", "1"}
    assert files.metadata["model_type"] == "xlm-roberta"
