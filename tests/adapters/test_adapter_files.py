"""Adapter files: old dialects, heads, archives, and everything that a bad or hostile file can be."""

from __future__ import annotations

import json
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, adapter, inputs, tiny
from transformers import AutoModelForTokenClassification

from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.adapters.bottleneck.stack import attach
from adamergex.adapters.formats import dialects
from adamergex.adapters.formats.adapterhub import (
    AdapterFiles,
    export_adapter,
    import_adapter,
    read_adapter,
    read_head,
    write_adapter,
)
from adamergex.adapters.heads import head_of, load_head
from adamergex.adapters.sparse import (
    SparseDifference,
    SparseTensor,
    apply_difference,
    read_difference,
    write_difference,
)
from adamergex.errors import AdapterFileError, IncompatibleAdaptersError
from adamergex.files.lineage import Lineage

PFEIFFER = BottleneckConfig.pfeiffer(2)
INVERTIBLE = BottleneckConfig.pfeiffer(2, invertible=True)
OLD = {
    "adapter_residual_before_ln": False,
    "attention_type": "sent-lvl-dynamic",
    "LN_after": False,
    "LN_before": False,
    "MH_Adapter": False,
    "Output_Adapter": True,
    "new_attention_norm": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": True,
    "reduction_factor": 2,
    "residual_before_ln": True,
    "invertible_adapter": {"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2},
}


def adapter_directory(directory: Path, raw: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(raw))
    torch.save(tensors, directory / "pytorch_adapter.bin")
    return directory


def xlmr_tensors(name: str, lists: str = "adapters", inverse: str | None = "invertible_adapters") -> dict[str, Any]:
    made = adapter(tiny("xlm-roberta"), INVERTIBLE if inverse else PFEIFFER, 1).state_dict()
    parts = {"down": "adapter_down.0", "up": "adapter_up"}
    tensors = {}
    for key, tensor in made.items():
        if key.startswith("invertible."):
            tensors[f"roberta.{inverse}.{name}.{key.removeprefix('invertible.')}"] = tensor
        else:
            _, index, where, part, kind = key.split(".")
            tensors[f"roberta.encoder.layer.{index}.{where}.{lists}.{name}.{parts[part]}.{kind}"] = tensor
    return tensors


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("pfeiffer", BottleneckConfig.pfeiffer()),
        ("pfeiffer+inv", BottleneckConfig.pfeiffer(invertible=True)),
        ("seq_bn_inv[reduction_factor=2, non_linearity=gelu]", BottleneckConfig(2, "gelu", invertible=True)),
        ("seq_bn_inv[leave_out=null,dropout=0.1]", BottleneckConfig(dropout=0.1, invertible=True)),
        ("houlsby+inv", BottleneckConfig.houlsby(invertible=True)),
        ("double_seq_bn[original_ln_before=False]", BottleneckConfig.houlsby()),
        (OLD, BottleneckConfig.pfeiffer(2, invertible=True)),
        (OLD | {"invertible_adapter": None, "reduction_factor": 16}, BottleneckConfig.pfeiffer()),
        (OLD | {"reduction_factor": {"1": 8, "default": 2}}, BottleneckConfig({"1": 8, "default": 2}, invertible=True)),
        (OLD | {"non_linearity": "gelu"}, BottleneckConfig(2, "gelu_new", invertible=True)),
        (OLD | {"non_linearity": "LeakyReLU"}, BottleneckConfig(2, "leaky_relu", invertible=True)),
        (OLD | {"leave_out": [11]}, BottleneckConfig(2, leave_out=(11,), invertible=True)),
    ],
)
def test_dialects_of_the_configuration(config: Any, expected: BottleneckConfig) -> None:
    assert dialects.read_config({"config": config, "name": "sw"}, "file") == expected
    if isinstance(config, dict):
        assert dialects.read_config(config, "file") == expected  # flat, as the first files were
    by_hash = {"config": "9076f36a74755ac4", "config_map": {"9076f36a74755ac4": config}}
    if isinstance(config, dict):
        assert dialects.read_config(by_hash, "file") == expected
    again = {"config": dialects.write_config(expected), "version": dialects.VERSION}
    assert dialects.read_config(again, "file") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LORA"}, "this is a PEFT adapter"),
        ({"config": "prefix_tuning"}, r"config\n  found: 'prefix_tuning'"),
        ({"config": "9076f36a74755ac4"}, r"config\n  found: '9076f36a74755ac4'"),
        ({"config": "seq_bn[reduction_factor]"}, r"expected: key=value"),
        ({"config": {"architecture": "lora", "r": 8}}, r"architecture\n  found: lora"),
        ({"config": OLD | {"is_parallel": True}}, r"is_parallel\n  found: True"),
        ({"config": OLD | {"phm_layer": True}}, "phm_layer"),
        ({"config": OLD | {"inv_adapter": "glow"}}, r"inv_adapter\n  found: glow"),
        ({"config": OLD | {"scaling": "learned"}}, r"scaling\n  found: 'learned'"),
        ({"config": OLD | {"residual_before_ln": "post_add"}}, "residual_before_ln"),
        ({"config": OLD | {"reduction_factor": "many"}}, "a number above 0, or one by layer"),
        ({"config": {"reduction_factor": 2}}, "mh_adapter and output_adapter"),
        ({"config": [1]}, "a dictionary, or a name"),
    ],
)
def test_configurations_that_are_not_supported(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = adapter_directory(tmp_path / "a", {"name": "sw"} | change, xlmr_tensors("sw"))
    with pytest.raises(AdapterFileError, match=message) as caught:
        read_adapter(directory)
    assert "adapter_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("lists", "inverse"),
    [
        ("adapters", "invertible_adapters"),
        ("layer_text_lang_adapters", "invertible_lang_adapters"),
        ("layer_text_task_adapters", None),
    ],
)
def test_names_of_tensors_over_the_years(lists: str, inverse: str | None, tmp_path: Path) -> None:
    kind = "text_lang" if inverse else "text_task"  # the task adapter's config names an inverse that it has not
    raw = {"config": OLD, "config_id": "9076f36a74755ac4", "name": "0f3a", "type": kind}
    files = read_adapter(adapter_directory(tmp_path / "a", raw, xlmr_tensors("0f3a", lists, inverse)))
    expected = adapter(tiny("xlm-roberta"), INVERTIBLE if inverse else PFEIFFER, 1).state_dict()
    assert files.name == "0f3a" and files.config.invertible is bool(inverse)
    assert files.tensors.keys() == expected.keys()
    assert all(torch.equal(files.tensors[key], expected[key]) for key in expected)


