"""Every bad input is a typed error that says what, where and what to do; and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import (
    PREFIX,
    edit_config,
    edit_tensors,
    ia3_config,
    ia3_tensors,
    lora_config,
    lora_tensors,
    near,
    save,
    tensors_of,
    trio,
)

from adamergex.errors import (
    AdamergexError,
    AdapterFileError,
    ConfigError,
    IncompatibleAdaptersError,
    NothingMergedError,
)
from adamergex.files.lineage import Lineage
from adamergex.merging import divergence, merge

Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"
Trio = dict[str, Path]


def refuse(kind: type[AdamergexError], pattern: str, paths: Trio, tmp_path: Path, **choices: Any) -> str:
    before = sorted(item.name for item in tmp_path.iterdir())
    with pytest.raises(kind, match=pattern) as caught:
        merge(**{"weight": 0.5, "output": tmp_path / "out", **paths, **choices})
    assert sorted(item.name for item in tmp_path.iterdir()) == before
    return str(caught.value)


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = tensors_of(path)
    edit(tensors)
    edit_tensors(path, tensors)


def test_a_dropped_module_is_named(tmp_path: Path) -> None:
    paths = trio(tmp_path)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{Q0}.lora_A.weight"], tensors[f"{Q0}.lora_B.weight"]

    change(paths["source_reference"], drop)
    text = refuse(IncompatibleAdaptersError, "different modules", paths, tmp_path)
    assert "missing model.layers.0.self_attn.q_proj" in text
    assert "target_modules" in text
    assert str(paths["source_reference"]) in text


def test_a_misspelt_name_is_named(tmp_path: Path) -> None:
    paths = trio(tmp_path)

    def misspell(tensors: dict[str, torch.Tensor]) -> None:
        for factor in ("lora_A", "lora_B"):
            name = f"{Q0}.{factor}.weight"
            tensors[name.replace("q_proj", "qproj")] = tensors.pop(name)

    change(paths["target_reference"], misspell)
    text = refuse(IncompatibleAdaptersError, "different modules", paths, tmp_path)
    assert "missing model.layers.0.self_attn.q_proj" in text
    assert "extra model.layers.0.self_attn.qproj" in text


@pytest.mark.parametrize("name", ["lora_A.wieght", "loraA.weight", "lora_C.weight"])
def test_a_misspelt_factor_is_no_head(name: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    change(paths["task"], lambda tensors: tensors.update({f"{Q0}.{name}": tensors.pop(f"{Q0}.lora_A.weight")}))
    refuse(IncompatibleAdaptersError, "does not belong to plain lora", paths, tmp_path)


def test_one_factor_without_the_other(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    change(paths["task"], lambda tensors: tensors.pop(f"{Q0}.lora_B.weight"))
    refuse(AdapterFileError, "factor of a module is missing", paths, tmp_path)


def test_another_front_of_the_names_has_its_own_hint(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    tensors = {name.replace("model.layers", "roberta.layers"): t for name, t in tensors_of(paths["task"]).items()}
    edit_tensors(paths["source_reference"], tensors)
    refuse(IncompatibleAdaptersError, "only the beginnings of the names differ", paths, tmp_path)


def test_another_shape(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_tensors(paths["source_reference"], lora_tensors(3, width=32))
    text = refuse(IncompatibleAdaptersError, "shape of .*lora_A.weight differs", paths, tmp_path)
    assert "(4, 32)" in text
    assert "(4, 24)" in text


@pytest.mark.parametrize(
    "changes", [{"lora_alpha": 16}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}], ids=lambda c: next(iter(c))
)
def test_another_alpha_is_refused_in_factor_space(changes: dict[str, Any], tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_config(paths["target_reference"], **changes)
    text = refuse(IncompatibleAdaptersError, "rank or alpha of .*_proj differs", paths, tmp_path)
    assert "--space delta" in text


def test_another_rank_is_refused_in_factor_space(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_tensors(paths["target_reference"], lora_tensors(2, rank=8))
    edit_config(paths["target_reference"], r=8)
    refuse(IncompatibleAdaptersError, "rank or alpha of", paths, tmp_path)


def test_a_rank_that_the_tensors_do_not_have(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_config(paths["task"], r=8)
    refuse(AdapterFileError, "rank of a module differs from the config", paths, tmp_path)


def test_another_dtype(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    change(paths["source_reference"], lambda t: t.update({name: value.half() for name, value in t.items()}))
    refuse(IncompatibleAdaptersError, "dtype of .* differs", paths, tmp_path)


def test_another_base_by_name(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_config(paths["source_reference"], base_model_name_or_path="other")
    refuse(IncompatibleAdaptersError, "different base models", paths, tmp_path)


def test_hashes_decide_about_the_base(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for path in paths.values():
        Lineage(base={"name": "BASE", "sha256": "aa"}, start="s").write(path)
    edit_config(paths["source_reference"], base_model_name_or_path="/moved/BASE")
    merge(**paths, weight=0.5, output=tmp_path / "out")
    Lineage(base={"name": "BASE", "sha256": "bb"}, start="s").write(paths["source_reference"])
    with pytest.raises(IncompatibleAdaptersError, match="different base models"):
        merge(**paths, weight=0.5, output=tmp_path / "again")


def test_other_structures(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    paths["source_reference"] = save(tmp_path / "ia3", ia3_tensors(0), ia3_config())
    refuse(IncompatibleAdaptersError, "different structures", paths, tmp_path)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"use_dora": True}, "DoRA cannot be merged"),
        ({"bias": "lora_only"}, "a trained bias cannot be merged"),
        ({"use_qalora": True}, "QALoRA"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"target_parameters": ["w"]}, "LoRA on parameters"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"lora_bias": True}, "LoRA biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "start that changes the base"),
        ({"peft_type": "PROMPT_TUNING"}, "prompt_tuning adapters is not supported"),
        ({"peft_type": "LOHA"}, "loha adapters is not supported"),
    ],
    ids=str,
)
def test_variants_that_are_not_supported(changes: dict[str, Any], pattern: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_config(paths["target_reference"], **changes)
    refuse(IncompatibleAdaptersError, pattern, paths, tmp_path)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        (f"{PREFIX}model.embed_tokens.lora_embedding_A", "LoRA on embeddings"),
        (f"{Q0}.lora_magnitude_vector", "DoRA"),
    ],
)
def test_tensors_that_are_not_supported(name: str, pattern: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    change(paths["task"], lambda tensors: tensors.update({name: torch.ones(4, 8)}))
    refuse(IncompatibleAdaptersError, pattern, paths, tmp_path)


def test_convolutions_are_not_supported(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    change(paths["task"], lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(4, 3, 3, 3)}))
    refuse(IncompatibleAdaptersError, "not linear", paths, tmp_path)


@pytest.mark.parametrize("space", ["factors", "delta"])
@pytest.mark.parametrize("role", ["task", "target_reference", "source_reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("module", ["self_attn.q_proj", "mlp.up_proj"], ids=["merged", "copied"])
def test_what_is_not_finite_is_named(space: str, role: str, value: float, module: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    name = f"{PREFIX}model.layers.1.{module}.lora_B.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][5, 2] = value

    change(paths[role], spoil)
    text = refuse(AdapterFileError, "not finite", paths, tmp_path, space=space)
    assert f"{name}[5, 2]" in text
    assert str(paths[role]) in text


@pytest.mark.parametrize("role", ["task", "target_reference", "source_reference"])
def test_an_infinite_ratio_is_found(role: str, tmp_path: Path) -> None:
    paths = trio(tmp_path, "ia3")
    name = f"{PREFIX}model.layers.0.self_attn.k_proj.ia3_l"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][3, 0] = float("inf")

    change(paths[role], spoil)
    assert f"{name}[3, 0]" in refuse(AdapterFileError, "not finite", paths, tmp_path)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_result_that_overflows_its_dtype(dtype: str, tmp_path: Path) -> None:
    paths = trio(tmp_path, dtype=dtype)
    refuse(AdapterFileError, "does not fit its dtype", paths, tmp_path, weight=1e6 if dtype == "F16" else 1e39)


def test_nothing_matched_lists_what_there_is(tmp_path: Path) -> None:
    text = refuse(NothingMergedError, "no module matches", trio(tmp_path), tmp_path, modules="query")
    assert "model.layers.*.self_attn.q_proj" in text


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_nothing_changed(space: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    paths["source_reference"] = paths["target_reference"]
    refuse(NothingMergedError, "same file", paths, tmp_path, space=space)


def test_a_weight_below_the_rounding_changes_nothing(tmp_path: Path) -> None:
    refuse(NothingMergedError, "changed nothing", trio(tmp_path, dtype="BF16"), tmp_path, weight=1e-9)


def test_fused_projections(tmp_path: Path) -> None:
    tensors = lora_tensors(0, modules=("attn.c_attn",))
    roles = ("task", "target_reference", "source_reference")
    config = lora_config(target_modules=["c_attn"])
    paths = {role: save(tmp_path / role, near(tensors, n), config) for n, role in enumerate(roles)}
    text = refuse(ConfigError, "fused", paths, tmp_path)
    assert "--modules c_attn" in text
    merge(**paths, weight=0.5, output=tmp_path / "out", modules="c_attn")


def test_other_starts_are_told_by_the_cosine(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_tensors(paths["source_reference"], lora_tensors(99))
    text = refuse(IncompatibleAdaptersError, "different random starts", paths, tmp_path)
    assert "--space delta" in text
    assert "--allow-different-start" in text
    merge(**paths, weight=0.5, output=tmp_path / "delta", space="delta")
    merge(**paths, weight=0.5, output=tmp_path / "insisted", allow_different_start=True)


def test_other_starts_are_told_by_the_lineages(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for number, path in enumerate(paths.values()):
        Lineage(start=f"start{number}").write(path)
    refuse(IncompatibleAdaptersError, "different random starts", paths, tmp_path)


def test_ia3_needs_no_common_start(tmp_path: Path) -> None:
    paths = trio(tmp_path, "ia3")
    edit_tensors(paths["source_reference"], ia3_tensors(99))
    merge(**paths, weight=0.5, output=tmp_path / "out")


def write_lineages(paths: Trio, **changes: dict[str, Any]) -> None:
    facts: dict[str, dict[str, Any]] = {
        "task": {"language": "en", "task": {"kind": "classification"}},
        "target_reference": {"language": "sw", "task": {"kind": "language-modeling", "segment": 512}},
        "source_reference": {"language": "en", "task": {"kind": "language-modeling", "segment": 512}},
    }
    for role, path in paths.items():
        Lineage(**{"start": "s", **facts[role], **changes.get(role, {})}).write(path)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"target_reference": {"task": {"kind": "language-modeling", "segment": 128}}}, "different tasks"),
        ({"target_reference": {"language": "en"}}, "have one language"),
        ({"target_reference": {"language": "en"}, "source_reference": {"language": "sw"}}, "swapped"),
    ],
)
def test_lineages_that_contradict_the_method(changes: dict[str, Any], pattern: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    write_lineages(paths)
    merge(**paths, weight=0.5, output=tmp_path / "out")
    write_lineages(paths, **changes)
    with pytest.raises(IncompatibleAdaptersError, match=pattern):
        merge(**paths, weight=0.5, output=tmp_path / "again")


def test_where_the_translations_lay_is_no_part_of_the_task(tmp_path: Path) -> None:
    """References of one alignment, trained on two machines; translations in another language are another task."""
    paths = trio(tmp_path)
    places = {"target_reference": "/a/{language}.txt", "source_reference": "b/{language}.txt"}

    def task(role: str, language: str) -> dict[str, Any]:
        pivot = {"path": places[role], "columns": {}}
        return {"task": {"kind": "sentence-alignment", "pivot": pivot, "pivot_language": language}}

    write_lineages(paths, **{role: task(role, "en") for role in places})
    merge(**paths, weight=0.5, output=tmp_path / "out")
    write_lineages(
        paths, target_reference=task("target_reference", "en"), source_reference=task("source_reference", "fr")
    )
    with pytest.raises(IncompatibleAdaptersError, match="different tasks"):
        merge(**paths, weight=0.5, output=tmp_path / "again")


@pytest.mark.parametrize(
    ("choices", "pattern"),
    [
        ({"weight": float("nan")}, "not a finite number"),
        ({"weight": float("inf")}, "not a finite number"),
        ({"space": "weights"}, "no such space"),
        ({"rule": "subtractive"}, "no such rule"),
        ({"rank": 4}, "truncates delta merges"),
        ({"rank": 0, "space": "delta"}, "truncates delta merges"),
        ({"modules": "("}, "cannot be read as a regular expression"),
        ({"source_reference": None}, "not complete"),
        ({"divergence": "somewhere"}, "too many"),
        ({"rule": "multiplicative", "space": "delta"}, "no low rank"),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_together(choices: dict[str, Any], pattern: str, tmp_path: Path) -> None:
    refuse(ConfigError, pattern, trio(tmp_path), tmp_path, **choices)


def test_ia3_has_no_delta_space(tmp_path: Path) -> None:
    refuse(ConfigError, "delta space is for LoRA only", trio(tmp_path, "ia3"), tmp_path, space="delta")


def test_an_output_in_use_is_left_alone(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("kept")
    refuse(AdapterFileError, "exists already", paths, tmp_path)
    assert (tmp_path / "out" / "precious.txt").read_text() == "kept"


def test_a_divergence_must_fit(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    write_lineages(paths)
    references = {role: paths[role] for role in ("target_reference", "source_reference")}
    divergence(**references, output=tmp_path / "d", modules="q_proj")
    task = {"task": paths["task"], "divergence": tmp_path / "d"}
    refuse(IncompatibleAdaptersError, "made for another merge", task, tmp_path, space="delta")
    assert "--modules all" not in refuse(IncompatibleAdaptersError, "lacks modules", task, tmp_path)  # no such option
    refuse(
        IncompatibleAdaptersError, "the adapter is not a divergence", {**task, "divergence": paths["task"]}, tmp_path
    )
    refuse(
        IncompatibleAdaptersError, "not a reference adapter", {**paths, "target_reference": tmp_path / "d"}, tmp_path
    )
    with pytest.raises(ConfigError, match="averaging has no divergence"):
        divergence(**references, output=tmp_path / "e", rule="average")


def test_a_divergence_of_unknown_start_needs_insistence(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    divergence(
        target_reference=paths["target_reference"], source_reference=paths["source_reference"], output=tmp_path / "d"
    )
    task = {"task": paths["task"], "divergence": tmp_path / "d"}
    text = refuse(IncompatibleAdaptersError, "not known whether the adapters have one", task, tmp_path)
    assert "no start in the lineage" in text and "different random starts" not in text
    merge(**task, weight=0.5, output=tmp_path / "out", allow_different_start=True)


def test_the_config_must_say_rank_and_alpha(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    (paths["task"] / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    refuse(AdapterFileError, "rank or alpha cannot be read", paths, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"rank_pattern": [["q_proj", 4]]}, {"alpha_pattern": ["q_proj"]}, {"rank_pattern": 4}]
)
def test_patterns_that_are_no_mapping(changes: dict[str, Any], tmp_path: Path) -> None:
    refuse(
        AdapterFileError,
        "_pattern in the adapter's config is not valid",
        trio(tmp_path, **changes),
        tmp_path,
    )


def test_alpha_zero_is_refused(tmp_path: Path) -> None:
    refuse(AdapterFileError, "not a positive number", trio(tmp_path, alpha=0), tmp_path)
