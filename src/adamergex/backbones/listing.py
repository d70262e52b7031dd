"""The named backbones, and whether they are installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from adamergex.backbones.packaged import at_hand
from adamergex.base_names import PACKAGED, SHIPPED, folder


@dataclass(frozen=True)
class NamedBackbone:
    """A named backbone. ``next``: how to install it, if it is not at hand."""

    name: str
    family: str
    parameters: int
    licence: str
    languages: str
    source: str
    at_hand: bool
    next: str | None


_SHIPPED = {"nano": ("encoder", 8_981_760), "nano-causal": ("decoder", 8_738_496)}


def named_backbones() -> list[NamedBackbone]:
    """All named backbones: those shipped with adamergex, then those in other packages."""
    ours = [
        NamedBackbone(
            name,
            _SHIPPED[name][0],
            _SHIPPED[name][1],
            "CC-BY-SA-4.0",
            "31 (its README.md names them)",
            "adamergex",
            (folder(name) / "config.json").is_file(),
            None,
        )
        for name in SHIPPED
    ]
    theirs = [
        NamedBackbone(
            item.name,
            item.family,
            item.parameters,
            item.licence,
            item.languages,
            f"package {item.package}, {item.hub}",
            at_hand(item.name),
            None if at_hand(item.name) else f"{item.install}, or name {item.hub} where a hub is reachable",
        )
        for item in PACKAGED.values()
    ]
    return [*ours, *theirs]


def as_records(items: Sequence[NamedBackbone]) -> list[dict[str, object]]:
    """Backbones as plain values."""
    return [asdict(item) for item in items]


def as_table(items: Sequence[NamedBackbone]) -> str:
    """One line per backbone, followed by how to install those that are not at hand."""
    head = ("name", "family", "size", "licence", "at hand", "languages")
    rows = [
        (
            item.name,
            item.family,
            f"{item.parameters / 1e6:.0f} M",
            item.licence,
            "yes" if item.at_hand else "no",
            item.languages,
        )
        for item in items
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    missing = [f"{item.name}: {item.next}" for item in items if not item.at_hand and item.next]
    return "\n".join([line.rstrip() for line in lines] + ([""] + missing if missing else []))
