"""Sorts the tensors of an adapter directory into adapted modules and heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from adamergex.errors import AdapterFileError, IncompatibleAdaptersError
from adamergex.files.directory import FLOATS, AdapterDirectory, TensorInfo
from adamergex.structures import every, kind_named, kind_of_config, structure_kind
from adamergex.structures.kind import StructureKind


class Site(NamedTuple):
    """One adapted module: its tensors by role, and for LoRA its rank and α.

    ``lora_A`` (r, in) and ``lora_B`` (out, r); ``ia3_l``; ``prompt_embeddings`` (n, columns) as it will be written; a
    bottleneck's ``down.weight`` (w, in), ``up.weight`` (in, w) and biases (0 and 2 in half of an invertible block).
    """

    tensors: Mapping[str, TensorInfo]
    rank: int = 0
    alpha: float = 0.0
    scaling: float = 1.0


@dataclass(frozen=True)
class Layout:
    """Kind, adapted modules by name, and all other tensors: the heads.

    ``settings``: config fields that must be equal in adapters to combine, beside the shapes of their tensors."""

    directory: AdapterDirectory
    kind: str
    sites: Mapping[str, Site]
    heads: Mapping[str, TensorInfo]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def structure(self) -> StructureKind:
        """The record of the structure."""
        return kind_named(self.kind)

    @property
    def base_name(self) -> str | None:
        """The base that the config names: PEFT's key, or AdapterHub's."""
        config = self.directory.config
        return config.get("base_model_name_or_path") or config.get("model_name")

    def owner(self, key: str) -> str | None:
        """The module of an adapter tensor, ``None`` for a head."""
        return self._owners.get(key)

    @cached_property
    def _owners(self) -> dict[str, str]:
        return {info.name: module for module, site in self.sites.items() for info in site.tensors.values()}


def layout(directory: AdapterDirectory) -> Layout:
    """Sort the tensors of an adapter into sites and heads.

    Raises:
        IncompatibleAdaptersError: a variant that is not supported (DoRA, biases, embeddings, convolutions, …).
        AdapterFileError: tensors that do not fit the config or each other.
    """
    kind = kind_of_config(directory.config)
    if kind is None or kind.rule is None:
        raise IncompatibleAdaptersError(
            f"merging {structure_kind(directory.config)} adapters is not supported",
            where=directory.path,
            found=directory.config.get("peft_type"),
            expected=" or ".join(sorted(item.name for item in every() if item.rule)),
            fix="merge adapters of one of these structures",
        )
    return (kind.layout or plain)(directory, kind)


def plain(directory: AdapterDirectory, kind: StructureKind) -> Layout:
    """One site per module with all roles of the structure; tensors outside its pattern are heads.

    Raises: IncompatibleAdaptersError, AdapterFileError: as ``layout``.
    """
    modules, heads = by_module(directory, kind)
    require_modules(directory, kind, modules)
    for module, tensors in modules.items():
        if set(tensors) != kind.roles or any(info.dtype not in FLOATS for info in tensors.values()):
            raise AdapterFileError(
                "the tensors of a module do not fit together",
                where=f"{directory.tensors_path}: {module}",
                found=", ".join(f"{role} {info.shape} {info.dtype}" for role, info in sorted(tensors.items())),
                expected=f"{', '.join(sorted(kind.roles))}, floating point",
                fix="save the adapter again",
            )
    return Layout(directory, kind.name, {module: Site(modules[module]) for module in sorted(modules)}, heads)


def by_module(
    directory: AdapterDirectory, kind: StructureKind
) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, TensorInfo]]:
    """Module -> role -> tensor, and the tensors of no module."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    heads = {}
    for name, info in directory.tensors.items():
        module, role = kind.split(name)
        if module is None:
            heads[name] = info
        else:
            modules.setdefault(module, {})[role] = info
    return modules, heads


def require_modules(directory: AdapterDirectory, kind: StructureKind, modules: Collection[str]) -> None:
    """Raises: AdapterFileError without any module."""
    if not modules:
        raise AdapterFileError(
            f"the adapter has no {kind.name} tensors",
            where=directory.tensors_path,
            found=", ".join(list(directory.tensors)[:4]) or "no tensors",
            expected=kind.tensors,
            fix="save the adapter again with save_pretrained",
        )


def unsupported(directory: AdapterDirectory, what: str, found: object) -> IncompatibleAdaptersError:
    """The error for an unsupported variant of a known structure."""
    return IncompatibleAdaptersError(
        f"{what} cannot be merged or stacked: not supported",
        where=directory.path,
        found=found,
        expected="plain LoRA or (IA)³ on linear modules",
        fix="train the adapter without it",
    )
