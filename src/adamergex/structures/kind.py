"""What the project knows of a structure without a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from adamergex.files.inputs import Json
from adamergex.files.registry import named_in_code
from adamergex.files.tensor_names import PREFIX

if TYPE_CHECKING:
    from adamergex.files.directory import AdapterDirectory
    from adamergex.files.lineage import Lineage
    from adamergex.structures.layout import Layout
    from adamergex.structures.settings import Structure

Card = Callable[["Lineage", str, "str | None"], str]
"""(lineage, base, PEFT's task type) -> the snippet of the model card that loads the adapter."""


@dataclass(frozen=True)
class StructureKind:
    """One structure. Everything beyond the first three has a default; a structure without a ``rule`` is not merged.

    Args:
        name: ``structure.kind`` in settings, step keys and lineages.
        settings: "module:Class" of its settings, a subclass of ``structures.settings.Structure``.
        module: the module with its ``attach``, ``load``, ``place`` and ``modules`` (``loaded_adapter.Backend``).
        peft_type: in ``adapter_config.json``, where PEFT or the structure's own module writes one.
        recognised: whether an ``adapter_config.json`` is of it, where the PEFT type does not tell.
        adapter: False for fine-tunings of the weights themselves.
        stands_on_others: may be trained on frozen adapters, and be a member of a stack.
        optimisation: where the defaults of ``Optimisation`` differ.
        weight_decay: False where decay would move what must stay.
        trained_on: projections of ``adapters.sites.Sites`` under ``modules: paper``; empty: no projections.
        scales_inputs: of a down-projection it changes what is read, not what is given.
        rule: name of the merging rule that fits how it meets the frozen weights (2402.18913, section 3.2).
        selection: modules that a merge with two references touches by default.
        pattern: names of its tensors, with groups ``module`` and ``role``; without PEFT's prefix.
        live: the same in a live model's state dict, where that differs.
        roles: the tensors of one module.
        tensors: what messages call them.
        layout: sorts the tensors of a directory; default: one site a module, every role there, the rest heads.
        start: ``random``: combined only from one start, which lineages tell or the ``random`` tensors; ``told``: only
            where lineages tell; ``fixed``: all begin alike.
        random: tensors that are drawn at the start, the first that a module has; ``random_name`` in messages.
        shape: field of a lineage's structure -> field of ``adapter_config.json``.
        low_rank: ΔW = s·B·A, so that merges in space delta and truncation are defined.
        task_vectors: what training added to the weights is known from the file (TIES, DARE).
        whole: one tensor for all layers; merged in spans, no layers apart.
        head_apart: its head lies in files of its own.
        card: the snippet of its model card; default: PEFT's.
    """

    name: str
    settings: str
    module: str
    peft_type: str | None = None
    recognised: Callable[[Mapping[str, Json]], bool] | None = None
    adapter: bool = True
    stands_on_others: bool = False
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
        found: type[Structure] = named_in_code(self.settings)
        return found

    def holds(self, config: Mapping[str, Json]) -> bool:
        """Whether an ``adapter_config.json`` is of this structure."""
        if self.recognised is not None:
            return self.recognised(config)
        return self.peft_type is not None and config.get("peft_type") == self.peft_type

    @property
    def in_modules(self) -> bool:
        """Whether PEFT's ``target_modules`` say which modules it is in."""
        return self.peft_type is not None and not self.whole

    def split(self, key: str, *, live: bool = False) -> tuple[str | None, str]:
        """Tensor name -> (module, role); module ``None`` for other tensors. ``live``: also as in a live model."""
        pattern = self.live if live and self.live else self.pattern
        match = pattern.fullmatch(key) if pattern else None
        return (match["module"].removeprefix(PREFIX), match["role"]) if match else (None, key)
