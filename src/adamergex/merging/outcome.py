"""Checks that PEFT loads all of an adapter to merge, and all of the written one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from adamergex.errors import NothingMergedError
from adamergex.files.directory import CONFIG, AdapterDirectory
from adamergex.merging.report import MergeReport
from adamergex.structures.layout import Layout, layout
from adamergex.structures.targets import require_targeted


def require_read(layout: Layout) -> None:
    """Require that PEFT loads all tensors of an adapter whose config a merge copies. Raises: AdapterFileError."""
    if layout.structure.in_modules:
        require_targeted(layout.directory.config, layout.sites, layout.directory.path / CONFIG)


def require_loadable(stage: Path, report: MergeReport, expected: Collection[str]) -> None:
    """Require that PEFT will load the ``expected`` and the changed modules of the written adapter.

    Raises: AdapterFileError, IncompatibleAdaptersError as for reading any adapter; NothingMergedError when PEFT would
    not load a module that the report counts as changed.
    """
    written = layout(AdapterDirectory.open(stage))
    require_read(written)
    changed = {item.module for item in report.modules if item.changed} if report.span is None else set()
    missing = sorted((changed | set(expected)) - set(written.sites))
    if missing or written.directory.stored:
        raise NothingMergedError(
            "PEFT would not load all of the merged adapter",
            where=str(stage),
            found=f"no {', '.join(missing[:4]) or next(iter(written.directory.stored.values()))} under PEFT's names",
            expected=f"{len(expected)} modules",
            fix="check that the adapters' tensors have PEFT's names",
        )
