"""Writes the config, report, card and lineage of a merged adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamergex.errors import NothingMergedError
from adamergex.files import lineage as lineages
from adamergex.files.directory import CONFIG
from adamergex.files.inputs import Json
from adamergex.files.lineage import Lineage
from adamergex.merging.checks import Adapter
from adamergex.merging.report import FILE_NAME, MergeReport
from adamergex.structures import card


def parents(adapters: list[Adapter], hashes: list[str]) -> dict[str, dict[str, Json]]:
    """Role -> path, SHA-256 and language of each input."""
    return {
        adapter.role.replace(" ", "_"): {
            "path": str(adapter.layout.directory.path),
            "sha256": sha256,
            "language": adapter.lineage.language if adapter.lineage else None,
        }
        for adapter, sha256 in zip(adapters, hashes, strict=True)
    }


def require_change(report: MergeReport, parents: Mapping[str, Mapping[str, Json]]) -> None:
    """Raises: NothingMergedError when a weight is not 0 but no stored bit differs from the task's."""
    if not any(report.layers or (report.weight,)) or report.changed:
        return
    target, source = (parents.get(f"{side}_reference") for side in ("target", "source"))
    same_file = target is not None and source is not None and target["sha256"] == source["sha256"]
    raise NothingMergedError(
        "the merge changed nothing",
        where=f"{report.matched} selected modules, weight {report.weight}",
        found="target and source reference are the same file"
        if same_file
        else "a divergence of zero, or below the rounding of the dtype",
        expected="a change of at least one module",
        fix="check the paths of the references, that they were trained, and the weight",
    )


def merged_lineage(
    task: Adapter,
    others: list[Adapter],
    parents: Mapping[str, Mapping[str, Json]],
    report: MergeReport,
    config: Mapping[str, Json],
) -> Lineage:
    """The lineage of the merged adapter."""
    inherited = task.lineage or Lineage()
    base = inherited.base or {"name": task.layout.base_name, "sha256": None}
    starts = {adapter.lineage.start if adapter.lineage else None for adapter in (task, *others)}
    shape = {name: config.get(setting) for name, setting in task.layout.structure.shape.items()}
    prefix_settings = {"span": report.span, "form": report.form} if report.span else {}
    return Lineage(
        base=base,
        structure={**(inherited.structure or {"kind": task.layout.kind}), **shape},
        # Only a combination of factors with one start keeps that start.
        start=starts.pop() if len(starts) == 1 and report.space == "factors" else None,
        task=inherited.task,
        language=others[0].lineage.language if others[0].lineage else None,
        parents=parents,
        merge={
            "rule": report.rule,
            "space": report.space,
            "modules": report.selection,
            "weight": report.weight,
            "rank": report.rank,
            **prefix_settings,
            **({"layers": report.layers} if report.layers else {}),
            **({"settings": dict(report.settings)} if report.settings else {}),
        },
        versions=lineages.package_versions(("adamergex", "numpy")),
    )


def write_beside(stage: Path, report: MergeReport, config: Mapping[str, Any], lineage: Lineage) -> None:
    """Write config, report, card and lineage into an existing directory."""
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    (stage / CONFIG).write_text(text, encoding="utf-8")
    (stage / FILE_NAME).write_text(report.to_json(), encoding="utf-8")
    card.write_beside(stage, lineage, report.lines(), task_type=config.get("task_type"))
