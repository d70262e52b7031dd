"""What is written beside merged tensors: config, report, card and lineage."""

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
from adamergex.merging import report
from adamergex.merging.checks import Adapter
from adamergex.merging.report import MergeReport
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


def require_change(summary: MergeReport, parents: Mapping[str, Mapping[str, Json]]) -> None:
    """Raises: NothingMergedError where a weight is not 0 and no stored bit differs from the task's."""
    if not any(summary.layers or (summary.weight,)) or summary.changed:
        return
    target, source = (parents.get(f"{side}_reference") for side in ("target", "source"))
    twice = target is not None and source is not None and target["sha256"] == source["sha256"]
    raise NothingMergedError(
        "the merge changed nothing",
        where=f"{summary.matched} selected modules, weight {summary.weight}",
        found="target and source reference are the same file"
        if twice
        else "a divergence that is nothing, or smaller than the rounding of the dtype",
        expected="a change of at least one module",
        fix="check the paths of the references, that they were trained, and the weight",
    )


def merged_lineage(
    own: Adapter,
    others: list[Adapter],
    parents: Mapping[str, Mapping[str, Json]],
    summary: MergeReport,
    config: Mapping[str, Json],
) -> Lineage:
    """What the merged adapter was made from."""
    inherited = own.lineage or Lineage()
    base = inherited.base or {"name": own.layout.base_name, "sha256": None}
    starts = {adapter.lineage.start if adapter.lineage else None for adapter in (own, *others)}
    shape = {name: config.get(setting) for name, setting in own.layout.structure.shape.items()}
    choices = {"span": summary.span, "form": summary.form} if summary.span else {}
    return Lineage(
        base=base,
        structure={**(inherited.structure or {"kind": own.layout.kind}), **shape},
        # Only a combination of factors of one start still belongs to that start.
        start=starts.pop() if len(starts) == 1 and summary.space == "factors" else None,
        task=inherited.task,
        language=others[0].lineage.language if others[0].lineage else None,
        parents=parents,
        merge={
            "rule": summary.rule,
            "space": summary.space,
            "modules": summary.selection,
            "weight": summary.weight,
            "rank": summary.rank,
            **choices,
            **({"layers": summary.layers} if summary.layers else {}),
            **({"settings": dict(summary.settings)} if summary.settings else {}),
        },
        versions=lineages.package_versions(("adamergex", "numpy")),
    )


def write_beside(stage: Path, summary: MergeReport, config: Mapping[str, Any], lineage: Lineage) -> None:
    """Config, report, card and lineage into a directory that is there."""
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    (stage / CONFIG).write_text(text, encoding="utf-8")
    (stage / report.FILE_NAME).write_text(summary.to_json(), encoding="utf-8")
    card.write_beside(stage, lineage, summary.lines(), task_type=config.get("task_type"))
