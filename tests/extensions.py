"""Packages that another project installs: their code is the documentation's own."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"


def example(name: str) -> str:
    """The module of this name as the page of the architecture has it."""
    (code,) = re.findall(rf'```python\n("""{name}\.py: .*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return code


def merging_rule() -> str:
    """The page's rule as a module that offers it."""
    section = PAGE.read_text(encoding="utf-8").partition("### A merging rule")[2]
    code, *_ = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return f"{code.partition('register(')[0]}TURNED = rule(turned)\n"


def entry_point(group: str) -> str:
    """The one line that the page shows below an entry point group: ``name = "value"``."""
    (line,) = re.findall(rf'\[project\.entry-points\."{group}"\]\n(.*)\n', PAGE.read_text(encoding="utf-8"))
    return line


def installed(folder: Path, name: str, code: str, group: str, point: str) -> Path:
    """What an installed package leaves in site-packages: a module, and its entry point, as in pyproject.toml."""
    (folder / f"{name}-1.0.dist-info").mkdir(parents=True)
    points = f"[{group}]\n{point.replace(chr(34), '')}\n"
    (folder / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(points, encoding="utf-8")
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder
