"""Pictures of adapters: how much a merge changed each module, and the adapters behind a result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from adamergex.report.numbers import format_interval, number
from adamergex.report.results import CellResult, Merge, ModuleChange, Results, TrainedAdapter
from adamergex.report.summary import subject
from adamergex.report.svg import element, label, line, picture, shorten, tooltip

LEVELS = 5


class LayerModule(NamedTuple):
    """A module's name inside its layer, and the number of the layer."""

    kind: str
    layer: int | None


def layer_module(module: str) -> LayerModule:
    """ "…encoder.layer.3.attention.self.query" -> ("attention.self.query", 3); without a number, the name itself."""
    match = re.search(r"(?:^|\.)(\d+)\.(.+)$", module)
    return LayerModule(match[2], int(match[1])) if match else LayerModule(module, None)


def relative_change(change: ModuleChange) -> float | None:
    """The change in percent of the task adapter's norm; None for a zero task adapter."""
    return 100 * change.change_norm / change.task_norm if change.task_norm else None


def picked_merge(results: Results) -> Merge | None:
    """The merge to draw: of the headline's method, else of any; first target language, first seed."""
    method = subject(results)
    order = {language: index for index, language in enumerate(results.targets)}
    merges = [merge for merge in results.merges if merge.modules]
    return min(
        merges,
        key=lambda m: (method is None or m.method != method.name, order.get(m.language, len(order)), m.seed),
        default=None,
    )


def heat_map(key: str, merge: Merge, title: str) -> str:
    """Kinds of modules × layers; each cell is the change in percent of the task adapter's norm."""
    cells = {layer_module(change.module): change for change in merge.modules}
    kinds = list(dict.fromkeys(item.kind for item in cells))
    layers = sorted({item.layer for item in cells}, key=lambda layer: (layer is None, layer))
    short = _short_names(kinds)
    left = max(len(words) for words in short.values()) * 7.4 + 12
    top = max((value for change in merge.modules if (value := relative_change(change)) is not None), default=0.0)
    parts = []
    for column, layer in enumerate(layers):
        name = "–" if layer is None else str(layer)
        parts.append(label(left + column * 42 + 20, 14, name, class_="tick", text_anchor="middle"))
    parts.append(label(left - 8, 14, "layer", class_="tick", text_anchor="end"))
    for row, kind in enumerate(kinds):
        parts.append(label(left - 8, 22 + row * 28 + 18, short[kind], class_="name", text_anchor="end"))
        for column, layer in enumerate(layers):
            if change := cells.get(LayerModule(kind, layer)):
                parts.append(_heat(left + column * 42, 22 + row * 28, change, top))
    size = (max(left + 42 * len(layers), 240), 26 + 28 * len(kinds))
    return picture(key, size, title, _heat_words(merge, top), "".join(parts))


def _heat(x: float, y: float, change: ModuleChange, top: float) -> str:
    value = relative_change(change)
    words = "n/a" if value is None else number(value, 0 if value >= 10 or not value else 1)
    norms = f"task {change.task_norm:.3g}, divergence {change.divergence_norm:.3g}, change {change.change_norm:.3g}"
    level = 0 if not value or not top else min(LEVELS, 1 + int(LEVELS * value / top * 0.9999))
    box = element("rect", x=x, y=y, width=40, height=26, rx=2, class_=f"heat h{level}")
    text = label(x + 20, y + 17, words, class_=f"heat-text t{level}", text_anchor="middle")
    return element("g", tooltip(f"{change.module}: {words} %; norms: {norms}") + box + text)


def _heat_words(merge: Merge, top: float) -> str:
    values = [(value, change.module) for change in merge.modules if (value := relative_change(change)) is not None]
    if not values:
        return "No module of the task adapter has a norm."
    touched = sum(value > 0 for value, _ in values)
    return f"{touched} of {len(merge.modules)} modules changed; the most, {number(top)} %, in {max(values)[1]}."


def _short_names(kinds: Sequence[str]) -> dict[str, str]:
    """The shortest trailing parts of the names that are unique."""
    for parts in range(1, 8):
        short = {kind: ".".join(kind.split(".")[-parts:]) for kind in kinds}
        if len(set(short.values())) == len(kinds):
            return short
    return {kind: kind for kind in kinds}


class Family(NamedTuple):
    """A merged adapter's result and its three parent adapters."""

    cell: CellResult
    task: TrainedAdapter
    target: TrainedAdapter
    source: TrainedAdapter


