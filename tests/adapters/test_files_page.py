"""The page docs/madx-files.md, run from top to bottom: its commands and its Python, on adapters of the shipped base."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import adapter
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification

from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.adapters.formats.adapterhub import AdapterFiles, export_adapter, read_adapter
from adamergex.adapters.heads import head_of
from adamergex.adapters.sparse import SparseDifference, SparseTensor, export_difference, read_difference
from adamergex.base_names import folder
from adamergex.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "madx-files.md"
BLOCKS = re.compile(
    r"^```python\n(?P<python>.*?)^```|^(?P<commands>(?:    adamergex [^\n]+\n)+)", re.DOTALL | re.MULTILINE
)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """What the page starts from: AdapterHub's directories, one of PEFT's, and a sparse difference."""
    language, task = BottleneckConfig.pfeiffer(2, invertible=True), BottleneckConfig.pfeiffer(16)
    for seed, name in enumerate(("sw", "tr", "ner")):
        model = AutoModelForTokenClassification.from_pretrained(folder("nano"), num_labels=3)
        model.config.label2id = {"O": 0, "B-LOC": 1, "I-LOC": 2}
        config = task if name == "ner" else language
        made = {key: tensor * 0.2 for key, tensor in adapter(model, config, seed).state_dict().items()}
        head = head_of(model, name) if name == "ner" else None
        export_adapter(AdapterFiles(name, config, made, head), tmp_path / "hub" / name, model)
    peer = get_peft_model(model, LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    peer.save_pretrained(tmp_path / "adapters" / "ner-lora")
    name = "roberta.encoder.layer.0.output.dense.weight"
    shape = tuple(AutoModelForMaskedLM.from_pretrained(folder("nano")).get_parameter(name).shape)
    sparse = SparseTensor(shape, torch.tensor([3, 900, 5000]), torch.tensor([1.0, -2.0, 3.0]))
    export_difference(tmp_path / "lang-sw", SparseDifference({name: sparse}))
    return tmp_path


def test_the_page_runs_from_top_to_bottom(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(hub)
    seen: dict[str, Any] = {}
    kinds = []
    for block in BLOCKS.finditer(PAGE.read_text(encoding="utf-8")):
        kinds.append(block.lastgroup)
        if block["python"]:
            exec(compile(block["python"], str(PAGE), "exec"), seen)
        else:
            for command in block["commands"].splitlines():
                assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert kinds.count("python") == PAGE.read_text(encoding="utf-8").count("```python") == 6
    assert kinds.count("commands") == 3
    logits = [seen[name] for name in ("swahili", "turkish", "plain", "with_lora")]
    assert all((one - other).abs().max() > 1e-3 for i, one in enumerate(logits) for other in logits[:i])
    assert seen["mixed"].shape[0] == 2 and seen["model"].config.id2label[1] == "B-LOC"
    torch.testing.assert_close(seen["mixed"][0, : seen["with_lora"].shape[1]], seen["with_lora"][0], rtol=0, atol=1e-4)
    for name in ("sw", "ner"):
        assert read_adapter(hub / "out" / name).tensors.keys() == read_adapter(hub / "hub" / name).tensors.keys()
    assert read_difference(hub / "out" / "lang-sw").sparse.keys() == read_difference(hub / "lang-sw").sparse.keys()
    assert "'tr': adamergex -> adapterhub" in capsys.readouterr().out
