"""What PEFT reads of an adapter that is merged, and of what was written: under its names, by the config beside it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from adamergex.errors import NothingMergedError
from adamergex.files.directory import CONFIG, AdapterDirectory
from adamergex.merging.report import MergeReport
from adamergex.structures.layout import Layout, layout
from adamergex.structures.targets import require_targeted


def require_read(layout: Layout) -> None:
    """PEFT reads all of an adapter whose config a merge takes over. Raises: AdapterFileError where it would not."""
    if layout.structure.in_modules:
        require_targeted(layout.directory.config, layout.sites, layout.directory.path / CONFIG)


def require_loadable(stage: Path, summary: MergeReport, expected: Collection[str]) -> None:
    """The written adapter has the ``expected`` modules, those that changed among them, where PEFT looks for them.

    Raises: AdapterFileError, IncompatibleAdaptersError as for any adapter that is read; NothingMergedError where a
    module that the report counts as changed is not among those that PEFT will load.
    """
    written = layout(AdapterDirectory.open(stage))
    require_read(written)
    changed = {item.module for item in summary.modules if item.changed} if summary.span is None else set()
    missing = sorted((changed | set(expected)) - set(written.sites))
    if missing or written.directory.stored:
        raise NothingMergedError(
            "the merged adapter would not be loaded as it was written",
            where=str(stage),
            found=f"no {', '.join(missing[:4]) or next(iter(written.directory.stored.values()))} under PEFT's names",
            expected=f"{len(expected)} modules",
            fix="check that the names of the adapters' tensors are those that PEFT gave them",
        )
