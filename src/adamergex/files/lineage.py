"""Lineage: where an adapter comes from, in ``lineage.json`` beside it. Standard library only."""

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
    """What one adapter was made from; ``None`` and empty where it is not known or does not apply.

    Args:
        base: ``{"name": ..., "sha256": ...}`` of the frozen model.
        structure: ``{"kind": "lora" | "ia3" | "bottleneck", "rank": ..., "alpha": ..., ...}``.
        start: SHA-256 of the adapter's initial tensors.
        task: kind and the settings that make two tasks the same task; never the language.
        language: ISO code of the language of the data (of a merge: the target).
        data: files or data sets with their SHA-256, and the number of rows.
        settings: how it was trained.
        parents: role -> ``{"path": ..., "sha256": ..., "language": ...}`` of a merge; of an adapter that was trained on
            frozen ones, those: ``base_adapter``, ``base_adapter_2``, …
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
        """Canonical JSON: the same lineage always gives the same bytes."""
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
    """Read ``lineage.json`` of a directory; ``None`` where there is none.

    Raises:
        AdapterFileError: no plain file, not JSON, another format, fields that are unknown or of the wrong type, or one
            that names code.
    """
    path = Path(directory) / FILE_NAME
    if not os.path.lexists(path):
        return None
    found = inputs.read_json_object(path, what="the lineage", error=AdapterFileError)
    _require_format(path, found)
    return Lineage(**{key: value for key, value in found.items() if key != "format"})


def require_base(directory: str | Path, name: str, sha256: str) -> Lineage | None:
    """The lineage of an adapter that is to be used on a base; one without lineage passes.

    Raises: ModelError for an adapter of another base: of the same shape it would load, and predict noise.
    """
    found = read(directory)
    made_for = None if found is None else found.base.get("sha256")
    if found is not None and made_for and made_for != sha256:
        raise ModelError(
            "the adapter was trained on another base",
            where=directory,
            found=f"{name} with SHA-256 {sha256[:12]}…",
            expected=f"{found.base.get('name')} with SHA-256 {str(made_for)[:12]}…",
            fix="name that base",
        )
    return found


def _require_format(path: Path, found: Mapping[str, Any]) -> None:
    if found.get("format") != FORMAT:
        raise AdapterFileError(
            "the lineage has another format",
            where=path,
            found=found.get("format"),
            expected=FORMAT,
            fix="use the adamergex version that wrote it, or delete the file",
        )
    known = {item.name for item in fields(Lineage)}
    unknown = sorted(set(found) - known - {"format"})
    if unknown:
        raise AdapterFileError(
            "the lineage has fields that are not known",
            where=path,
            found=", ".join(unknown),
            expected=", ".join(sorted(known)),
            fix="use the adamergex version that wrote it, or remove these fields",
        )
    for name in sorted(known & set(found)):
        value, optional = found[name], name in ("start", "task", "language", "merge")
        kind: type = str if name in ("start", "language") else dict
        if not (isinstance(value, kind) or (optional and value is None)):
            raise AdapterFileError(
                "a field of the lineage has the wrong type",
                where=f"{path}: {name}",
                found=type(value).__name__,
                expected=kind.__name__ + (" or null" if optional else ""),
                fix="restore the file, or delete it",
            )
    if problem := lineage_fields.wrong(found):
        field_name, value, expected = problem
        raise AdapterFileError(
            "a field of the lineage has the wrong type or value",
            where=f"{path}: {field_name}",
            found=value,
            expected=expected,
            fix="restore the file, or delete it: the adapter then counts as one without lineage",
        )


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the installed packages among ``names``, without importing any of them."""
    versions = {}
    for name in names:
        # importlib.metadata takes 20 ms to import: asked only for packages that this process has not loaded.
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
