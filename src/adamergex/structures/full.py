"""Fine-tuning of all weights, kept as a difference to the base."""

from __future__ import annotations

from adamergex.files.lineage import Lineage
from adamergex.structures.card import AUTO_CLASS, base_in_code, classes
from adamergex.structures.kind import StructureKind

_PREDICT_TOKENS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")


def snippet(lineage: Lineage, base: str, task_type: str | None) -> str:
    """How to add a difference to its base."""
    own = AUTO_CLASS.get(task_type or "", "AutoPeftModelForMaskedLM").replace("Peft", "")
    names, untied = ["apply_difference", "read_difference"], []
    if lineage.structure.get("kind") == "sparse" and own in _PREDICT_TOKENS:
        names.append("untie_output")
        untied = ["untie_output(model)  # the matrix that predicts tokens stays the base's, as in training"]
    name, shipped = base_in_code(base)
    imports = [f"from adamergex.adapters.sparse import {', '.join(names)}", *([shipped] if shipped else [])]
    labels = classes(lineage.task or {}) if task_type in ("SEQ_CLS", "TOKEN_CLS") else 0
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


KIND = StructureKind(
    "full",
    "adamergex.structures.settings:Full",
    "adamergex.adapters.full_backed",
    adapter=False,
    stands_on_others=True,
    card=snippet,
)
