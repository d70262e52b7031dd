"""What is read from adapter directories: names, configs, lineages, expressions; refused, or read as PEFT does."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import (
    PREFIX,
    edit_config,
    edit_tensors,
    lora_config,
    lora_tensors,
    near,
    read,
    save,
    tensors_of,
    trio,
)

from adamergex.cli.main import main
from adamergex.errors import (
    AdamergexError,
    AdapterFileError,
    ConfigError,
    IncompatibleAdaptersError,
)
from adamergex.files import lineage
from adamergex.files.directory import AdapterDirectory
from adamergex.files.lineage import Lineage
from adamergex.files.patterns import Patterns, literal
from adamergex.files.tensor_names import WrongName, canonical
from adamergex.merging import divergence, merge
from adamergex.merging.inspection import inspect
from adamergex.structures.card import model_card
from adamergex.structures.targets import Ranks, Targets

HANGING = "(.*.*.*.*.*.*.*.*.*.*.*.*)*(a|a|aa)+!"


def renamed(path: Path, change: Callable[[str], str]) -> None:
    edit_tensors(path, {change(name): value for name, value in tensors_of(path).items()})


def merged(paths: dict[str, Path], output: Path, **more: Any) -> dict[str, np.ndarray]:
    merge(**paths, weight=0.5, output=output, modules="all", **more)
    return read(output)


WRAPPED: dict[str, Callable[[str], str]] = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled inside": lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "DDP": lambda name: f"module.{name}",
    "DDP twice": lambda name: f"module.module.{name}",
    "DDP inside": lambda name: name.replace(PREFIX, f"{PREFIX}module."),
    "FSDP": lambda name: name.replace("layers.", "_fsdp_wrapped_module.layers."),
    "FSDP of old": lambda name: f"_fsdp_wrapped_module._fpw_module.{name}",
    "checkpointing": lambda name: name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "live": lambda name: name.replace(".weight", ".default.weight"),
    "no prefix": lambda name: name.removeprefix(PREFIX),
    "all of them": lambda name: f"module._orig_mod.{name.removeprefix(PREFIX).replace('.weight', '.en.weight')}",
}


@pytest.mark.parametrize("how", sorted(WRAPPED))
@pytest.mark.parametrize("space", ["factors", "delta"])
def test_wrapped_names_merge_under_those_of_peft(how: str, space: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    wanted = merged(paths, tmp_path / "plain", space=space)
    for role in ("task", "source_reference"):
        renamed(paths[role], WRAPPED[how])
    found = merged(paths, tmp_path / "out", space=space)
    assert sorted(found) == sorted(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


REFUSED: dict[str, Callable[[str], str]] = {
    "one without the prefix": lambda name: name.removeprefix(PREFIX) if "layers.0.self_attn.q" in name else name,
    "the prefix twice": lambda name: PREFIX + name,
    "the base's weights": lambda name: name.replace(".lora_A", ".base_layer.lora_A"),
    "the head's original": lambda name: name.replace("mlp.up_proj.lora_A", "score.original_module"),
    "a module in the middle": lambda name: name.replace("layers.", "layers.module."),
    "an empty part": lambda name: name.replace(".self_attn", ".."),
    "an escape code": lambda name: name.replace("q_proj", "q_proj\x1b[2J"),
    "a long name": lambda name: name.replace("layers", "l" * 1500),
}


@pytest.mark.parametrize("how", sorted(REFUSED))
@pytest.mark.parametrize("role", ["task", "target_reference", "source_reference"])
def test_names_that_are_not_read_are_refused(how: str, role: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    renamed(paths[role], REFUSED[how])
    with pytest.raises(AdapterFileError, match="name") as caught:
        merged(paths, tmp_path / "out")
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    name = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors = tensors_of(paths["task"])
    edit_tensors(paths["task"], {**tensors, f"_orig_mod.{name}": tensors[name] + 1})
    with pytest.raises(AdapterFileError, match="are one tensor"):
        AdapterDirectory.open(paths["task"])


def test_prompts_have_no_prefix_and_heads_keep_their_module() -> None:
    assert canonical(["_orig_mod.prompt_embeddings"], prompt=True) == {
        "_orig_mod.prompt_embeddings": "prompt_embeddings"
    }
    head = f"{PREFIX}classifier.modules_to_save.default.out_proj.weight"
    assert canonical([head], prompt=False)[head] == f"{PREFIX}classifier.out_proj.weight"
    with pytest.raises(WrongName):
        canonical([""], prompt=False)


def test_a_module_that_the_config_leaves_out_is_not_merged_in_silence(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_config(paths["task"], target_modules=["q_proj", "v_proj"])
    with pytest.raises(AdapterFileError, match=r"PEFT would ignore them[\s\S]*up_proj"):
        merged(paths, tmp_path / "out")
    edit_config(paths["task"], target_modules=r".*\.(q_proj|v_proj|up_proj)", exclude_modules=["layers.1.mlp.up_proj"])
    with pytest.raises(AdapterFileError, match=r"layers\.1\.mlp\.up_proj"):
        divergence(**dict.fromkeys(("target_reference", "source_reference"), paths["task"]), output=tmp_path / "d")
    edit_config(paths["task"], target_modules=r".*\.(q_proj|v_proj|up_proj)", exclude_modules=None)
    merged(paths, tmp_path / "out")


CONFIGS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "layers.1.mlp.up_proj"]},
    {"target_modules": r".*\.(q_proj|v_proj)", "exclude_modules": r".*layers\.0.*"},
    {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 3], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "nowhere"},
    {"target_modules": ["proj"], "exclude_modules": ["q_proj"]},
    {"target_modules": r"(?!.*layers\.0)model.*up_proj"},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_targets_are_those_of_peft(changes: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    names = [
        f"model.{stack}.{layer}.{module}"
        for stack in ("layers", "h", "experts.2.layers")
        for layer in range(4)
        for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    ]
    targets = Targets(lora_config(**changes))
    if isinstance(changes["target_modules"], str):
        changes = {name: value for name, value in changes.items() if not name.startswith("layers")}
    theirs = LoraConfig(**changes)
    assert [name in targets for name in names] == [bool(check_target_module_exists(theirs, name)) for name in names]


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 4.9}, {"r": True}, {"r": "4"}, {"r": 0}, {"r": None}, {"r": 10**12}, {"lora_alpha": "8"},
        {"lora_alpha": None}, {"lora_alpha": True}, {"use_rslora": "false"}, {"use_rslora": 1}, {"use_dora": "no"},
        {"fan_in_fan_out": "x"}, {"peft_type": "lora"}, {"peft_type": None}, {"peft_type": ["LORA"]},
        {"task_type": ["SEQ_CLS"]}, {"task_type": "seq_cls"}, {"rank_pattern": {"q_proj": 4.0}},
        {"rank_pattern": {"q_proj": True}}, {"alpha_pattern": {"q_proj": "8"}}, {"alpha_pattern": {"q_proj": None}},
        {"target_modules": {"a": 1}}, {"target_modules": [["q_proj"]]}, {"modules_to_save": ["(a+)+"]},
        {"modules_to_save": "score"}, {"layers_to_transform": ["1"]}, {"base_model_name_or_path": ["BASE"]},
        {"base_model_name_or_path": "x" * 5000}, {"revision": 3}, {"lora_dropout": "x"}, {"lora_dropout": 2},
        {"megatron_config": {"a": 1}}, {"megatron_core": "os"}, {"init_lora_weights": ["pissa"]},
        {"auto_mapping": "os"}, {"bias": ["all"]},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("role", ["task", "source_reference"])
def test_fields_of_the_wrong_type_are_refused(changes: dict[str, Any], role: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_config(paths[role], **changes)
    with pytest.raises(AdapterFileError, match=next(iter(changes))):
        merged(paths, tmp_path / "out")


def test_fields_that_name_code_are_not_passed_on(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    foreign = {"base_model_class": "Own", "parent_library": "transformers_modules.own.modeling"}
    edit_config(paths["task"], auto_mapping=foreign, auto_map={"AutoModel": "x.Y"}, trust_remote_code=True, mine=[1])
    merged(paths, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["auto_mapping"] is None
    assert not {"auto_map", "trust_remote_code"} & set(written)
    assert written["mine"] == [1]
    known = {"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama.modeling_llama"}
    edit_config(paths["task"], auto_mapping=known)
    merged(paths, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["auto_mapping"] == known


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", {"kind": "classification", "measured_as": "x.py"}),
        ("task", {"kind": "classification", "measured_as": "elsewhere/x.py"}),
        ("task", {"kind": "classification", "measured_as": "os"}),
        ("task", {"kind": "classification", "measured_as": ["xnli"]}),
        ("task", {"kind": ["classification"]}),
        ("task", {"kind": "classification", "labels": 5}),
        ("task", {"kind": "classification", "labels": [1, 2]}),
        ("task", {"kind": "generation", "max_new_tokens": 10**9}),
        ("task", {"kind": "classification", "words": ["a"]}),
        ("base", {"name": ["x"]}),
        ("base", {"sha256": 5}),
        ("structure", {"kind": "a\nb"}),
        ("parents", {"task": [1]}),
        ("parents", {"task": {"path": 3}}),
        ("parents", {"task": {"language": {}}}),
        ("merge", {"weight": "1"}),
        ("merge", {"rule": "os.system('x')"}),
        ("versions", {"adamergex": {}}),
        ("language", ["sw"]),
    ],
    ids=str,
)
def test_lineages_hold_names_and_numbers_only(field: str, value: object, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    Lineage().write(paths["task"])
    file = paths["task"] / "lineage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    for run in (
        lambda: lineage.read(paths["task"]),
        lambda: inspect(paths["task"]),
        lambda: merged(paths, tmp_path / "o"),
    ):
        with pytest.raises(AdapterFileError, match=field):
            run()


def test_a_hash_stands_for_a_task_of_the_users_own(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    Lineage(task={"kind": "generation", "measured_as": "sha256:" + "a" * 64}).write(paths["task"])
    merged(paths, tmp_path / "out")
    found = lineage.read(tmp_path / "out")
    assert found is not None and found.task is not None and found.task["measured_as"].startswith("sha256:")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"])
def test_expressions_that_would_hang_end(field: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_config(paths["task"], **{field: {HANGING: 4} if field.endswith("pattern") else HANGING})
    begun = time.process_time()
    with contextlib.suppress(AdamergexError):  # where no name is reached that hangs, the merge is right
        merged(paths, tmp_path / "out")
    assert time.process_time() - begun < 4


def test_a_selection_that_would_hang_ends(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    with pytest.raises(AdamergexError, match="too long|no module"):
        merge(**paths, weight=0.5, output=tmp_path / "out", modules=HANGING)


@pytest.mark.parametrize("text", ["(", "*", "a{3000}{3000}", "(a{40}){40}", "a{e<=3}", "(" * 300, "x" * 20_000, "a**"])
def test_expressions_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Patterns([text], ending=True, what="modules", error=ConfigError).first("model.q_proj")


def test_patterns_read_as_re_does() -> None:
    ranks = Ranks({"r": 2, "lora_alpha": 4, "rank_pattern": {r"layers\.[01]\.q": 3, "q": 5, "v.b": 7, "(?=.*k)k|z": 9}})
    wanted = {"m.layers.1.q": 3, "m.layers.11.q": 5, "q": 5, "mq": 2, "a.vxb": 7, "a.vb": 2, "a.k": 9, "z": 9, "q.w": 2}
    assert {name: ranks(name)[0] for name in wanted} == wanted
    names = ["a.b", "a+b", "axb"]
    assert Patterns([literal(names[:2])], ending=False, what="x", error=ConfigError).matching(names) == names[:2]
    assert Patterns([literal([])], ending=False, what="x", error=ConfigError).first("a") is None


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "transformer.wte.weight"]
)
@pytest.mark.parametrize("role", ["target_reference", "source_reference"])
def test_trained_parts_of_the_base_in_references_are_refused(name: str, role: str, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_tensors(paths[role], {**tensors_of(paths[role]), PREFIX + name: torch.ones(3, 3)})
    with pytest.raises(IncompatibleAdaptersError, match="trained") as caught:
        merged(paths, tmp_path / "out")
    assert name in str(caught.value)


def test_heads_of_references_are_left_out_but_must_be_finite(tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for value in (1.0, float("nan")):
        head = {f"{PREFIX}classifier.dense.weight": torch.full((2, 3), value)}
        edit_tensors(paths["source_reference"], {**tensors_of(paths["source_reference"]), **head})
        if value == 1.0:
            assert not any("classifier" in name for name in merged(paths, tmp_path / "out"))
    with pytest.raises(AdapterFileError, match="not finite"):
        merged(paths, tmp_path / "again")


@pytest.mark.parametrize(
    ("revisions", "fits"),
    [
        ((None, "main", "main"), True),
        (("v1", "v1", "v1"), True),
        (("v1", "v2", "v2"), False),
        ((None, None, "v2"), False),
    ],
)
def test_revisions_of_a_base_are_bases(revisions: tuple[str | None, ...], fits: bool, tmp_path: Path) -> None:
    paths = trio(tmp_path)
    for path, revision in zip(paths.values(), revisions, strict=True):
        edit_config(path, revision=revision)
    if fits:
        merged(paths, tmp_path / "out")
    else:
        with pytest.raises(IncompatibleAdaptersError, match="different base models"):
            merged(paths, tmp_path / "out")
    for path in paths.values():  # where the hashes are known, they decide
        Lineage(base={"name": "BASE", "sha256": "a" * 64}, start="s").write(path)
    merged(paths, tmp_path / "known")


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_empty_tensors_were_saved_without_gathering(shape: tuple[int, ...], tmp_path: Path) -> None:
    paths = trio(tmp_path)
    edit_tensors(paths["task"], {name: torch.empty(shape) for name in tensors_of(paths["task"])})
    for run in (lambda: merged(paths, tmp_path / "out"), lambda: inspect(paths["task"])):
        with pytest.raises(AdapterFileError, match="ZeRO-3"):
            run()


@pytest.mark.parametrize(("dtype", "value"), [("F32", 3e38), ("BF16", 3e38), ("F64", 1e300)])
@pytest.mark.parametrize("more", [{}, {"space": "delta"}, {"space": "delta", "rank": 2}], ids=str)
def test_values_at_the_end_of_a_dtype_give_finite_files_or_a_message(
    dtype: str, value: float, more: dict[str, Any], tmp_path: Path
) -> None:
    paths = trio(tmp_path, dtype=dtype)
    huge = {name: torch.full_like(tensor, value) for name, tensor in tensors_of(paths["source_reference"]).items()}
    edit_tensors(paths["source_reference"], huge)
    more = more or {"allow_different_start": True}
    try:
        assert all(np.isfinite(values).all() for values in merged(paths, tmp_path / "out", **more).values())
        json.loads((tmp_path / "out" / "merge_report.json").read_text(), parse_constant=pytest.fail)
    except AdapterFileError as refused:
        assert "not" in str(refused) or "too large" in str(refused)
        assert not (tmp_path / "out").exists()


def reheaded(path: Path, change: Callable[[dict[str, Any]], bytes]) -> None:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    text = change(json.loads(content[8 : 8 + size]))
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: json.dumps(header | {"__metadata__": {"format": 5}}).encode(),
        lambda header: json.dumps(header | {"__metadata__": []}).encode(),
        lambda header: json.dumps(header | {"__metadata__": {"a": {"b": "c"}}}).encode(),
        lambda header: json.dumps(header).encode("utf-16"),
        lambda header: b"\xef\xbb\xbf" + json.dumps(header).encode(),
        lambda header: json.dumps(header).encode().replace(b"{", b'{"__metadata__": {}, ', 1),
        lambda header: b"[" * 9000 + b"]" * 9000,
        lambda header: json.dumps(header).encode().replace(b'"F32"', b'"\\ud800"', 1),
    ],
)
def test_headers_that_safetensors_refuses_are_refused(
    change: Callable[[dict[str, Any]], bytes], tmp_path: Path
) -> None:
    from safetensors import SafetensorError, safe_open

    path = save(tmp_path / "x", lora_tensors(0), lora_config())
    reheaded(path / "adapter_model.safetensors", change)
    with pytest.raises(SafetensorError), safe_open(path / "adapter_model.safetensors", "np") as file:
        file.keys()
    with pytest.raises(AdapterFileError):
        AdapterDirectory.open(path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "lineage.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "itself", "dangling"])
def test_what_is_no_file_is_refused(name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = trio(tmp_path)
    Lineage().write(paths["task"])
    file = paths["task"] / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to({"device": "/dev/zero", "itself": file, "dangling": tmp_path / "nowhere"}[kind])
    roles = [part for role, path in paths.items() for part in (f"--{role.replace('_', '-')}", str(path))]
    assert main(["merge", *roles, "--weight", "0.5", "--output", str(tmp_path / "out")]) == 2
    assert main(["inspect", str(paths["task"])]) == 2
    assert capsys.readouterr().err.count("adamergex: ") == 2
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_printed_moves_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(
        tmp_path / "x", near(lora_tensors(0), 1), lora_config(base_model_name_or_path="\x1b[2J\x07" + "B" * 3000)
    )
    Lineage(language="\x1b]0;t\x07", task={"kind": "x"}, parents={"\x1b[31m": {"path": "\x9b2J\nx"}}).write(path)
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert not set("\x1b\x07\x9b") & set(printed)
    assert "\\x1b[2J" in printed
    assert len(printed) < 5000


def test_a_card_holds_no_html_and_no_fence_of_the_lineage(tmp_path: Path) -> None:
    evil = "<script>x</script>\n```\nb"
    found = model_card(Lineage(base={"name": evil}, language="sw", parents={"task": {"path": evil}}))
    assert "<script>" not in found.partition("```python")[0] + found.rpartition("```")[2]
    assert sum(line.startswith("```") for line in found.splitlines()) == 2
