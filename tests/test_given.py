"""References that are given: trained elsewhere, found by language, checked against base and structure, merged."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adamergex.config.study import parse_study
from adamergex.config.transfer import parse
from adamergex.errors import AdamergexError, ConfigError, IncompatibleAdaptersError, ModelError
from adamergex.methods.given import copy_given, languages_at
from adamergex.report.results_file import as_dict
from adamergex.tables.study import dry_run
from adamergex.tables.transfer import run_training, transfer
from test_pipeline import settings, silent

LANGUAGES = ("en", "fr", "sw")


@pytest.fixture(scope="module")
def vectors(tiny_encoder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference of each language, of rank 4, as someone else trained them."""
    folder = tmp_path_factory.mktemp("vectors")
    for language in LANGUAGES:
        run_training(
            {
                "kind": "language",
                "base": str(tiny_encoder),
                "language": language,
                "structure": {"kind": "lora", "rank": 4, "alpha": 8},
                "text": f"{small_data}/{language}.txt",
                "segment": 16,
                "segments": 8,
                "optimisation": {"steps": 3, "batch_size": 8, "learning_rate": 1e-2},
                "output": str(folder / language),
            }
        )
    return folder


def table(base: Path, data: Path, output: Path, vectors: Path, **changes: Any) -> dict[str, Any]:
    given = {"reference": {"adapters": f"{vectors}/{{language}}"}, "targets": ["sw"]}
    return settings(base, data, output, **{"methods": ["english_tuning", "adamergex_delta"], **given, **changes})


@pytest.fixture
def copied(vectors: Path, tmp_path: Path) -> Path:
    """The vectors, to be changed."""
    return Path(shutil.copytree(vectors, tmp_path / "vectors"))


def changed(path: Path, name: str, **update: Any) -> None:
    document = json.loads((path / name).read_text(encoding="utf-8"))
    (path / name).write_text(json.dumps(document | update), encoding="utf-8")


def product(tensors: dict[str, torch.Tensor], module: str, scaling: float) -> torch.Tensor:
    """ΔW = s·B·A."""
    return scaling * tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()


def test_given_references_are_merged_and_nothing_but_the_task_is_trained(
    tiny_encoder: Path, small_data: Path, vectors: Path, tmp_path: Path
) -> None:
    """ΔW = ΔW[T,en] + λ(ΔW[R,sw] − ΔW[R,en]) of exactly the given files, though their rank is another."""
    output = tmp_path / "run"
    made = table(tiny_encoder, small_data, output, vectors, merge={"weight": 0.5, "modules": "all"}, proxy=None)
    transfer(parse(made), say=silent)
    (task,) = (output / "store" / "train").iterdir()
    assert len(list((output / "store" / "import").iterdir())) == 2  # sw and en
    merged = output / "adapters" / "adamergex_delta-sw-seed0"
    config = json.loads((merged / "adapter_config.json").read_text(encoding="utf-8"))
    found, own = load_file(merged / "adapter_model.safetensors"), load_file(task / "adapter_model.safetensors")
    one, two = (load_file(vectors / language / "adapter_model.safetensors") for language in ("sw", "en"))
    modules = {name.rpartition(".lora_A")[0] for name in own if ".lora_A." in name}
    assert modules
    for module in modules:
        expected = product(own, module, 2.0) + 0.5 * (product(one, module, 2.0) - product(two, module, 2.0))
        torch.testing.assert_close(
            product(found, module, config["lora_alpha"] / config["r"]), expected, atol=1e-5, rtol=1e-5
        )
    lineage = json.loads((merged / "lineage.json").read_text(encoding="utf-8"))
    for role, language in (("target_reference", "sw"), ("source_reference", "en")):
        file = vectors / language / "adapter_model.safetensors"
        assert lineage["parents"][role]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert lineage["parents"][role]["language"] == language
    assert (output / "report.html").is_file()


def test_a_tuned_weight_needs_the_proxys_adapter_as_well(
    tiny_encoder: Path, small_data: Path, vectors: Path, tmp_path: Path
) -> None:
    results = as_dict(transfer(parse(table(tiny_encoder, small_data, tmp_path / "run", vectors)), say=silent))
    assert [item["proxy"] for item in results["tuning"]] == ["fr"]
    assert len(list((tmp_path / "run" / "store" / "import").iterdir())) == 3


def test_factors_of_one_start_are_merged(tiny_encoder: Path, small_data: Path, vectors: Path, tmp_path: Path) -> None:
    made = table(tiny_encoder, small_data, tmp_path / "run", vectors, methods=["average", "adamergex"])
    made["structure"] = {"kind": "lora", "rank": 4, "alpha": 8}
    assert len(as_dict(transfer(parse(made), say=silent))["cells"]) == 2


def test_half_precision_is_widened_exactly(vectors: Path, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        narrow = tmp_path / str(dtype)
        shutil.copytree(vectors / "sw", narrow)
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(narrow / "adapter_model.safetensors").items()}
        save_file(tensors, narrow / "adapter_model.safetensors", metadata={"format": "pt"})
        copy_given(narrow, tmp_path / f"{dtype}-wide")
        found = load_file(tmp_path / f"{dtype}-wide" / "adapter_model.safetensors")
        assert found.keys() == tensors.keys()
        for name, tensor in found.items():
            assert tensor.dtype == torch.float32 and torch.equal(tensor, tensors[name].float())
        assert (tmp_path / f"{dtype}-wide" / "lineage.json").read_bytes() == (narrow / "lineage.json").read_bytes()


