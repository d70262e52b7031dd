"""Imports run one way, the light rooms stay light, and no module grows beyond its room."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "adamergex"

# Lowest first. A module may import from its own layer's package and from lower layers only.
LAYERS = [
    ["errors", "base_names", "statistics"],
    ["files", "metrics"],
    ["data", "structures"],
    ["jobs", "merging"],
    ["backbones", "report"],
    ["adapters", "graph"],
    ["tasks"],
    ["config", "evaluation", "training"],
    ["methods", "search"],
    ["tables"],
    ["cli", "__init__", "__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms that a module imports, function bodies included (a lazy import is still a dependency)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("adamergex"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("adamergex.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    own = room(path)
    for other in imports(path):
        assert other in RANK, f"{path} imports the unknown room {other}"
        if other != own and (own, other) != ("__main__", "cli"):
            assert RANK[other] < RANK[own], f"{own} imports {other}, which is not below it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_only_one_module_imports_peft() -> None:
    pattern = re.compile(r"^\s*(?:from|import) peft\b", re.MULTILINE)
    assert [path.name for path in modules() if pattern.search(path.read_text(encoding="utf-8"))] == ["peft_backed.py"]


HEAVY = ("torch", "transformers", "peft", "pydantic", "datasets", "jinja2")


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import adamergex", ()),
        ("import adamergex.cli.main; adamergex.cli.main.parser()", ()),
        ("import adamergex.graph.steps", ()),
        ("import adamergex.merging, adamergex.merging.inspection", ()),
        ("from adamergex import structures; list(structures.every())", ()),
        ("import adamergex.statistics, adamergex.statistics.table", ()),
        ("import adamergex.config.transfer, adamergex.methods", ("pydantic",)),
        ("import adamergex.structures.settings as settings; settings.every_setting()", ("pydantic",)),
    ],
)
def test_light_rooms_import_nothing_heavy(code: str, allowed: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(result.stdout)) <= set(allowed)