def test_the_name_in_the_tensors_counts_and_one_of_several_is_chosen(tmp_path: Path) -> None:
    raw = {"config": OLD, "name": "other"}
    assert read_adapter(adapter_directory(tmp_path / "a", raw, xlmr_tensors("9f8e"))).name == "9f8e"
    both = xlmr_tensors("one") | xlmr_tensors("two")
    assert read_adapter(adapter_directory(tmp_path / "b", raw | {"name": "two"}, both)).name == "two"
    with pytest.raises(AdapterFileError, match="holds several adapters"):
        read_adapter(adapter_directory(tmp_path / "c", raw, both))


KEYS = {
    "roberta.encoder.layer.3.attention.output.adapters.sw.adapter_up.bias": "layers.3.attention.up.bias",
    "encoder.layer.11.output.adapters.sw.adapter_down.0.weight": "layers.11.output.down.weight",
    "distilbert.transformer.layer.1.output_adapters.adapters.sw.adapter_up.weight": "layers.1.output.up.weight",
    "model.layers.30.attention_adapters.adapters.sw.adapter_up.weight": "layers.30.attention.up.weight",
    "encoder.block.2.layer.1.adapters.sw.adapter_up.weight": "layers.2.output.up.weight",
    "encoder.block.2.layer.0.adapters.sw.adapter_up.weight": "layers.2.attention.up.weight",
    "decoder.block.2.layer.2.adapters.sw.adapter_up.weight": "decoder_layers.2.output.up.weight",
    "model.decoder.layers.4.output_adapters.adapters.sw.adapter_up.weight": "decoder_layers.4.output.up.weight",
    "encoder.invertible_adapters.sw.G.2.bias": "invertible.G.2.bias",
}