def test_half_precision_merges_with_what_is_trained_here(
    tiny_encoder: Path, small_data: Path, copied: Path, tmp_path: Path
) -> None:
    for language in LANGUAGES:
        file = copied / language / "adapter_model.safetensors"
        save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    transfer(parse(table(tiny_encoder, small_data, tmp_path / "run", copied)), say=silent)


def test_another_file_is_another_step(tiny_encoder: Path, small_data: Path, copied: Path, tmp_path: Path) -> None:
    made = table(tiny_encoder, small_data, tmp_path / "run", copied, merge={"weight": 1.0}, proxy=None)
    first = as_dict(transfer(parse(made), say=silent))["merges"]
    file = copied / "sw" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    again = as_dict(transfer(parse(made), say=silent))["merges"]
    assert first[0]["modules"] != again[0]["modules"]
    assert len(list((tmp_path / "run" / "store" / "import").iterdir())) == 3


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "sw"), ConfigError, r"no adapter is given for sw[\s\S]*of en, fr\n"),
        (
            lambda folder: changed(folder / "sw", "lineage.json", base={"name": "other", "sha256": "0" * 64}),
            ModelError,
            r"trained on another base",
        ),
        (
            lambda folder: (
                (folder / "sw" / "lineage.json").unlink(),
                changed(folder / "sw", "adapter_config.json", base_model_name_or_path="bert-of-someone"),
            ),
            ModelError,
            r"names another base[\s\S]*bert-of-someone",
        ),
        (
            lambda folder: changed(folder / "sw", "lineage.json", language="yo"),
            ConfigError,
            r"of another language[\s\S]*yo",
        ),
        (
            lambda folder: changed(folder / "sw", "lineage.json", merge={"rule": "additive", "weight": None}),
            IncompatibleAdaptersError,
            r"is a divergence",
        ),
        (lambda folder: (folder / "sw" / "adapter_config.json").unlink(), AdamergexError, r"has no config"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    spoil: Any, error: type[AdamergexError], message: str, tiny_encoder: Path, small_data: Path, copied: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    spoil(copied)
    with pytest.raises(error, match=message):
        transfer(parse(table(tiny_encoder, small_data, tmp_path / "run", copied)), say=silent)
    assert not (tmp_path / "run").exists()


def test_an_adapter_without_lineage_counts_by_the_name_of_its_base(
    tiny_encoder: Path, small_data: Path, copied: Path, tmp_path: Path
) -> None:
    for language in LANGUAGES:
        (copied / language / "lineage.json").unlink()
    transfer(parse(table(tiny_encoder, small_data, tmp_path / "run", copied)), say=silent)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"structure": {"kind": "ia3"}, "methods": ["adamergex"]}, IncompatibleAdaptersError, r"another structure"),
        ({"methods": ["adamergex"]}, ConfigError, r"rank 4, alpha 8[\s\S]*rank 2, alpha 4"),
        ({"methods": ["average"]}, ConfigError, r"another rank or alpha"),
    ],
)
def test_a_structure_that_cannot_be_merged_is_refused(
    changes: dict[str, Any], error: type[AdamergexError], message: str, tiny_encoder: Path, small_data: Path,
    vectors: Path, tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        transfer(parse(table(tiny_encoder, small_data, tmp_path / "run", vectors, **changes)), say=silent)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": {"adapters": "vectors/sw"}}, r"reference\.adapters: 'vectors/sw' has no \{language\}"),
        ({"reference": {"adapters": "v/{language}", "segment": 9}}, r"reference\.segment: no such setting"),
        ({"reference": {"adapters": "v/{language}"}, "methods": ["mad_x"]}, r"reference\.text: missing; mad_x"),
        ({"reference": {"adapters": "v/{language}"}, "methods": ["lf_sft"]}, r"reference\.text: missing; lf_sft"),
        ({"reference": {"kind": "adapters"}}, r"reference\.adapters: missing"),
        ({"reference": {"kind": "adaptors"}}, r"not one of .*'adapters'"),
    ],
)
def test_settings_that_say_too_little(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    made = settings(Path("nano"), tmp_path, tmp_path / "run", **change)
    with pytest.raises(ConfigError, match=message):
        parse(made)


def test_mad_x_trains_on_the_text_beside_given_references(tmp_path: Path) -> None:
    reference = {"adapters": "v/{language}", "text": "{language}.txt"}
    assert parse(settings(Path("nano"), tmp_path, tmp_path / "run", reference=reference, methods=["mad_x"])).targets


@pytest.mark.parametrize(
    ("base", "adapters", "note"),
    [(None, "", ""), (None, "absent/", r"no adapter is given for (en|sw): .*\(topics\)"), ("someone/base", "", "base")],
)
def test_a_dry_run_assumes_what_is_not_there(
    base: str | None, adapters: str, note: str, tiny_encoder: Path, small_data: Path, vectors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as `study --dry-run` asks for
    folder = vectors / adapters if adapters else vectors
    made = table(tiny_encoder, small_data, tmp_path / "run", folder, merge={"weight": 0.5}, proxy=None)
    made |= {"base": base or made["base"], "tasks": {"topics": {"task": made.pop("task")}}}
    counted = dry_run(parse_study(made))
    assert re.search(r"^import +2 +0 +2 ", counted, re.MULTILINE)
    assert re.search(note, counted)


def test_languages_are_found_by_the_pattern(vectors: Path) -> None:
    assert languages_at(f"{vectors}/{{language}}") == ["en", "fr", "sw"]
    assert languages_at(f"{vectors}/x-{{language}}") == []
