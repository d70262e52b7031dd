"""PEFT's LoRA and (IA)³ directories as members of a stack: they change linear modules in place.

PEFT wraps the modules and switches between adapters by name; a stack changes a module's input or output instead, so
the base keeps its modules and several members can be active together with bottleneck adapters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from adamergex.adapters.labels import require_labels
from adamergex.adapters.saving import save_tensors
from adamergex.errors import AdapterFileError, IncompatibleAdaptersError
from adamergex.files import lineage as lineages
from adamergex.files.directory import CONFIG, TENSORS, AdapterDirectory, read_config
from adamergex.files.inputs import Json
from adamergex.files.outputs import staged_directory
from adamergex.files.tensor_files import read_directory
from adamergex.files.tensor_names import PREFIX
from adamergex.structures import structure_kind
from adamergex.structures.layout import Layout, layout
from adamergex.structures.targets import require_targeted

Side = Literal["input", "output"]


class LoraChange(nn.Module):
    """LoRA: y <- y + (α/r)·B·A·dropout(x), x the module's input; A (r, in), B (out, r). Source: 2106.09685, Eq 3."""

    side: Side = "output"

    def __init__(self, width: int, out: int, rank: int, scaling: float, dropout: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scaling = scaling

    def forward(self, read: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = self.lora_B(self.lora_A(self.dropout(read.to(self.lora_A.weight.dtype)))) * self.scaling
        return given + update.to(given.dtype)


class Ia3Change(nn.Module):
    """(IA)³: y <- y ⊙ l for l (out, 1); x <- x ⊙ l for l (1, in), the feed-forward's. Source: 2205.05638, §3.3."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.side: Side = "input" if shape[0] == 1 else "output"
        self.ia3_l = nn.Parameter(torch.empty(shape))

    def forward(self, read: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = given * self.ia3_l.flatten()
        return scaled.to(given.dtype)


class HeadLinear(nn.Linear):
    """A linear module of a trained head, which replaces the model's own."""

    side: Side = "output"

    def forward(self, read: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(read.to(self.weight.dtype)).to(read.dtype)


ProjectionChange = LoraChange | Ia3Change | HeadLinear


class PeftAdapter(nn.Module):
    """A LoRA or (IA)³ adapter by the paths of the modules that it changes, including its head's.

    Tensors are named as in PEFT's file, with ``/`` in paths: ``parts.model/layers/0/self_attn/q_proj.lora_A.weight``.
    """

    def __init__(self, config: Mapping[str, Json], lineage: lineages.Lineage | None) -> None:
        super().__init__()
        self.config, self.lineage = config, lineage
        self.parts = nn.ModuleDict()
        self.head = nn.ModuleDict()

    def at(self) -> Iterator[tuple[str, ProjectionChange]]:
        """(path of a module, its change); a head's modules first, since a change may apply to one."""
        for group in (self.head, self.parts):
            for path, part in group.items():
                yield path.replace("/", "."), part  # type: ignore[misc]

    def save(self, directory: str | Path, **metadata: object) -> Path:
        """Write the directory as PEFT reads it; ``metadata`` goes into its configuration. Raises: AdapterFileError."""
        state = {**self.parts.state_dict(), **self.head.state_dict()}
        tensors = {
            PREFIX + name.replace("/", "."): tensor.detach().cpu().contiguous() for name, tensor in state.items()
        }
        with staged_directory(directory) as stage:
            text = json.dumps({**self.config, **metadata}, indent=2, sort_keys=True)
            (stage / CONFIG).write_text(text + "\n", encoding="utf-8")
            save_tensors(dict(sorted(tensors.items())), stage / TENSORS)
            if self.lineage:
                self.lineage.write(stage)
        return Path(directory)


def is_peft(directory: str | Path) -> bool:
    """Whether ``adapter_config.json`` declares an adapter of PEFT; false without that file.

    Raises: AdapterFileError for a config that cannot be read."""
    path = Path(directory)
    return os.path.lexists(path / CONFIG) and read_config(path).get("peft_type") is not None


def read_peft(directory: str | Path, model: PreTrainedModel) -> PeftAdapter:
    """Read a LoRA or (IA)³ directory for a model, with its trained head.

    Raises: AdapterFileError for files that cannot be read, or tensors without a module in the model;
        IncompatibleAdaptersError for another structure, variant or shape.
    """
    opened = AdapterDirectory.open(directory)
    if structure_kind(opened.config) not in ("lora", "ia3"):
        raise IncompatibleAdaptersError(
            "this PEFT adapter cannot be a member of a stack",
            where=opened.path,
            found=opened.config.get("peft_type"),
            expected="LORA or IA3, or a bottleneck adapter",
            fix="load it with PEFT alone",
        )
    contents, tensors = layout(opened), read_directory(opened.path)
    require_targeted(opened.config, contents.sites, opened.path / CONFIG)
    adapter = PeftAdapter(dict(opened.config), lineages.read(opened.path))
    for path, site in contents.sites.items():
        module = _linear(model, path, opened)
        by_role = {role: tensors[info.name] for role, info in site.tensors.items()}
        part: ProjectionChange
        if contents.kind == "lora":
            dropout = float(opened.config.get("lora_dropout") or 0)
            part = LoraChange(module.in_features, module.out_features, site.rank, site.scaling, dropout)
        else:
            shape = tuple(by_role["ia3_l"].shape)
            part = Ia3Change((1, module.in_features) if shape[0] == 1 else (module.out_features, 1))
        ending = ".weight" if contents.kind == "lora" else ""
        _fill(part, {role + ending: tensor for role, tensor in by_role.items()}, path, opened)
        adapter.parts[path.replace(".", "/")] = _like(part, module)
    if contents.heads:
        require_labels(model, opened.path)
    for path, head_tensors in _heads(contents, tensors).items():
        module = _linear(model, path, opened)
        head = HeadLinear(module.in_features, module.out_features, bias=module.bias is not None)
        _fill(head, head_tensors, path, opened)
        adapter.head[path.replace(".", "/")] = _like(head, module)
    return adapter


def _heads(contents: Layout, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    heads: dict[str, dict[str, torch.Tensor]] = {}
    for name in contents.heads:
        path, _, kind = name.removeprefix(PREFIX).rpartition(".")
        heads.setdefault(path, {})[kind] = tensors[name]
    return heads


def _linear(model: PreTrainedModel, path: str, directory: AdapterDirectory) -> nn.Linear:
    module = dict(model.named_modules()).get(path)
    if not isinstance(module, nn.Linear):
        raise AdapterFileError(
            "the adapter changes a module that is missing in this model, or not linear",
            where=f"{directory.tensors_path}: {path}",
            found="no such module" if module is None else type(module).__name__,
            expected=f"an nn.Linear of {type(model).__name__}",
            fix="use the base and the kind of head that the adapter was trained with",
        )
    return module


def _fill(part: ProjectionChange, tensors: Mapping[str, torch.Tensor], path: str, directory: AdapterDirectory) -> None:
    parameters = dict(part.named_parameters())
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != expected:
        raise IncompatibleAdaptersError(
            "the adapter's tensors do not fit the shape of the module",
            where=f"{directory.tensors_path}: {path}",
            found=", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())),
            expected=", ".join(f"{name} {shape}" for name, shape in sorted(expected.items())),
            fix="use the base and the number of labels that the adapter was trained with",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _like(part: ProjectionChange, module: nn.Linear) -> ProjectionChange:
    # Offloaded parameters are on "meta" between calls; the adapter's must have data.
    device = None if module.weight.device.type == "meta" else module.weight.device
    return part.to(device=device, dtype=module.weight.dtype)
