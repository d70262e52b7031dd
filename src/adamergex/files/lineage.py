"""Lineage: where an adapter comes from, in ``lineage.json`` beside it; and its model card. Standard library only."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from adamergex.base_names import PACKAGED, SHIPPED
from adamergex.errors import AdapterFileError, ModelError, printable
from adamergex.files import inputs, lineage_fields

FILE_NAME = "lineage.json"
FORMAT = "adamergex-lineage/1"
PACKAGES = ("adamergex", "numpy", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Lineage:
    """What one adapter was made from; ``None`` and empty where it is not known or does not apply.

    Args:
        base: ``{"name": ..., "sha256": ...}`` of the frozen model.
        structure: ``{"kind": "lora" | "ia3" | "bottleneck", "rank": ..., "alpha": ..., ...}``.
        start: SHA-256 of the adapter's initial tensors.
        task: kind and the settings that make two tasks the same task; never the language.
        language: ISO code of the language of the data (of a merge: the target).
        data: files or data sets with their SHA-256, and the number of rows.
        settings: how it was trained.
        parents: role -> ``{"path": ..., "sha256": ..., "language": ...}`` of a merge; of an adapter that was trained on
            frozen ones, those: ``below``, ``below_2``, …
        merge: ``{"rule", "space", "modules", "weight", "rank"}`` of a merge; ``weight`` is null in a divergence.
        versions: package -> version.
    """

    base: Mapping[str, Any] = field(default_factory=dict)
    structure: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    task: Mapping[str, Any] | None = None
    language: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    merge: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Canonical JSON: the same lineage always gives the same bytes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, directory: str | Path) -> Path:
        """Write ``lineage.json`` into an existing directory."""
        path = Path(directory) / FILE_NAME
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @property
    def is_divergence(self) -> bool:
        """Whether this is a language vector: a merge without a task and without a weight."""
        return self.merge is not None and self.merge.get("weight") is None


def read(directory: str | Path) -> Lineage | None:
    """Read ``lineage.json`` of a directory; ``None`` where there is none.

    Raises:
        AdapterFileError: no plain file, not JSON, another format, fields that are unknown or of the wrong type, or one
            that names code.
    """
    path = Path(directory) / FILE_NAME
    if not os.path.lexists(path):
        return None
    found = inputs.read_json_object(path, what="the lineage", error=AdapterFileError)
    _require_format(path, found)
    return Lineage(**{key: value for key, value in found.items() if key != "format"})


def require_base(directory: str | Path, name: str, sha256: str) -> Lineage | None:
    """The lineage of an adapter that is to be used on a base; one without lineage passes.

    Raises: ModelError for an adapter of another base: of the same shape it would load, and predict noise.
    """
    found = read(directory)
    made_for = None if found is None else found.base.get("sha256")
    if found is not None and made_for and made_for != sha256:
        raise ModelError(
            "the adapter was trained on another base",
            where=directory,
            found=f"{name} with SHA-256 {sha256[:12]}…",
            expected=f"{found.base.get('name')} with SHA-256 {str(made_for)[:12]}…",
            fix="name that base",
        )
    return found


def _require_format(path: Path, found: Mapping[str, Any]) -> None:
    if found.get("format") != FORMAT:
        raise AdapterFileError(
            "The lineage has another format.",
            where=path,
            found=found.get("format"),
            expected=FORMAT,
            fix="use the adamergex version that wrote it, or delete the file",
        )
    known = {item.name for item in fields(Lineage)}
    unknown = sorted(set(found) - known - {"format"})
    if unknown:
        raise AdapterFileError(
            "The lineage has fields that are not known.",
            where=path,
            found=", ".join(unknown),
            expected=", ".join(sorted(known)),
            fix="use the adamergex version that wrote it, or remove these fields",
        )
    for name in sorted(known & set(found)):
        value, optional = found[name], name in ("start", "task", "language", "merge")
        kind: type = str if name in ("start", "language") else dict
        if not (isinstance(value, kind) or (optional and value is None)):
            raise AdapterFileError(
                "A field of the lineage has the wrong type.",
                where=f"{path}: {name}",
                found=type(value).__name__,
                expected=kind.__name__ + (" or null" if optional else ""),
                fix="restore the file, or delete it",
            )
    if problem := lineage_fields.wrong(found):
        field_name, value, expected = problem
        raise AdapterFileError(
            "A field of the lineage has the wrong type or value.",
            where=f"{path}: {field_name}",
            found=value,
            expected=expected,
            fix="restore the file, or delete it: the adapter then counts as one without lineage",
        )


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the installed packages among ``names``, without importing any of them."""
    versions = {}
    for name in names:
        # importlib.metadata takes 20 ms to import: asked only for packages that this process has not loaded.
        version = getattr(sys.modules.get(name), "__version__", None) or _installed_version(name)
        if version:
            versions[name] = str(version)
    return versions


