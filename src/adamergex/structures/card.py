"""The model card of an adapter: the hub's front matter, loading code, origin and report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adamergex.base_names import PACKAGED, SHIPPED
from adamergex.errors import printable
from adamergex.files.directory import CARD
from adamergex.files.lineage import Lineage
from adamergex.structures import find
from adamergex.structures.kind import StructureKind

AUTO_CLASS = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}
"""PEFT's task type -> its class."""


def model_card(lineage: Lineage, report: Iterable[str] = (), *, task_type: str | None = None) -> str:
    """The text of ``README.md``: Hugging Face front matter, loading code, origin and report.

    ``task_type``: PEFT's, from ``adapter_config.json``; it selects the class in the loading code.
    """
    kind = str(lineage.structure.get("kind", "adapter"))
    structure = find(kind)
    base = str(lineage.base.get("name") or "")
    report_lines = list(report)
    sections = [
        _front_matter(lineage, kind, base, structure),
        f"# {_title(lineage, kind, structure)}",
        f"Made by [adamergex](https://arxiv.org/abs/2402.18913) for the base model `{_inline(base) or 'unknown'}`.",
        structure.card(lineage, base, task_type)
        if structure and structure.card
        else peft_snippet(lineage, base, task_type),
        _origin(lineage),
    ]
    if report_lines:
        escaped = (_inline(line) for line in report_lines)
        sections.append("## Report\n\n```text\n" + "\n".join(escaped) + "\n```")
    return "\n\n".join(section for section in sections if section) + "\n"


def write_beside(
    directory: Path, lineage: Lineage, report: Iterable[str] = (), *, task_type: str | None = None
) -> None:
    """Write the lineage and the card into an existing directory."""
    lineage.write(directory)
    card = model_card(lineage, report, task_type=task_type)
    (directory / CARD).write_text(card, encoding="utf-8")


def _title(lineage: Lineage, kind: str, structure: StructureKind | None) -> str:
    language = f" for {_inline(lineage.language)}" if lineage.language else ""
    if lineage.is_divergence:
        return f"Language vector ({kind}){language}"
    if structure and not structure.adapter:
        return f"{kind.capitalize()} fine-tuning{language}"
    return f"{'Merged' if lineage.merge else 'Trained'} {kind} adapter{language}"


def _inline(value: object) -> str:
    """A text from a file, escaped for a line of Markdown: no HTML, no code fence, no line end."""
    text = printable(value, limit=20_000).replace("\n", "\\n")
    return text.replace("```", "` ` `").replace("<", "&lt;") if "```" in text or "<" in text else text


def _front_matter(lineage: Lineage, kind: str, base: str, structure: StructureKind | None) -> str:
    lines = ["---", f"library_name: {'adamergex' if structure and structure.card else 'peft'}"]
    # The hub refuses a base model that is not a hub id, so a local path is left out.
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", base):
        lines.append(f"base_model: {base}")
    lines += ["tags:", "- adamergex", f"- {kind}", "- cross-lingual-transfer"]
    if lineage.language:
        lines += ["language:", f"- {json.dumps(lineage.language)}"]
    return "\n".join([*lines, "---"])


def class_count(task: Mapping[str, Any]) -> int:
    """The number of the head's classes: labels, or O and B, I of every entity type."""
    return 1 + 2 * len(task["types"]) if task.get("types") else len(task.get("labels", ()))


def base_in_code(base: str) -> tuple[str, str]:
    """The expression for a base in loading code, and the import that it needs, if any."""
    if base in SHIPPED or base in PACKAGED:
        module = "base_names" if base in SHIPPED else "backbones.packaged"
        return f"str(folder({json.dumps(base)}))", f"from adamergex.{module} import folder"
    return json.dumps(base), ""


def peft_snippet(lineage: Lineage, base: str, task_type: str | None) -> str:
    """The code that loads an adapter with PEFT."""
    labels = class_count(lineage.task or {})
    name = AUTO_CLASS.get(task_type or "")
    quoted, shipped = base_in_code(base)
    shipped = shipped and f"{shipped}\n"
    if labels and task_type in ("SEQ_CLS", "TOKEN_CLS"):  # PEFT's class would build a head with two labels
        auto_class = str(name).removeprefix("AutoPeft")
        code = (
            f"{shipped}from peft import PeftModel\nfrom transformers import Auto{auto_class}\n\n"
            f"model = Auto{auto_class}.from_pretrained({quoted}, num_labels={labels})\n"
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
