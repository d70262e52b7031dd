"""Lineage: where an adapter comes from, in its ``lineage.json``. Standard library only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from adamergex.errors import AdapterFileError, ModelError
from adamergex.files import inputs, lineage_fields

FILE_NAME = "lineage.json"
FORMAT = "adamergex-lineage/1"
PACKAGES = ("adamergex", "numpy", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Lineage:
    """What one adapter was made from; ``None`` and empty where unknown or not applicable.

    Args:
        base: ``{"name": ..., "sha256": ...}`` of the frozen model.
        structure: ``{"kind": "lora" | "ia3" | "bottleneck", "rank": ..., "alpha": ..., ...}``.
        start: SHA-256 of the adapter's initial tensors.
        task: its kind and the settings that identify it, without the language.
        language: ISO code of the language of the data (of a merge: the target).
        data: files or data sets with their SHA-256, and the number of rows.
        settings: the training settings.
        parents: role -> ``{"path": ..., "sha256": ..., "language": ...}`` of a merge's inputs, or of the frozen
            adapters that this one was trained on: ``base_adapter``, ``base_adapter_2``, …
        merge: ``{"rule", "space", "modules", "weight", "rank"}`` of a merge; ``weight`` is null in a divergence.
        versions: package -> version.
    """

    base: Mapping[str, Any] = field(default_factory=dict)
    structure: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    task: Mapping[str, Any] | None = None
    language: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    merge: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Canonical JSON: equal lineages give equal bytes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, directory: str | Path) -> Path:
        """Write ``lineage.json`` into an existing directory."""
        path = Path(directory) / FILE_NAME
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @property
    def is_divergence(self) -> bool:
        """Whether this is a language vector: a merge without a task and without a weight."""
        return self.merge is not None and self.merge.get("weight") is None


def read(directory: str | Path) -> Lineage | None:
    """Read ``lineage.json`` of a directory; ``None`` if there is none.

    Raises:
        AdapterFileError: not a regular file, not JSON, another format, unknown fields, fields of the wrong type, or one
            that names code.
    """
    path = Path(directory) / FILE_NAME
    if not os.path.lexists(path):
        return None
    contents = inputs.read_json_object(path, what="the lineage", error=AdapterFileError)
    _require_format(path, contents)
    return Lineage(**{key: value for key, value in contents.items() if key != "format"})


def require_base(directory: str | Path, name: str, sha256: str) -> Lineage | None:
    """The lineage of an adapter to use on a base; an adapter without lineage is accepted.

    Raises: ModelError for an adapter of another base, which would load if the shapes agree, and predict noise.
    """
    lineage = read(directory)
    made_for = None if lineage is None else lineage.base.get("sha256")
    if lineage is not None and made_for and made_for != sha256:
        raise ModelError(
            "the adapter was trained on another base",
            where=directory,
            found=f"{name} with SHA-256 {sha256[:12]}…",
            expected=f"{lineage.base.get('name')} with SHA-256 {str(made_for)[:12]}…",
            fix="name that base",
        )
    return lineage


def _require_format(path: Path, contents: Mapping[str, Any]) -> None:
    if contents.get("format") != FORMAT:
        raise AdapterFileError(
            "the lineage has another format",
            where=path,
            found=contents.get("format"),
            expected=FORMAT,
            fix="use the adamergex version that wrote it, or delete the file",
        )
    known = {item.name for item in fields(Lineage)}
    unknown = sorted(set(contents) - known - {"format"})
    if unknown:
        raise AdapterFileError(
            "the lineage has unknown fields",
            where=path,
            found=", ".join(unknown),
            expected=", ".join(sorted(known)),
            fix="use the adamergex version that wrote it, or remove these fields",
        )
    for name in sorted(known & set(contents)):
        value, nullable = contents[name], name in ("start", "task", "language", "merge")
        kind: type = str if name in ("start", "language") else dict
        if not (isinstance(value, kind) or (nullable and value is None)):
            raise AdapterFileError(
                "a field of the lineage has the wrong type",
                where=f"{path}: {name}",
                found=type(value).__name__,
                expected=kind.__name__ + (" or null" if nullable else ""),
                fix="restore the file, or delete it",
            )
    if problem := lineage_fields.wrong(contents):
        field_name, value, expected = problem
        raise AdapterFileError(
            "a field of the lineage has the wrong type or value",
            where=f"{path}: {field_name}",
            found=value,
            expected=expected,
            fix="restore the file, or delete it: the adapter then has no lineage",
        )


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the installed packages among ``names``, without importing any of them."""
    versions = {}
    for name in names:
        # importlib.metadata takes 20 ms to import, so it serves only packages that this process has not loaded.
        version = getattr(sys.modules.get(name), "__version__", None) or _installed_version(name)
        if version:
            versions[name] = str(version)
    return versions


def _installed_version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