def _installed_version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


_OURS = ("bottleneck", "full", "sparse")
_PREDICT_TOKENS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")
_AUTO_CLASS = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}


def model_card(lineage: Lineage, report: Iterable[str] = (), *, task_type: str | None = None) -> str:
    """The text of ``README.md``: Hugging Face front matter, how to load the adapter, where it comes from, its report.

    ``task_type`` is PEFT's, from ``adapter_config.json``; it chooses the class of the snippet.
    """
    kind = str(lineage.structure.get("kind", "adapter"))
    base = str(lineage.base.get("name") or "")
    report_lines = list(report)
    sections = [
        _front_matter(lineage, kind, base),
        f"# {_title(lineage, kind)}",
        f"Made by [adamergex](https://arxiv.org/abs/2402.18913) for the base model `{_inline(base) or 'unknown'}`.",
        _difference_snippet(lineage, base, task_type)
        if kind in ("full", "sparse")
        else _attach_snippet(lineage, base, task_type)
        if kind == "bottleneck"
        else _snippet(base, task_type, _classes(lineage.task or {})),
        _origin(lineage),
    ]
    if report_lines:
        shown = (_inline(line) for line in report_lines)
        sections.append("## Report\n\n```text\n" + "\n".join(shown) + "\n```")
    return "\n\n".join(section for section in sections if section) + "\n"


def _title(lineage: Lineage, kind: str) -> str:
    language = f" for {_inline(lineage.language)}" if lineage.language else ""
    if lineage.is_divergence:
        return f"Language vector ({kind}){language}"
    if kind in ("full", "sparse"):
        return f"{kind.capitalize()} fine-tuning{language}"
    return f"{'Merged' if lineage.merge else 'Trained'} {kind} adapter{language}"


def _inline(value: object) -> str:
    """A text of a file in a line of Markdown: no HTML, no code fence, no end of the line."""
    text = printable(value, limit=20_000).replace("\n", "\\n")
    return text.replace("```", "` ` `").replace("<", "&lt;") if "```" in text or "<" in text else text


def _front_matter(lineage: Lineage, kind: str, base: str) -> str:
    lines = ["---", f"library_name: {'adamergex' if kind in _OURS else 'peft'}"]
    # The hub refuses a card whose base model is not a hub id, so a local path stays out of the front matter.
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", base):
        lines.append(f"base_model: {base}")
    lines += ["tags:", "- adamergex", f"- {kind}", "- cross-lingual-transfer"]
    if lineage.language:
        lines += ["language:", f"- {json.dumps(lineage.language)}"]
    return "\n".join([*lines, "---"])


def _classes(task: Mapping[str, Any]) -> int:
    """The classes of the head: the labels, or O with B and I of every entity type."""
    return 1 + 2 * len(task["types"]) if task.get("types") else len(task.get("labels", ()))


def _base_in_code(base: str) -> tuple[str, str]:
    """How a snippet names a base, and the import that this needs, or nothing."""
    if base in SHIPPED or base in PACKAGED:
        room = "base_names" if base in SHIPPED else "backbones.packaged"
        return f"str(folder({json.dumps(base)}))", f"from adamergex.{room} import folder"
    return json.dumps(base), ""


