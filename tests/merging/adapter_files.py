"""Small adapters on disk for the tests, written by the safetensors library (not by the code under test)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GOLDENS = Path(__file__).parent.parent / "goldens" / "g3_peft"
PREFIX = "base_model.model."
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
LLAMA = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
Tensors = dict[str, torch.Tensor]


def lora_tensors(
    seed: int, *, rank: int = 4, modules: tuple[str, ...] = LLAMA, layers: int = 2, width: int = 24, out: int = 16
) -> Tensors:
    """Random float32 LoRA factors: A (rank, width), B (out, rank)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for module in modules:
            name = f"{PREFIX}model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return tensors


def ia3_tensors(seed: int, layers: int = 2) -> Tensors:
    """(IA)³ vectors around one."""
    generator = torch.Generator().manual_seed(seed)
    names = {"self_attn.k_proj": (16, 1), "self_attn.v_proj": (16, 1), "mlp.down_proj": (1, 40)}
    return {
        f"{PREFIX}model.layers.{layer}.{name}.ia3_l": 1 + 0.2 * torch.randn(shape, generator=generator)
        for layer in range(layers)
        for name, shape in names.items()
    }


def lora_config(rank: int = 4, alpha: float = 8, **changes: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": "BASE",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": ["q_proj", "up_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        **changes,
    }


def ia3_config(**changes: Any) -> dict[str, Any]:
    return {
        "peft_type": "IA3",
        "base_model_name_or_path": "BASE",
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        **changes,
    }


def save(path: Path, tensors: Tensors, config: dict[str, Any], dtype: str = "F32") -> Path:
    """An adapter directory of these tensors in one dtype."""
    path.mkdir(parents=True)
    save_file(
        {name: value.to(DTYPES[dtype]).contiguous() for name, value in tensors.items()},
        path / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def near(tensors: Tensors, seed: int, scale: float = 0.1) -> Tensors:
    """The same tensors after a small random walk: adapters that began from one start."""
    generator = torch.Generator().manual_seed(seed)
    return {name: value + scale * torch.randn(value.shape, generator=generator) for name, value in tensors.items()}


def trio(path: Path, kind: str = "lora", dtype: str = "F32", **config: Any) -> dict[str, Path]:
    """Task, target reference and source reference that began from one start, as arguments of merge()."""
    start = lora_tensors(0) if kind == "lora" else ia3_tensors(0)
    settings = lora_config(**config) if kind == "lora" else ia3_config(**config)
    roles = ("task", "target_reference", "source_reference")
    return {role: save(path / role, near(start, seed), settings, dtype) for seed, role in enumerate(roles, 1)}


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of an adapter directory as float64, by the safetensors library."""
    return {name: value.double().numpy() for name, value in load_file(path / "adapter_model.safetensors").items()}


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(path: Path, tensors: Tensors) -> None:
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})


def tensors_of(path: Path) -> Tensors:
    return dict(load_file(path / "adapter_model.safetensors"))


def delta(path: Path, module: str, scaling: float) -> np.ndarray:
    """ΔW = scaling · B · A of one module in float64: the oracle of all delta tests."""
    tensors = read(path)
    name = f"{PREFIX}{module}"
    return scaling * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
