"""The record of a structure: everything that needs no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from adamergex.files.inputs import Json
from adamergex.files.registry import import_path
from adamergex.files.tensor_names import PREFIX

if TYPE_CHECKING:
    from adamergex.files.directory import AdapterDirectory
    from adamergex.files.lineage import Lineage
    from adamergex.structures.layout import Layout
    from adamergex.structures.settings import Structure

Card = Callable[["Lineage", str, "str | None"], str]
"""(lineage, base, PEFT's task type) -> the loading code of the model card."""


@dataclass(frozen=True)
class StructureKind:
    """One structure. Everything beyond the first three has a default; a structure without a ``rule`` is not merged.

    Args:
        name: ``structure.kind`` in settings, step keys and lineages.
        settings: "module:Class" of its settings, a subclass of ``structures.settings.Structure``.
        module: the module with its ``attach``, ``load``, ``place`` and ``modules`` (``loaded_adapter.Backend``).
        peft_type: in ``adapter_config.json``, if PEFT or the structure's own module writes one.
        recognised: whether an ``adapter_config.json`` is of this structure, if the PEFT type does not show it.
        adapter: False for fine-tuning of the base's parameters.
        stackable: can be trained on frozen adapters, and be a member of a stack.
        optimisation: defaults that differ from those of ``Optimisation``.
        weight_decay: False if decay would change values that must stay.
        trained_on: projections of ``adapters.sites.Projections`` under ``modules: paper``; empty: no projections.
        scales_inputs: changes the input of a down-projection instead of its output.
        rule: name of the merging rule that fits how it acts on the frozen matrices (2402.18913, section 3.2).
        selection: modules that a merge with two references changes by default.
        pattern: names of its tensors, with groups ``module`` and ``role``, without PEFT's prefix.
        live: the same for a live model's state dict, if that differs.
        roles: the tensors of one module.
        tensors: their name in messages.
        layout: sorts the tensors of a directory; default: one site per module with every role, the rest are heads.
        start: ``random``: adapters combine only from one start, shown by lineages or by the ``random`` tensors;
            ``told``: only if lineages show one start; ``fixed``: all adapters start equal.
        random: tensors that are drawn at the start, the first one that a module has; ``random_name`` in messages.
        shape: field of a lineage's structure -> field of ``adapter_config.json``.
        low_rank: ΔW = s·B·A, so that merges in space delta and truncation are defined.
        task_vectors: the file shows what training added (TIES, DARE).
        whole: one tensor for all layers, merged by column ranges; layers have no separate weights.
        head_apart: its head is in separate files.
        card: the loading code of its model card; default: PEFT's.
    """

    name: str
    settings: str
    module: str
    peft_type: str | None = None
    recognised: Callable[[Mapping[str, Json]], bool] | None = None
    adapter: bool = True
    stackable: bool = False
    optimisation: Mapping[str, float] = field(default_factory=dict)
    weight_decay: bool = True
    trained_on: tuple[str, ...] = ()
    scales_inputs: bool = False
    rule: str | None = None
    selection: str = "all"
    pattern: re.Pattern[str] | None = None
    live: re.Pattern[str] | None = None
    roles: frozenset[str] = frozenset()
    tensors: str = "its tensors"
    layout: Callable[[AdapterDirectory, StructureKind], Layout] | None = None
    start: Literal["random", "told", "fixed"] = "random"
    random: tuple[str, ...] = ()
    random_name: str = "the tensors that are random at the start"
    shape: Mapping[str, str] = field(default_factory=dict)
    low_rank: bool = False
    task_vectors: bool = False
    whole: bool = False
    head_apart: bool = False
    card: Card | None = None

    @cached_property
    def settings_class(self) -> type[Structure]:
        settings: type[Structure] = import_path(self.settings)
        return settings

    def holds(self, config: Mapping[str, Json]) -> bool:
        """Whether an ``adapter_config.json`` is of this structure."""
        if self.recognised is not None:
            return self.recognised(config)
        return self.peft_type is not None and config.get("peft_type") == self.peft_type

    @property
    def in_modules(self) -> bool:
        """Whether PEFT's ``target_modules`` list its modules."""
        return self.peft_type is not None and not self.whole

    def split(self, key: str, *, live: bool = False) -> tuple[str | None, str]:
        """Tensor name -> (module, role); module ``None`` for other tensors. ``live``: a live model's names too."""
        pattern = self.live if live and self.live else self.pattern
        match = pattern.fullmatch(key) if pattern else None
        return (match["module"].removeprefix(PREFIX), match["role"]) if match else (None, key)
