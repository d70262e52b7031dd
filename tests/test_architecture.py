"""Imports run one way, the light rooms stay light, and no module grows beyond its room."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import adamergex

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


def test_imports_run_one_way() -> None:
    upward = []
    for path in modules():
        own = room(path)
        for other in imports(path):
            assert other in RANK, f"{path} imports the unknown room {other}"
            if other != own and (own, other) != ("__main__", "cli") and RANK[other] >= RANK[own]:
                upward.append(f"{path.relative_to(SOURCE)} imports {other}, which is not below {own}")
    assert not upward, "\n".join(upward)


def test_the_house_is_small() -> None:
    lines = {path.relative_to(SOURCE): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {path: count for path, count in lines.items() if count > 350} == {}
    rooms = {room(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms == RANK.keys() - {"__init__", "__main__"}
    assert len(rooms) <= 22 and len(LAYERS) <= 11


UNTYPED = re.compile(r"\b(?:dict|Mapping)\[str, Any\]")
CROSSING, ANY_SHARE = 40, 0.008
"""At most so many annotations and such a share of all lines; both may only fall."""


def public_annotations(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """The annotations of a module's public functions, and of the fields and methods of its public classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            yield from (argument.annotation for argument in named if argument and argument.annotation)
            yield from [node.returns] if node.returns else []
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_annotations(node.body)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_":
            yield node.annotation


def test_values_that_cross_a_modules_border_have_types() -> None:
    crossing, untyped, total = [], 0, 0
    for path in modules():
        text = path.read_text(encoding="utf-8")
        total += len(text.splitlines())
        untyped += sum("Any" in re.findall(r"\w+", line.partition("#")[0]) for line in text.splitlines())
        found = public_annotations(ast.parse(text).body)
        lines = {item.lineno for item in found if UNTYPED.search(ast.unparse(item))}
        crossing += [f"{path.relative_to(SOURCE)}:{line}" for line in sorted(lines)]
    assert len(crossing) <= CROSSING, "\n".join(crossing)
    assert untyped / total <= ANY_SHARE, f"Any stands on {untyped} of {total} lines"


def test_the_page_shows_the_rooms_and_files_that_are_there() -> None:
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = re.findall(r"^    src/adamergex/\n((?:      .*\n|\n)+)", page, re.MULTILINE)
    assert len(tree) == 1
    shown = re.findall(r"^      (\w+)(?:/|\.py) ", tree[0], re.MULTILINE)
    assert sorted(shown) == sorted(RANK.keys() - {"__init__", "__main__"})
    there = {path.name for path in modules()}
    assert not [name for name in re.findall(r"\b(\w+\.py)\b", tree[0]) if name not in there]


def test_the_public_names_are_listed_and_typed() -> None:
    assert set(adamergex.__all__) <= set(dir(adamergex))
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name: (node.module, alias.name)
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == adamergex._HOMES and set(typed) == set(adamergex.__all__)
    for name in adamergex.__all__:  # what editors see is what is there
        module, attribute = typed[name]
        assert getattr(adamergex, name) is getattr(import_module(str(module)), attribute)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        getattr(adamergex, "absent")  # noqa: B009


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
        ("import adamergex.tasks.kinds, adamergex.tasks.rows", ("pydantic",)),
    ],
)
def test_light_rooms_import_nothing_heavy(code: str, allowed: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(result.stdout)) <= set(allowed)
