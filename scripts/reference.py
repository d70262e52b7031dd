"""Write docs/reference.md and docs/settings.md from docstrings and settings models.

python scripts/reference.py [--check]
"""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from adamergex.config import methods, references, task, train, transfer
from adamergex.config import study as studies
from adamergex.jobs import settings
from adamergex.structures import settings as structure_settings

DOCS = Path(__file__).parents[1] / "docs"
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
    "adamergex.graph.steps": ["Step", "Store"],
    "adamergex.graph.local": ["run"],
    "adamergex.graph.ray": ["run"],
    "adamergex.graph.walk": ["walk"],
    "adamergex.graph.inventory": ["record", "entries", "garbage", "collect", "forget_study"],
    "adamergex.config.study": ["load_study", "parse_study", "inherited"],
    "adamergex.tables.study": ["run_study", "dry_run", "Engine"],
    "adamergex.tables.estimate": ["estimate", "parameters"],
    "adamergex.tables.devices": ["Device"],
    "adamergex.errors": [
        "AdamergexError",
        "AdapterFileError",
        "IncompatibleAdaptersError",
        "NothingMergedError",
        "ConfigError",
        "DataError",
        "ModelError",
    ],
}
FORMS = {form.__name__: form for form in task.own_forms().values()}
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
    (task, ["BuiltIn", "Part", *FORMS]),
    (train, ["LanguageTraining", "TaskTraining", "MaskedLmHeadTraining", "Recovery"]),
    (studies, ["StudyConfig", "Assumed"]),
    (structure_settings, ["Structure", "Lora", "Ia3", "Bottleneck", "Prefix", "Full", "Sparse"]),
    (settings, ["Rows", "Optimisation"]),
]


def reference() -> str:
    parts = ["# Reference\n\nMade from the docstrings by `python scripts/reference.py`."]
    for name, members in PUBLIC.items():
        module = import_module(name)
        parts.append(f"## `{name}`\n\n{(module.__doc__ or '').strip()}")
        parts += [entry(module, member) for member in members]
    return "\n\n".join(parts) + "\n"


def entry(module: ModuleType, name: str) -> str:
    thing = getattr(module, name)
    signature = "" if issubclass_of(thing, Exception) else named(str(inspect.signature(thing)))
    return f"### `{name}{signature}`\n\n```text\n{inspect.getdoc(thing) or ''}\n```"


def named(signature: str) -> str:
    """Functions that are defaults by their names: their addresses differ from run to run."""
    return re.sub(r"<(?:built-in )?function (\w+)[^>]*>", r"\1", signature)


def issubclass_of(thing: Any, parent: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, parent)


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
    if annotation is task.Own:
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
    pages = {DOCS / "reference.md": reference(), DOCS / "settings.md": settings_page()}
    stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        if stale:
            print(f"stale: {', '.join(stale)}; run python scripts/reference.py")
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
