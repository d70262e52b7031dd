"""The backbones that ship with the package: their names and folders."""

from __future__ import annotations

from pathlib import Path

SHIPPED = ("nano", "nano-causal")


def folder(name: str) -> Path:
    """Where a shipped backbone lies."""
    return Path(__file__).parent / name
