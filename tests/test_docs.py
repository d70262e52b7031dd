"""Documentation cannot rot: pages made from the code are current, commands parse, settings validate, names exist."""

from __future__ import annotations

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

import adamergex
from adamergex.cli.main import parser
from adamergex.config.study import parse_study
from adamergex.config.train import parse_training
from adamergex.config.transfer import MethodName, parse
from commands import script

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").rglob("*.md")),
]


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_generated_pages_are_current() -> None:
    result = script(ROOT / "scripts" / "reference.py", "--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_public_name_and_verb_has_its_page() -> None:
    for name in (*adamergex.__all__, "errors"):
        page = (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}\n" if name != "errors" else "# Errors\n") and len(page) < 6_000
        assert all(len(heading) < 30 for heading in re.findall(r"^#+ .*", page, re.MULTILINE))
        assert f"](reference/{name}.md)" in (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for verb in next(action for action in parser()._actions if action.dest == "verb").choices or ():
        assert re.search(rf"^## {verb}$", page, re.MULTILINE)
    assert re.search(r"^\| `--weight λ` \| required \|", page, re.MULTILINE)
    assert re.search(r"^\| `--device b200.*` \| `h200` \| .*estimate", page, re.MULTILINE)


def test_commands_parse() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(r"^    (adamergex .+)$", text, re.MULTILINE):
            if not command.startswith("adamergex:"):  # an error that the page shows
                parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_validate(page: Path) -> None:
    for block in blocks(page, "yaml"):
        settings = yaml.safe_load(block)
        if settings.keys() == {"methods"}:  # a part of a table's settings
            assert TypeAdapter(list[MethodName]).validate_python(settings["methods"])
        elif settings.keys() == {"reference"}:
            task = {"train": "{language}.jsonl", "validation": "{language}.jsonl", "test": "{language}.jsonl"}
            assert parse({"base": "nano", "targets": ["sw"], "proxy": "fr", "task": task, **settings}).targets
        elif "kind" in settings:
            assert parse_training(settings).output
        else:
            assert parse_study(settings).tables if "tasks" in settings else parse(settings).targets


def test_python_imports_exist() -> None:
    for block in (block for page in PAGES for block in blocks(page, "python")):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = import_module(node.module)
                for alias in node.names:  # a name in the module, or a module of the package
                    assert hasattr(module, alias.name) or import_module(f"{node.module}.{alias.name}")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_pages_name_exist() -> None:
    """Studies, scripts, examples and pages, by their paths from the root; what a run writes is not among them."""
    named = re.compile(
        r"(?<![\w./-])((?:studies|scripts|examples|docs|benchmarks)/[\w./-]+\.(?:yaml|py|md|csv|svg|sh))\b"
    )
    for page in (*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "studies").glob("*.yaml"))):
        for path in named.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / path).is_file(), f"{page.name} names {path}"


def test_no_generated_file_is_large() -> None:
    large = [path for path in (ROOT / "docs").rglob("*") if path.is_file() and path.stat().st_size > 300_000]
    assert large == [], "reports are made at release or by `adamergex report`, not kept"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
