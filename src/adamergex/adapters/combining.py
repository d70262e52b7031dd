"""TIES and DARE of a task adapter and a reference, through PEFT: from LoRA directories to a LoRA directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adamergex import lineage as lineages
from adamergex.adapters import peft_backed
from adamergex.checkpoint import AdapterDirectory
from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.hashing import file_sha256
from adamergex.lineage import Lineage
from adamergex.merging import report
from adamergex.merging.checks import Adapter, require_fitting, require_references, require_same_start
from adamergex.merging.layout import layout
from adamergex.merging.report import MergeReport, ModuleChange
from adamergex.outputs import staged_directory

METHODS = {"ties": (1.0, 1.0), "dare": (0.5, 0.5)}
"""The methods and their default weights: TIES takes the mean of what agrees, DARE the sum."""
Tensors = dict[str, torch.Tensor]


def combine(
    *,
    task: Path | str,
    target_reference: Path | str,
    method: str,
    density: float,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    output: Path | str,
) -> MergeReport:
    """A and B of every module combined as PEFT's ``add_weighted_adapter`` does, each factor with √weight.

    TIES: keep the ``density`` largest entries of each, elect a sign, mean of those that agree (2306.01708).
    DARE: keep each entry with probability ``density``, times 1/density; weighted sum (2311.03099). Rank, α and head
    are the task's; ``weights`` of task and reference. PEFT's scaling, which it folds into the factors, stays in the
    config here: ΔW is the same.
    Raises: ConfigError, AdapterFileError, IncompatibleAdaptersError.
    """
    default: Sequence[float] = METHODS.get(method, ())
    chosen = tuple(map(float, default if weights is None else weights))
    if method not in METHODS or len(chosen) != 2 or min(chosen) < 0 or not 0 < density <= 1:
        raise ConfigError(
            "This combination cannot be made.",
            where="merge",
            found=f"method {method}, density {density}, weights {chosen}",
            expected=f"{' or '.join(METHODS)}, a density in (0, 1], two weights that are not negative",
        )
    adapters = [_open("task", task), _open("target reference", target_reference)]
    own, other = adapters
    if own.layout.kind != "lora":
        raise IncompatibleAdaptersError(
            f"{method} is for LoRA.", where=own.where, found=own.layout.kind, expected="lora", fix="choose another rule"
        )
    require_references(other, None, own)
    require_fitting(adapters, "factors")
    require_same_start(adapters, allowed=False)
    stored = [peft_backed.read_tensors(adapter.layout.directory.path) for adapter in adapters]
    merged, changes = _combined(own, stored, method, [math.sqrt(weight) for weight in chosen], density, seed)
    summary = MergeReport(
        "lora", method, "factors", "all", chosen[1], None, tuple(changes), tuple(own.layout.heads),
        tuple(other.layout.heads),
    )  # fmt: skip
    settings = {"density": density, "weights": list(chosen)} | ({"seed": seed} if method == "dare" else {})
    with staged_directory(output) as stage:
        contents = {name: tensor.contiguous() for name, tensor in sorted(merged.items())}
        save_file(contents, stage / peft_backed.WEIGHTS_FILE, metadata={"format": "pt"})
        config = json.dumps(dict(own.layout.directory.config), indent=2, sort_keys=True, ensure_ascii=False)
        (stage / peft_backed.CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
        (stage / report.FILE_NAME).write_text(summary.to_json(), encoding="utf-8")
        lineage = _lineage(adapters, summary, settings)
        card = lineages.model_card(lineage, summary.lines(), task_type=own.layout.directory.config.get("task_type"))
        (stage / "README.md").write_text(card, encoding="utf-8")
        lineage.write(stage)
    return summary


def _open(role: str, path: Path | str) -> Adapter:
    directory = AdapterDirectory.open(path)
    return Adapter(role, layout(directory), lineages.read(directory.path))


def _combined(
    own: Adapter, stored: Sequence[Tensors], method: str, roots: list[float], density: float, seed: int
) -> tuple[Tensors, list[ModuleChange]]:
    """The tensors of the result, in float32 and rounded once; what happened to each module, in sorted order."""
    merged, changes = dict(stored[0]), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module, site in sorted(own.layout.sites.items()):
            norms = torch.zeros(3, dtype=torch.float64)
            changed = False
            for role in ("lora_A", "lora_B"):
                name = site.tensors[role].name
                task, reference = (tensors[name].float() for tensors in stored)
                result = peft_backed.combined(method, [task, reference], roots, density)
                merged[name] = result.to(stored[0][name].dtype)
                norms += torch.stack([part.double().square().sum() for part in (task, reference, result - task)])
                changed = changed or not torch.equal(merged[name], stored[0][name])
            first, second, third = norms.sqrt().tolist()
            changes.append(ModuleChange(module, True, changed, first, second, third))
    return merged, changes


def _lineage(adapters: Sequence[Adapter], summary: MergeReport, settings: Mapping[str, Any]) -> Lineage:
    own, other = adapters
    inherited = own.lineage or Lineage()
    return Lineage(
        base=inherited.base or {"name": own.layout.base_name, "sha256": None},
        structure=inherited.structure or {"kind": "lora"},
        task=inherited.task,
        language=other.lineage.language if other.lineage else None,
        parents={
            adapter.role.replace(" ", "_"): {
                "path": str(adapter.layout.directory.path),
                "sha256": file_sha256(adapter.layout.directory.tensors_path),
                "language": adapter.lineage.language if adapter.lineage else None,
            }
            for adapter in adapters
        },
        merge={
            "rule": summary.rule,
            "space": summary.space,
            "modules": summary.selection,
            "weight": summary.weight,
            "rank": None,
            **settings,
        },
        versions=lineages.package_versions(("adamergex", "torch", "peft")),
    )