@pytest.mark.parametrize("key", KEYS)
def test_layers_are_known_by_their_numbers(key: str) -> None:
    assert dialects.canonical(key) == ("sw", KEYS[key])
    assert dialects.canonical(KEYS[key]) == (None, KEYS[key])


@pytest.mark.parametrize(
    "key",
    [
        "decoder.block.2.layer.1.adapters.sw.adapter_up.weight",  # cross-attention
        "model.decoder.layers.4.cross_attention_adapters.adapters.sw.adapter_up.weight",
        "roberta.encoder.layer.0.output.adapters.sw.gate.weight",
        "roberta.encoder.layer.0.attention.self.query.loras.sw.lora_A",
        "roberta.pooler.adapters.sw.adapter_up.weight",
        "classifier.weight",
    ],
)
def test_tensors_that_are_no_bottleneck_adapters_are_named(key: str, tmp_path: Path) -> None:
    tensors = xlmr_tensors("sw") | {key: torch.zeros(2)}
    with pytest.raises(AdapterFileError, match="do not belong to a bottleneck adapter") as caught:
        read_adapter(adapter_directory(tmp_path / "a", {"config": OLD, "name": "sw"}, tensors))
    assert key in str(caught.value) and "pytorch_adapter.bin" in str(caught.value)


EXPORTED = {
    "bert": "bert.encoder.layer.0.{attention.output,output}.adapters.",
    "electra": "electra.encoder.layer.0.{attention.output,output}.adapters.",
    "distilbert": "distilbert.transformer.layer.0.{attention_adapters,output_adapters}.adapters.",
    "llama": "model.layers.0.{attention_adapters,output_adapters}.adapters.",
    "t5": "encoder.block.0.{layer.0,layer.1}.adapters.",
    "bart": "model.encoder.layers.0.{attention_adapters,output_adapters}.adapters.",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_exported_and_read_again_on_every_architecture(kind: str, tmp_path: Path) -> None:
    model, batch = tiny(kind), inputs(kind)
    attach(model, adapter(model, BottleneckConfig.houlsby(2, invertible=True), 4), names=["sw"])
    expected = model(**batch).logits
    model.adapter_stack.save("sw", tmp_path / "ours")
    export_adapter(tmp_path / "ours", tmp_path / "theirs", model.detach(), safetensors=kind == "bert")
    if kind in EXPORTED:
        path = tmp_path / "theirs" / "pytorch_adapter.bin"
        names = torch.load(path) if path.exists() else load_file(tmp_path / "theirs" / "adapter.safetensors")
        start, _, rest = EXPORTED[kind].partition("{")
        choices, _, end = rest.partition("}")
        for choice in choices.split(","):
            assert f"{start}{choice}{end}sw.adapter_down.0.weight" in names
    assert torch.equal(attach(tiny(kind), tmp_path / "theirs")(**batch).logits, expected)


def test_our_layout_is_deterministic_whole_and_keeps_what_is_there(tmp_path: Path) -> None:
    source = adapter_directory(tmp_path / "hub", {"config": OLD, "name": "sw"}, xlmr_tensors("sw"))
    files = import_adapter(source, tmp_path / "one")
    import_adapter(source, tmp_path / "two")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with pytest.raises(AdapterFileError, match="exists already"):
        import_adapter(source, tmp_path / "one")
    holed = dict(files.tensors) | {"layers.0.output.up.bias": torch.full((16,), torch.nan)}
    broken = AdapterFiles("sw", files.config, holed)
    with pytest.raises(AdapterFileError, match=r"layers\.0\.output\.up\.bias\n  found: NaN"):
        write_adapter(tmp_path / "three", broken)
    assert not (tmp_path / "three").exists()
    made = AdapterFiles("sw", files.config, files.tensors, lineage=Lineage(language="sw"))
    assert read_adapter(write_adapter(tmp_path / "four", made)).lineage == Lineage(language="sw")


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.target}'",)