def picked_family(results: Results) -> Family | None:
    """The adapters behind the headline method's first target language and seed, or None if they are not listed."""
    method, merge = subject(results), picked_merge(results)
    if method is None or not method.name.startswith("adamergex"):
        return None
    wanted = (merge.language, merge.seed) if merge and merge.method == method.name else None
    cells = [cell for cell in results.cells if cell.method == method.name and cell.language in results.targets]
    cells = [cell for cell in cells if wanted in (None, (cell.language, cell.seed))]
    families = (_family(results, cell) for cell in cells)
    return next((family for family in families if family), None)


def _family(results: Results, cell: CellResult) -> Family | None:
    target = _find(results, cell.seed, cell.language, task=False)
    task, source = (_find(results, cell.seed, results.source, task=task) for task in (True, False))
    return Family(cell, task, target, source) if task and target and source else None


def _find(results: Results, seed: int, language: str, *, task: bool) -> TrainedAdapter | None:
    """The task or the reference adapter of a language: the one that names the seed, else the only one."""
    kind = "task" if task else "reference"
    adapters = [item for item in results.adapters if item.language == language and item.name.startswith(kind)]
    named = [item for item in adapters if re.search(rf"\bseed {seed}\b", item.name)] or adapters
    return named[0] if len(named) == 1 else None


def formula(structure: str) -> str:
    """The merging rule in words: additive for LoRA, multiplicative for (IA)³, else empty."""
    plain = structure.lower().replace("³", "3").replace("(", "").replace(")", "")
    if "ia3" in plain:
        return "task ⊙ (λ · (target ⊘ source − 1) + 1)"
    return "task + λ · (target − source)" if "lora" in plain else ""


def lineage(key: str, family: Family, method: str, structure: str) -> str:
    """Three adapters, their merge and its result, from top to bottom, with the paper's letters."""
    cell = family.cell
    boxes = [("A[T,s]", family.task), ("A[R,g]", family.target), ("A[R,s]", family.source)]
    weight = "" if cell.weight is None else f" · λ = {cell.weight:g}"
    parts = []
    for index, (name, adapter) in enumerate(boxes):
        start, end = 64 + 136 * index, 160 + 40 * index
        parts.append(_adapter_box(136 * index, name, adapter))
        parts.append(element("path", d=f"M{start} 74C{start} 108 {end} 92 {end} 121", class_="edge"))
        parts.append(_tip(end, 128))
    parts += [line(200, 172, 200, 193, "edge"), _tip(200, 200)]
    parts.append(_box(60, 128, 280, ["merge" + weight, formula(structure)], "merge"))
    result = f"{number(cell.score)} % {format_interval(cell.interval)}"
    parts.append(_box(60, 200, 280, [shorten(f"{method} · {cell.language}", 34), result], "ours"))
    words = (
        f"{family.task.name}, {family.target.name} and {family.source.name} are merged{weight} into the adapter that "
        f"scores {result} in {cell.language}, seed {cell.seed}."
    )
    return picture(key, (400, 246), f"Which adapters made {method} in {cell.language}", words, "".join(parts))


def _adapter_box(x: float, name: str, adapter: TrainedAdapter) -> str:
    loss = "" if adapter.loss is None else f"loss {adapter.loss:.3g}"
    called = re.sub(r"\W*\bseed \d+\b", "", adapter.name)
    words = [name, shorten(called, 19), shorten(adapter.task, 19), loss]
    return element("g", tooltip(f"{adapter.name}: {adapter.task}") + _box(x, 0, 128, words, "adapter"))


def _box(x: float, y: float, width: float, words: Sequence[str], kind: str) -> str:
    lines = [word for word in words if word]
    height = 74 if kind == "adapter" else 44
    first = y + (height - 16 * len(lines)) / 2 + 12
    drawn = element("rect", x=x + 0.5, y=y + 0.5, width=width - 1, height=height - 1, rx=5, class_=f"node {kind}")
    return drawn + "".join(
        label(x + width / 2, first + 16 * i, word, class_="strong" if not i else "quiet", text_anchor="middle")
        for i, word in enumerate(lines)
    )


def _tip(x: float, y: float) -> str:
    return element("path", d=f"M{x - 4} {y - 8}L{x} {y}L{x + 4} {y - 8}Z", class_="tip")
