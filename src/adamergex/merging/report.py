"""What a merge did, module by module."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adamergex.errors import printable
from adamergex.merging.rules.rule import Setting

FILE_NAME = "merge_report.json"


@dataclass(frozen=True)
class ModuleChange:
    """One module. Norms are Frobenius: in factor space over its tensors together, in delta space of ΔW.

    Args:
        module: its name in the base model.
        merged: whether the selection holds it; else it was copied.
        changed: whether any stored bit differs from the task adapter's.
        task: norm of the task adapter.
        divergence: norm of D (of D − 1 for the multiplicative rule).
        change: norm of merged − task, before rounding.
        guarded: entries of the source reference too near zero to divide by; there the task's entry stayed.
        truncation: ‖ΔW − ΔW_R‖ / ‖ΔW‖ where ``rank`` cut something off.
        condition: of a prefix, σ_max/σ_min of the part of the source reference that was inverted.
        deficient: of a prefix, directions of virtual tokens that the source reference lacks; there the task stayed.
    """

    module: str
    merged: bool
    changed: bool
    task: float
    divergence: float = 0.0
    change: float = 0.0
    guarded: int = 0
    truncation: float | None = None
    condition: float | None = None
    deficient: int = 0

    @property
    def relative(self) -> float:
        """change / task."""
        return self.change / self.task if self.task else float("inf") if self.change else 0.0


@dataclass(frozen=True)
class MergeReport:
    """What a merge did; ``str()`` is a compact table, ``to_json()`` everything. Of weights by layer (``layers``),
    ``weight`` is the mean."""

    kind: str
    rule: str
    space: str
    selection: str
    weight: float | None
    rank: int | None
    modules: tuple[ModuleChange, ...]
    heads: tuple[str, ...] = ()
    ignored_heads: tuple[str, ...] = ()
    span: str | None = None
    form: str | None = None
    layers: tuple[float, ...] | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def matched(self) -> int:
        """Modules that the selection holds."""
        return sum(item.merged for item in self.modules)

    @property
    def changed(self) -> int:
        """Modules whose stored tensors differ from the task adapter's."""
        return sum(item.changed for item in self.modules)

    @property
    def copied(self) -> int:
        """Modules taken over from the task adapter."""
        return len(self.modules) - self.matched

    @property
    def guarded(self) -> int:
        """Entries guarded against division by nearly zero."""
        return sum(item.guarded for item in self.modules)

    @property
    def warnings(self) -> list[str]:
        """What is no error but should be known before the result is used."""
        lacking = [item for item in self.modules if item.deficient]
        if not lacking:
            return []
        most = max(lacking, key=lambda item: item.deficient)
        return [
            f"the source reference is rank-deficient in {len(lacking)} spans (at most {most.deficient} directions, in "
            f"{most.module}): what it lacks stays as it is in the task"
        ]

    def to_json(self) -> str:
        """All of it, with the counts and relative changes; one module a line."""
        counts = {name: getattr(self, name) for name in ("matched", "changed", "copied", "guarded")}
        found = {**vars(self), "modules": [], "counts": counts}
        for name in ("layers", "settings"):
            if not found[name]:
                del found[name]
        # json indents in Python and does the rest in C: a line per module is ten times faster than an indented one.
        modules = (
            json.dumps(
                {**vars(item), "relative": item.relative if item.task and math.isfinite(item.relative) else None},
                ensure_ascii=False,
                allow_nan=False,
            )
            for item in self.modules
        )
        text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.replace('"modules": []', '"modules": [\n    ' + ",\n    ".join(modules) + "\n  ]", 1)

    def lines(self) -> list[str]:
        """The compact table: one line for each kind of module."""
        weight = "none (a divergence)" if self.weight is None else f"{self.weight:g}"
        weight += f" (mean of {', '.join(f'{one:g}' for one in self.layers)})" if self.layers else ""
        rank = f", truncated to rank {self.rank}" if self.rank else ""
        form = f", span {self.span}, form {self.form}" if self.span else ""
        form += "".join(f", {name} {value}" for name, value in self.settings.items())
        lines = [
            f"{self.kind}: rule {self.rule}, space {self.space}, modules {self.selection}, weight {weight}{rank}{form}",
            f"{self.matched} modules merged ({self.changed} changed), {self.copied} copied"
            + (f", {self.guarded} entries guarded" if self.guarded else "")
            + (f", {len(self.heads)} head tensors from the task" if self.heads else "")
            + (f", {len(self.ignored_heads)} head tensors of references ignored" if self.ignored_heads else ""),
            f"{'module':<40} {'n':>4} {'‖task‖':>10} {'‖D‖':>10} {'‖change‖':>10} {'relative':>9}  cut off",
        ]
        lines += [_line(name, items) for name, items in _grouped(self.modules)]
        return lines + [f"warning: {text}" for text in self.warnings]

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in self.lines())


def _grouped(items: Iterable[ModuleChange]) -> list[tuple[str, list[ModuleChange]]]:
    groups: dict[str, list[ModuleChange]] = {}
    for item in items:
        groups.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", item.module), []).append(item)
    return sorted(groups.items())


def _line(name: str, items: list[ModuleChange]) -> str:
    if len(name) > 40:
        name = "…" + name[-39:]
    head = f"{name:<40} {len(items):>4} {_together(item.task for item in items):>10.4g}"
    if not items[0].merged:
        return f"{head} {'copied':>10}"
    task, change = _together(item.task for item in items), _together(item.change for item in items)
    relative = f"{change / task:>9.2%}" if task else f"{'-':>9}"
    cut = max((item.truncation for item in items if item.truncation is not None), default=None)
    line = f"{head} {_together(item.divergence for item in items):>10.4g} {change:>10.4g} {relative}"
    condition = max((item.condition for item in items if item.condition is not None), default=None)
    line += f"  condition ≤ {condition:.3g}" if condition is not None else ""
    return line + (f"  ≤ {cut:.2%}" if cut is not None else "")


def _together(norms: Iterable[float]) -> float:
    return float(sum(norm * norm for norm in norms) ** 0.5)