def evil_pickle(path: Path, target: Path) -> None:
    path.write_bytes(pickle.dumps({"x": Evil(target)}))


def evil_archive(path: Path, target: Path) -> None:
    torch.save({"x": Evil(target)}, path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [evil_pickle, evil_archive])
def test_a_malicious_pickle_is_refused_and_does_nothing(write: Any, tmp_path: Path) -> None:
    target = tmp_path / "was-here"
    source = adapter_directory(tmp_path / "a", {"config": OLD, "name": "sw"}, {})
    write(source / "pytorch_adapter.bin", target)
    write(tmp_path / "pytorch_diff.bin", target)
    (source / "head_config.json").write_text("{}")
    write(source / "pytorch_model_head.bin", target)
    for read in (lambda: read_adapter(source), lambda: read_head(source), lambda: read_difference(tmp_path)):
        with pytest.raises(AdapterFileError, match="nothing in it was run"):
            read()
    with pytest.raises(AdapterFileError, match="nothing in it was run"):
        import_adapter(source, tmp_path / "out")
    assert not target.exists() and not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b".", b"0.", b"garbage", pickle.dumps([1, 2]), pickle.dumps({"x": 1})])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    source = adapter_directory(tmp_path / "a", {"config": OLD, "name": "sw"}, {})
    (source / "pytorch_adapter.bin").write_bytes(content)
    with pytest.raises(AdapterFileError, match="pytorch_adapter.bin"):
        read_adapter(source)
    (source / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(AdapterFileError, match="adapter_model.safetensors"):
        read_adapter(source)


@pytest.mark.parametrize("content", ["{", "[]", "null", "[" * 100_000])
def test_damaged_configurations_are_refused(content: str, tmp_path: Path) -> None:
    source = adapter_directory(tmp_path / "a", {}, xlmr_tensors("sw"))
    (source / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterFileError, match="adapter.s config is not"):
        read_adapter(source)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"has no config.*\n.*nowhere"):
        attach(tiny("bert"), tmp_path / "nowhere")
    source = adapter_directory(tmp_path / "a", {"config": OLD}, {})
    (source / "pytorch_adapter.bin").unlink()
    with pytest.raises(AdapterFileError, match="the adapter has no tensors"):
        read_adapter(source)
    tensors = {"roberta.encoder.layer.0.output.adapters.sw.adapter_up.bias": torch.full((4,), torch.inf)}
    with pytest.raises(AdapterFileError, match="not finite"):
        read_adapter(adapter_directory(tmp_path / "b", {"config": OLD, "name": "sw"}, tensors))


def archive(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = ((stat.S_IFLNK if name == link else stat.S_IFREG) | 0o644) << 16
            out.writestr(info, content)
    return path


def test_an_archive_is_imported_by_its_known_files_only(tmp_path: Path) -> None:
    source = adapter_directory(tmp_path / "a", {"config": OLD, "name": "sw"}, xlmr_tensors("sw"))
    members = {f"sw/{item.name}": item.read_bytes() for item in source.iterdir()} | {"sw/run.py": b"1"}
    import_adapter(archive(tmp_path / "sw.zip", members), tmp_path / "out")
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("name", ["../adapter_config.json", "/etc/adapter_config.json", "a\\..\\b", "C:\\x", "link"])
def test_an_archive_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"adapter_config.json": b"{}", name: b"x"}, link="link")
    with pytest.raises(AdapterFileError, match="nothing was unpacked"):
        import_adapter(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "b.zip").write_bytes(b"PK\3\4")
    with pytest.raises(AdapterFileError, match="archive cannot be read"):
        import_adapter(tmp_path / "b.zip", tmp_path / "out")


