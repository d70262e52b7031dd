"""The demo: the shipped corpus and backbone through the same path as any user's settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adamergex.config.transfer import load
from adamergex.tables.transfer import summary, transfer

CORPUS = Path(__file__).parents[1] / "demo_corpus"


def demo(
    output: str | Path, *, base: str = "nano", say: Callable[[str], None] = print, command: str | None = None
) -> str:
    """Train, tune λ on French, merge for three targets and evaluate; returns the table as text."""
    config = load(CORPUS / f"{base}.yaml").model_copy(update={"output": str(output)})
    return summary(transfer(config, say, command=command), output)