def _snippet(base: str, task_type: str | None, labels: int) -> str:
    name = _AUTO_CLASS.get(task_type or "")
    quoted, shipped = _base_in_code(base)
    shipped = shipped and f"{shipped}\n"
    if labels and task_type in ("SEQ_CLS", "TOKEN_CLS"):  # PEFT's own class would build a head of two labels
        own = str(name).removeprefix("AutoPeft")
        code = (
            f"{shipped}from peft import PeftModel\nfrom transformers import Auto{own}\n\n"
            f"model = Auto{own}.from_pretrained({quoted}, num_labels={labels})\n"
            'model = PeftModel.from_pretrained(model, "path/to/this/folder")'
        )
    elif name and not shipped:
        code = f'from peft import {name}\n\nmodel = {name}.from_pretrained("path/to/this/folder")'
    else:
        model = (name or "AutoModel").removeprefix("AutoPeft")
        model = model if model.startswith("Auto") else f"Auto{model}"
        code = (
            f"{shipped}from peft import PeftModel\nfrom transformers import {model}\n\n"
            f'model = PeftModel.from_pretrained({model}.from_pretrained({quoted}), "path/to/this/folder")'
        )
    return f"```python\n{code}\n```"


def _attach_snippet(lineage: Lineage, base: str, task_type: str | None) -> str:
    """How to load an adapter that PEFT does not know."""
    labels = len((lineage.task or {}).get("labels", ()))
    kind = (
        "SequenceClassification" if task_type == "SEQ_CLS" else "CausalLM" if task_type == "CAUSAL_LM" else "MaskedLM"
    )
    name, shipped = _base_in_code(base)
    imports = ["from adamergex import attach", *([shipped] if shipped else [])]
    extra = f", num_labels={labels}" if task_type == "SEQ_CLS" else ""
    lower = '"path/to/the/language/adapter", ' if "below" in lineage.parents else ""
    lines = [
        f"model = AutoModelFor{kind}.from_pretrained({name}{extra})",
        f'model = attach(model, {lower}"path/to/this/folder")',
    ]
    if task_type == "SEQ_CLS":
        imports += [
            "from adamergex.adapters.formats.adapterhub import read_head",
            "from adamergex.adapters.heads import load_head",
        ]
        lines.append('load_head(model, read_head("path/to/this/folder"))')
    imports.append(f"from transformers import AutoModelFor{kind}")
    return "```python\n" + "\n".join([*imports, "", *lines]) + "\n```"


def _difference_snippet(lineage: Lineage, base: str, task_type: str | None) -> str:
    """How to add a difference to its base."""
    own = _AUTO_CLASS.get(task_type or "", "AutoPeftModelForMaskedLM").replace("Peft", "")
    names, untied = ["apply_difference", "read_difference"], []
    if lineage.structure.get("kind") == "sparse" and own in _PREDICT_TOKENS:
        names.append("untie_output")
        untied = ["untie_output(model)  # the matrix that predicts tokens stays the base's, as in training"]
    name, shipped = _base_in_code(base)
    imports = [f"from adamergex.adapters.sparse import {', '.join(names)}", *([shipped] if shipped else [])]
    labels = _classes(lineage.task or {}) if task_type in ("SEQ_CLS", "TOKEN_CLS") else 0
    extra = f", num_labels={labels}" if labels else ""
    lines = [
        *imports,
        f"from transformers import {own}",
        "",
        f"model = {own}.from_pretrained({name}{extra})",
        *untied,
        'apply_difference(model, read_difference("path/to/this/folder"))',
    ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _origin(lineage: Lineage) -> str:
    lines = []
    if lineage.task:
        lines.append("- task: " + _inline(json.dumps(dict(lineage.task), ensure_ascii=False, sort_keys=True)))
    if lineage.merge:
        merge = {key: value for key, value in sorted(lineage.merge.items()) if value is not None}
        lines.append("- merge: " + _inline(json.dumps(merge, ensure_ascii=False)))
    for role, parent in sorted(lineage.parents.items()):
        language = f" ({_inline(parent['language'])})" if parent.get("language") else ""
        path, sha256 = (_inline(parent.get(name)) for name in ("path", "sha256"))
        lines.append(f"- {_inline(role)}{language}: `{path}`, SHA-256 `{sha256}`")
    return "## Where it comes from\n\n" + "\n".join(lines) if lines else ""
