"""LoRA and (IA)³ directories of PEFT as members of a stack: changes of linear modules, which stay where they are.

PEFT itself wraps the modules and switches by names that it gives them; a stack changes what a module reads or gives, so
that the base keeps its modules and several members, bottleneck adapters among them, are active together.
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


class LowRank(nn.Module):
    """LoRA: y <- y + (α/r)·B·A·dropout(x), x what the module read; A (r, in), B (out, r). Source: 2106.09685, Eq 3."""

    side: Side = "output"

    def __init__(self, width: int, out: int, rank: int, scaling: float, dropout: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scaling = scaling

    def forward(self, read: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = self.lora_B(self.lora_A(self.dropout(read.to(self.lora_A.weight.dtype)))) * self.scaling
        return given + update.to(given.dtype)


class Rescale(nn.Module):
    """(IA)³: y <- y ⊙ l for l (out, 1); x <- x ⊙ l for l (1, in), the feed-forward's. Source: 2205.05638, §3.3."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.side: Side = "input" if shape[0] == 1 else "output"
        self.ia3_l = nn.Parameter(torch.empty(shape))

    def forward(self, read: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = given * self.ia3_l.flatten()
        return scaled.to(given.dtype)


class Replacement(nn.Linear):
    """A linear module of a trained head, in the place of the model's own."""

    side: Side = "output"

    def forward(self, read: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(read.to(self.weight.dtype)).to(read.dtype)


Part = LowRank | Rescale | Replacement


class PeftAdapter(nn.Module):
    """A LoRA or (IA)³ adapter by the paths of the modules that it changes, its head's modules among them.

    Tensors are named as in PEFT's file, with ``/`` in paths: ``parts.model/layers/0/self_attn/q_proj.lora_A.weight``.
    """

    def __init__(self, config: Mapping[str, Json], lineage: lineages.Lineage | None) -> None:
        super().__init__()
        self.config, self.lineage = config, lineage
        self.parts = nn.ModuleDict()
        self.head = nn.ModuleDict()

    def at(self) -> Iterator[tuple[str, Part]]:
        """(path of a module, what changes it); a head's modules first: a change may stand on one."""
        for group in (self.head, self.parts):
            for path, part in group.items():
                yield path.replace("/", "."), part  # type: ignore[misc]

    def save(self, directory: str | Path, **metadata: object) -> Path:
        """Write the directory as PEFT reads it; ``metadata`` goes into its configuration. Raises: AdapterFileError."""
        named = {**self.parts.state_dict(), **self.head.state_dict()}
        tensors = {
            PREFIX + name.replace("/", "."): tensor.detach().cpu().contiguous() for name, tensor in named.items()
        }
        with staged_directory(directory) as stage:
            text = json.dumps({**self.config, **metadata}, indent=2, sort_keys=True)
            (stage / CONFIG).write_text(text + "\n", encoding="utf-8")
            save_tensors(dict(sorted(tensors.items())), stage / TENSORS)
            if self.lineage:
                self.lineage.write(stage)
        return Path(directory)


def is_peft(directory: str | Path) -> bool:
    """Whether ``adapter_config.json`` declares an adapter of PEFT; of a directory without one, false.

    Raises: AdapterFileError for a config that cannot be read."""
    path = Path(directory)
    return os.path.lexists(path / CONFIG) and read_config(path).get("peft_type") is not None


def read_peft(directory: str | Path, model: PreTrainedModel) -> PeftAdapter:
    """Read a LoRA or (IA)³ directory for a model, its trained head too.

    Raises: AdapterFileError for files that cannot be read, or tensors that the model has no module for;
        IncompatibleAdaptersError for another structure or variant, or another shape than the module's.
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
    found, tensors = layout(opened), read_directory(opened.path)
    require_targeted(opened.config, found.sites, opened.path / CONFIG)
    made = PeftAdapter(dict(opened.config), lineages.read(opened.path))
    for path, site in found.sites.items():
        module = _linear(model, path, opened)
        own = {role: tensors[info.name] for role, info in site.tensors.items()}
        part: Part
        if found.kind == "lora":
            dropout = float(opened.config.get("lora_dropout") or 0)
            part = LowRank(module.in_features, module.out_features, site.rank, site.scaling, dropout)
        else:
            shape = tuple(own["ia3_l"].shape)
            part = Rescale((1, module.in_features) if shape[0] == 1 else (module.out_features, 1))
        _fill(part, {f"{role}.weight" if found.kind == "lora" else role: own[role] for role in own}, path, opened)
        made.parts[path.replace(".", "/")] = _beside(part, module)
    if found.heads:
        require_labels(model, opened.path)
    for path, own in _heads(found, tensors).items():
        module = _linear(model, path, opened)
        head = Replacement(module.in_features, module.out_features, bias=module.bias is not None)
        _fill(head, own, path, opened)
        made.head[path.replace(".", "/")] = _beside(head, module)
    return made


def _heads(found: Layout, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    heads: dict[str, dict[str, torch.Tensor]] = {}
    for name in found.heads:
        path, _, kind = name.removeprefix(PREFIX).rpartition(".")
        heads.setdefault(path, {})[kind] = tensors[name]
    return heads


def _linear(model: PreTrainedModel, path: str, directory: AdapterDirectory) -> nn.Linear:
    module = dict(model.named_modules()).get(path)
    if not isinstance(module, nn.Linear):
        raise AdapterFileError(
            "the adapter changes a module that this model does not have as a linear one",
            where=f"{directory.tensors_path}: {path}",
            found="no such module" if module is None else type(module).__name__,
            expected=f"an nn.Linear of {type(model).__name__}",
            fix="use the base, and the class with the kind of head, that the adapter was trained with",
        )
    return module


def _fill(part: Part, tensors: Mapping[str, torch.Tensor], path: str, directory: AdapterDirectory) -> None:
    own = dict(part.named_parameters())
    wanted = {name: tuple(parameter.shape) for name, parameter in own.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != wanted:
        raise IncompatibleAdaptersError(
            "an adapter's tensors have another shape than the module that they change",
            where=f"{directory.tensors_path}: {path}",
            found=", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())),
            expected=", ".join(f"{name} {shape}" for name, shape in sorted(wanted.items())),
            fix="use the base, with as many labels, that the adapter was trained with",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def _beside(part: Part, module: nn.Linear) -> Part:
    # Offloaded weights stand on "meta" between calls; the adapter itself has to stay real.
    device = None if module.weight.device.type == "meta" else module.weight.device
    return part.to(device=device, dtype=module.weight.dtype)
