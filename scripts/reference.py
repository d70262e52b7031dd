"""Write docs/reference.md, docs/reference/, docs/cli.md and docs/settings.md from docstrings, parser and settings.

python scripts/reference.py [--check]
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import command_page
import name_pages
from pydantic_core import PydanticUndefined

import adamergex
from adamergex.cli.main import parser
from adamergex.config import methods, references, task, train, transfer
from adamergex.config import study as studies
from adamergex.jobs import settings
from adamergex.structures import settings as structure_settings

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = DOCS / "reference"
MADE = "Made by `python scripts/reference.py`."
PUBLIC = {
    "adamergex.merging": ["merge", "divergence", "MergeReport"],
    "adamergex.merging.rules.registry": ["rule_for", "rule", "register"],
    "adamergex.merging.rules.additive": ["divergence", "shift"],
    "adamergex.merging.rules.multiplicative": ["guarded", "divergence", "shift"],
    "adamergex.merging.rules.average": ["divergence", "shift"],
    "adamergex.merging.inspection": ["inspect"],
    "adamergex.files.lineage": ["Lineage", "read"],
    "adamergex.structures": ["register", "find"],
    "adamergex.structures.kind": ["StructureKind"],
    "adamergex.structures.card": ["model_card"],
    "adamergex.files.directory": ["AdapterDirectory"],
    "adamergex.tables.transfer": ["run_transfer", "transfer", "summary"],
    "adamergex.methods": ["vanilla", "english_tuning", "average", "adamergex", "adamergex_delta", "adamergex_cross"],
    "adamergex.training.train": ["train"],
    "adamergex.evaluation": ["evaluate", "paired_difference"],
    "adamergex.search.tuning": ["tune"],
    "adamergex.search.entropy": ["minimise"],
    "adamergex.methods.given": ["read_given", "copy_given"],
    "adamergex.search.weight_choice": ["choose"],
    "adamergex.training.probe": ["logistic_regression"],
    "adamergex.backbones.loading": ["load", "family"],
    "adamergex.backbones.base_files": ["resolve", "base_sha256"],
    "adamergex.backbones.packaged": ["folder", "cache_folder"],
    "adamergex.backbones.trimming": ["trim"],
    "adamergex.backbones.rebasing": ["rebase"],
    "adamergex.backbones.head_file": ["compose"],
    "adamergex.backbones.embedding_rows": ["body_sha256"],
    "adamergex.adapters.peft_backed": ["attach", "save", "load"],
    "adamergex.data.reader": ["read", "content_hash"],
    "adamergex.data.file_formats": ["FileFormat"],
    "adamergex.graph.steps": ["Step", "Store"],
    "adamergex.graph.local": ["run"],
    "adamergex.graph.ray": ["run"],
    "adamergex.graph.engines": ["EngineKind", "Work", "engine_named"],
    "adamergex.graph.walk": ["walk"],
    "adamergex.graph.inventory": ["record", "entries", "garbage", "collect_garbage", "forget_study"],
    "adamergex.config.study": ["load_study", "parse_study", "inherited"],
    "adamergex.tables.study": ["run_study", "dry_run", "Engine"],
    "adamergex.tables.estimate": ["estimate", "backbone_parameters"],
    "adamergex.tables.devices": ["Device"],
}
ERRORS = [
    "AdamergexError",
    "AdapterFileError",
    "IncompatibleAdaptersError",
    "NothingMergedError",
    "ConfigError",
    "DataError",
    "ModelError",
    "TrainingError",
]
FORMS = {form.__name__: form for form in task.custom_forms().values()}
SETTINGS = [
    (transfer, ["TransferConfig"]),
    (
        references,
        ["TextReference", "TaskReference", "ContrastReference", "AlignmentReference", "AdapterReference"],
    ),
    (
        methods,
        [
            "MergeConfig",
            "SwapConfig",
            "CombineConfig",
            "MadXConfig",
            "LanguageAdapters",
            "TaskAdapters",
            "FullConfig",
            "FullLanguage",
            "LfSftConfig",
            "SparseLanguage",
            "SparseTask",
            "PapersConfig",
        ],
    ),
    (task, ["BuiltinTask", "TaskSplit", *FORMS]),
    (train, ["LanguageTraining", "TaskTraining", "MaskedLmHeadTraining", "Recovery"]),
    (studies, ["StudyConfig", "Assumed"]),
    (structure_settings, ["Structure", "Lora", "Ia3", "Bottleneck", "Prefix", "Full", "Sparse"]),
    (settings, ["Rows", "Optimisation"]),
]


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    rooms: dict[str, dict[str, list[str]]] = {}
    for module, names in PUBLIC.items():
        rooms.setdefault(module.split(".")[1], {})[module] = names
    verbs = {name for name, _, _ in command_page.verbs(parser())}
    found = {
        DOCS / "settings.md": settings_page(),
        DOCS / "cli.md": command_page.command_page(MADE),
        DOCS / "reference.md": name_pages.index(MADE, sorted(rooms)),
        REFERENCE / "errors.md": name_pages.errors_page(ERRORS),
    }
    found |= {REFERENCE / f"{name}.md": name_pages.name_page(name, verbs) for name in adamergex.__all__}
    inside = REFERENCE / "inside"
    return found | {inside / f"{room}.md": name_pages.room_page(room, modules) for room, modules in rooms.items()}


def settings_page() -> str:
    parts = [
        "# Settings\n\nEvery setting of a `transfer` file, with its default. Made by `python scripts/reference.py`.\n"
        "The top of the file is `TransferConfig`; the other tables are its parts."
    ]
    for module, names in SETTINGS:
        for name in names:
            model = FORMS.get(name) or getattr(module, name)
            rows = [
                f"| `{field}` | {kind(info.annotation)} | {default(info)} | {info.description or ''} |"
                for field, info in model.model_fields.items()
                if field != "folder"
            ]
            parts.append(
                f"## {name}\n\n{inspect.getdoc(model)}\n\n| setting | type | default | |\n|---|---|---|---|\n"
                + "\n".join(rows)
            )
    return "\n\n".join(parts) + "\n"


def kind(annotation: Any) -> str:
    """A type as a reader of YAML thinks of it: constraints left out, unions with "or"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(parts[0])
    if origin in (Union, UnionType):
        return " or ".join("nothing" if part is type(None) else kind(part) for part in parts)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return f"list of {kind(parts[0])}"
    if origin is dict:
        return "mapping"
    if annotation is task.CustomTask:
        return " or ".join(f"[{name}](#{name.lower()})" for name in FORMS)
    if isinstance(annotation, type) and issubclass(annotation, settings.Settings):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {"str": "text", "int": "number", "float": "number"}.get(annotation.__name__, annotation.__name__)


def default(info: Any) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, settings.Settings):
        return "its defaults"
    return f"`{value!r}`".replace("|", "\\|")


def main() -> int:
    wanted = pages()
    there = {*REFERENCE.rglob("*.md")} | {path for path in wanted if path.exists()}
    stale = sorted(
        str(path.relative_to(DOCS))
        for path in there | wanted.keys()
        if path not in there or path.read_text(encoding="utf-8") != wanted.get(path)
    )
    if "--check" in sys.argv:
        if stale:
            print(f"stale: {', '.join(stale)}; run python scripts/reference.py")
        return 1 if stale else 0
    for path in there - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
