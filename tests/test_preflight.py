"""What can be known before training is refused before anything is trained, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from adamergex.adapters.sites import targets
from adamergex.backbones import loading
from adamergex.config.transfer import parse
from adamergex.errors import AdamergexError
from adamergex.jobs.settings import Structure
from adamergex.tables.transfer import transfer
from test_pipeline import Counting, counted, settings, silent  # noqa: F401  (counted is a fixture)

QUICK = {"steps": 2, "batch_size": 4}
IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "segment": ({"reference": {"segment": 512}}, "do not fit the model"),
    "segments": ({"reference": {"segment": 16, "segments": 100_000}}, "too little text"),
    "modules": ({"structure": {"kind": "lora", "modules": ".*nothing"}}, "matches no module"),
    "module-kind": ({"structure": {"kind": "lora", "modules": ".*LayerNorm"}}, "cannot hold an adapter"),
    "merged-modules": ({"merge": {"weight": 0.5, "modules": "nothing"}}, "no module matches"),
    "layers-swapped": (
        {"methods": ["layer_swapping"], "merge": {"swap": {"bottom": 5, "top": 5}}}, "cannot be swapped",
    ),
    "prefix": ({"structure": {"kind": "prefix", "virtual_tokens": 5000}, "methods": ["english_tuning"]},
               "leaves no room"),
    "layers-left-out": (
        {"methods": ["mad_x"], "mad_x": {"leave_out": [99]}}, "cannot be left out",
    ),
}  # fmt: skip


def asked(base: Path, data: Path, output: Path, changes: dict[str, Any]) -> dict[str, Any]:
    made = settings(base, data, output, methods=["english_tuning", "adamergex"])
    for name, value in changes.items():
        made[name] = {**made[name], **value} if isinstance(made.get(name), dict) and name != "structure" else value
    return made


@pytest.mark.parametrize("case", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_is_refused_before_training(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting, case: tuple[dict[str, Any], str]  # noqa: F811
) -> None:  # fmt: skip
    changes, said = case
    with pytest.raises(AdamergexError, match=said):
        transfer(parse(asked(tiny_encoder, small_data, tmp_path / "run", changes)), say=silent)
    assert not counted.runs and not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["absent", "larger"])
def test_a_tokenizer_that_does_not_fit_is_refused_before_training(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, counted: Counting, change: str  # noqa: F811
) -> None:  # fmt: skip
    base = Path(shutil.copytree(tiny_encoder, tmp_path / "base"))
    if change == "larger":
        tokenizer = loading.tokenizer(str(base))
        tokenizer.add_tokens(["habari"])
        tokenizer.save_pretrained(base)
    else:
        for path in base.glob("*token*"):
            path.unlink()
    with pytest.raises(AdamergexError, match="more entries than the model|no tokenizer|tokenizer cannot be loaded"):
        transfer(parse(asked(base, small_data, tmp_path / "run", {})), say=silent)
    assert not counted.runs and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["masked-lm", "sequence-classification", "token-classification"])
def test_an_outline_has_the_shape_of_the_model(tiny_encoder: Path, kind: Any) -> None:
    outlined, loaded = loading.outline(str(tiny_encoder), kind), loading.load(str(tiny_encoder), kind)
    assert outlined is not None and all(parameter.is_meta for parameter in outlined.model.parameters())
    shapes = [{name: one.shape for name, one in found.model.named_parameters()} for found in (outlined, loaded)]
    assert shapes[0] == shapes[1] and type(outlined.model) is type(loaded.model)
    assert targets(outlined.model, Structure()) == targets(loaded.model, Structure())
    longest = [loading.longest_input(found.model, found.tokenizer) for found in (outlined, loaded)]
    assert longest[0] == longest[1]
