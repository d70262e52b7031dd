"""The report of a merge, module by module."""

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
    """The change of one module. Norms are Frobenius: over all its tensors in factor space, of ΔW in delta space.

    Args:
        module: its name in the base model.
        merged: whether it was selected; otherwise it was copied.
        changed: whether any stored bit differs from the task adapter's.
        task: norm of the task adapter.
        divergence: norm of D (of D − 1 for the multiplicative rule).
        change: norm of merged − task, before rounding.
        guarded: entries of the source reference too close to zero to divide by; they keep the task's value.
        truncation: ‖ΔW − ΔW_R‖ / ‖ΔW‖ if ``rank`` truncated it.
        condition: for a prefix, σ_max/σ_min of the inverted part of the source reference.
        deficient: for a prefix, the number of directions of virtual tokens that the source reference lacks; they
            keep the task's values.
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
    """The report of a merge; ``str()`` is a compact table, ``to_json()`` is complete. With weights by layer
    (``layers``), ``weight`` is their mean."""

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
        """The number of selected modules."""
        return sum(item.merged for item in self.modules)

    @property
    def changed(self) -> int:
        """The number of modules whose stored tensors differ from the task adapter's."""
        return sum(item.changed for item in self.modules)

    @property
    def copied(self) -> int:
        """The number of modules copied from the task adapter."""
        return len(self.modules) - self.matched

    @property
    def guarded(self) -> int:
        """The number of entries guarded against division by nearly zero."""
        return sum(item.guarded for item in self.modules)

    @property
    def warnings(self) -> list[str]:
        """Problems of the result that are not errors."""
        lacking = [item for item in self.modules if item.deficient]
        if not lacking:
            return []
        most = max(lacking, key=lambda item: item.deficient)
        return [
            f"the source reference is rank-deficient in {len(lacking)} spans (at most {most.deficient} directions, in "
            f"{most.module}): these directions keep the task's values"
        ]

    def to_json(self) -> str:
        """The report as JSON with counts and relative changes, one line per module."""
        counts = {name: getattr(self, name) for name in ("matched", "changed", "copied", "guarded")}
        contents = {**vars(self), "modules": [], "counts": counts}
        for name in ("layers", "settings"):
            if not contents[name]:
                del contents[name]
        # json indents in Python and does the rest in C: one line per module is ten times faster than indented ones.
        modules = (
            json.dumps(
                {**vars(item), "relative": item.relative if item.task and math.isfinite(item.relative) else None},
                ensure_ascii=False,
                allow_nan=False,
            )
            for item in self.modules
        )
        text = json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.replace('"modules": []', '"modules": [\n    ' + ",\n    ".join(modules) + "\n  ]", 1)

    def lines(self) -> list[str]:
        """The compact table, one line per kind of module."""
        weight = "none (a divergence)" if self.weight is None else f"{self.weight:g}"
        weight += f" (mean of {', '.join(f'{number:g}' for number in self.layers)})" if self.layers else ""
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
    head = f"{name:<40} {len(items):>4} {_total_norm(item.task for item in items):>10.4g}"
    if not items[0].merged:
        return f"{head} {'copied':>10}"
    task, change = _total_norm(item.task for item in items), _total_norm(item.change for item in items)
    relative = f"{change / task:>9.2%}" if task else f"{'-':>9}"
    cut = max((item.truncation for item in items if item.truncation is not None), default=None)
    line = f"{head} {_total_norm(item.divergence for item in items):>10.4g} {change:>10.4g} {relative}"
    condition = max((item.condition for item in items if item.condition is not None), default=None)
    line += f"  condition ≤ {condition:.3g}" if condition is not None else ""
    return line + (f"  ≤ {cut:.2%}" if cut is not None else "")


def _total_norm(norms: Iterable[float]) -> float:
    return float(sum(norm * norm for norm in norms) ** 0.5)