def tagger(labels: int = 3, seed: int = 0) -> Any:
    config = tiny("xlm-roberta").config
    config.num_labels = labels
    torch.manual_seed(seed)
    return AutoModelForTokenClassification.from_config(config).eval()


def test_heads_are_written_read_and_loaded(tmp_path: Path) -> None:
    model, other = tagger(seed=1), tagger(seed=2)
    model.config.label2id = {"O": 0, "B": 1, "I": 2}
    files = AdapterFiles("ner", PFEIFFER, adapter(model, PFEIFFER, 1).state_dict(), head_of(model, "ner"))
    write_adapter(tmp_path / "ours", files)
    export_adapter(tmp_path / "ours", tmp_path / "theirs", model)
    for place in (tmp_path / "ours", tmp_path / "theirs"):
        other.classifier.weight.data.zero_()
        head = read_head(place)
        assert head is not None
        load_head(other, head)
        assert torch.equal(other.classifier.weight, model.classifier.weight)
        assert other.config.id2label == {0: "O", 1: "B", 2: "I"}
    raw = torch.load(tmp_path / "theirs" / "pytorch_model_head.bin", weights_only=True)
    assert set(raw) == {"classifier.weight", "classifier.bias"}
    with pytest.raises(IncompatibleAdaptersError, match="as many labels as the head has"):
        load_head(tagger(5), head)


def test_flexible_heads_load_by_order(tmp_path: Path) -> None:
    source = adapter_directory(tmp_path / "a", {"config": OLD, "name": "ner"}, xlmr_tensors("ner"))
    weight, bias = torch.randn(3, 16), torch.randn(3)
    (source / "head_config.json").write_text(json.dumps({"config": {"head_type": "tagging", "label2id": {"O": 0}}}))
    torch.save({"heads.ner.1.bias": bias, "heads.ner.1.weight": weight}, source / "pytorch_model_head.bin")
    model, head = tagger(), read_head(source)
    assert head is not None
    load_head(model, head)
    assert torch.equal(model.classifier.weight, weight) and torch.equal(model.classifier.bias, bias)


def difference(**changes: Any) -> dict[str, Any]:
    entry = {"size": torch.Size([4, 3]), "index_steps": [1, 2], "values": torch.ones(2)}
    return {"diffs": {"weight": entry | changes}, "abs": {}}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"x": 1}, "not one of composable-sft"),
        (difference(index_steps=[1, 99]), "index 100 in a tensor of 12"),
        (difference(index_steps=[-1, 3]), "in a tensor of 12"),
        (difference(index_steps=[1]), "1 indices for values of shape"),
        (difference(index_steps=[1, 0]), "do not match"),
        (difference(values=torch.tensor([1.0, torch.nan])), "not finite"),
    ],
)
def test_bad_sparse_differences(contents: Any, message: str, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "pytorch_diff.bin")
    with pytest.raises(AdapterFileError, match=message):
        read_difference(tmp_path)


def test_sparse_differences_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="no sparse difference found"):
        read_difference(tmp_path)
    save_file({"indices.weight": torch.tensor([3])}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterFileError, match="cannot be read"):
        read_difference(tmp_path / "x.safetensors")
    model = torch.nn.Linear(3, 4)
    before = model.weight.clone()
    right = SparseTensor((4, 3), torch.tensor([5]), torch.ones(1))
    wrong = {"bias": SparseTensor((5,), torch.tensor([0]), torch.ones(1)), "gone": right}
    for name, entry in wrong.items():
        with pytest.raises(IncompatibleAdaptersError, match=name):
            apply_difference(model, SparseDifference({"weight": right, name: entry}))
    assert torch.equal(model.weight, before)
    made = SparseDifference({"weight": right}, {"bias": torch.ones(4)})
    assert torch.equal(read_difference(write_difference(tmp_path / "ours", made)).whole["bias"], torch.ones(4))
    apply_difference(model, made)
    assert model.weight[1, 2] == before[1, 2] + 1 and torch.equal(model.bias, torch.ones(4))
