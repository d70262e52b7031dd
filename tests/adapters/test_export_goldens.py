"""Our exports as `adapters` 1.3.0 loaded and ran them: golden g6_export, how it was made stands in its README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_cases import CASES, GOLDENS, NAMES, base, base_folder, export
from safetensors.torch import load_file
from transformers import PreTrainedModel

from adamergex.adapters.bottleneck.stack import attach
from adamergex.adapters.formats.adapterhub import read_adapter
from adamergex.adapters.heads import load_head

EXPORT = GOLDENS / "g6_export"
STACKS = {"none": (), "sw": ("sw",), "task": ("task",), "sw+task": ("sw", "task")}
NEAR = {"rtol": 0.0, "atol": 1e-4}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_the_same_seeds_give_the_files_that_the_peer_loaded(case: str, tmp_path: Path) -> None:
    export(case, base_folder(case, EXPORT / "bases"), tmp_path / "ours", tmp_path / "theirs")
    for name in NAMES:
        own, golden = tmp_path / "theirs" / name, EXPORT / case / name
        assert sorted(item.name for item in own.iterdir()) == sorted(item.name for item in golden.iterdir())
        for path in golden.iterdir():
            if path.suffix == ".bin":  # a zip archive: the tensors in it are what counts
                made, wanted = tensors(own / path.name), tensors(path)
                assert list(made) == list(wanted) and all(torch.equal(made[key], wanted[key]) for key in made)
            else:
                assert (own / path.name).read_bytes() == path.read_bytes(), path


def attached(case: str, form: str, folder: Path) -> PreTrainedModel:
    """The peer's class without the inverse (static) or with it (flexible), and the head that travels with the task."""
    model = attach(base(case), *(folder / name for name in NAMES), invert_head=form == "flexible")
    head = read_adapter(folder / "task").head
    assert (head is not None) == (CASES[case].head is not None)
    if head is not None:
        load_head(model, head)
    return model


@pytest.mark.parametrize("form", ["static", "flexible"])
@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits_are_the_peers(case: str, form: str) -> None:
    expected = load_file(EXPORT / case / "expected.safetensors")
    batch = {key.removeprefix("in."): tensor for key, tensor in expected.items() if key.startswith("in.")}
    model = attached(case, form, EXPORT / case)
    for key, names in STACKS.items():
        with torch.no_grad(), model.using(*names):
            output = model(**batch, output_hidden_states=True)
        torch.testing.assert_close(output.logits, expected[f"{form}.{key}.logits"], **NEAR)
        states = getattr(output, "hidden_states", None)
        states = states or (*output.encoder_hidden_states, *output.decoder_hidden_states)
        assert f"{form}.{key}.hidden.{len(states)}" not in expected
        for number, state in enumerate(states):
            torch.testing.assert_close(state, expected[f"{form}.{key}.hidden.{number}"], **NEAR)


def test_the_list_of_cases_is_the_golden_one() -> None:
    assert json.loads((EXPORT / "cases.json").read_text()) == {name: case.base for name, case in CASES.items()}
