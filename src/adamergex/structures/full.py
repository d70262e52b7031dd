"""Fine-tuning of all parameters, saved as a difference to the base."""

from __future__ import annotations

from adamergex.files.lineage import Lineage
from adamergex.structures.card import AUTO_CLASS, base_in_code, class_count
from adamergex.structures.kind import StructureKind

_PREDICT_TOKENS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")


def snippet(lineage: Lineage, base: str, task_type: str | None) -> str:
    """The code that adds a difference to its base."""
    auto_class = AUTO_CLASS.get(task_type or "", "AutoPeftModelForMaskedLM").replace("Peft", "")
    names, untying = ["apply_difference", "read_difference"], []
    if lineage.structure.get("kind") == "sparse" and auto_class in _PREDICT_TOKENS:
        names.append("untie_output")
        untying = ["untie_output(model)  # the matrix that predicts tokens stays the base's, as in training"]
    name, shipped = base_in_code(base)
    imports = [f"from adamergex.adapters.sparse import {', '.join(names)}", *([shipped] if shipped else [])]
    labels = class_count(lineage.task or {}) if task_type in ("SEQ_CLS", "TOKEN_CLS") else 0
    extra = f", num_labels={labels}" if labels else ""
    lines = [
        *imports,
        f"from transformers import {auto_class}",
        "",
        f"model = {auto_class}.from_pretrained({name}{extra})",
        *untying,
        'apply_difference(model, read_difference("path/to/this/folder"))',
    ]
    return "```python\n" + "\n".join(lines) + "\n```"


KIND = StructureKind(
    "full",
    "adamergex.structures.settings:Full",
    "adamergex.adapters.full_backed",
    adapter=False,
    stackable=True,
    card=snippet,
)
