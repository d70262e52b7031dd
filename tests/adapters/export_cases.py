"""The adapters of golden g6_export, made from seeds, and exported with `convert`.

python tests/adapters/export_cases.py tests/goldens/g6_export OUTPUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from tiny_models import adapter, tiny
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.adapters.formats.adapterhub import AdapterFiles, HeadFiles, write_adapter
from adamergex.adapters.formats.conversion import convert
from adamergex.adapters.heads import head_of
from adamergex.files.lineage import Lineage

GOLDENS = Path(__file__).parents[1] / "goldens"
PFEIFFER = BottleneckConfig.pfeiffer(2, invertible=True), BottleneckConfig.pfeiffer(4)
LEAVE_OUT = BottleneckConfig.pfeiffer(2, invertible=True, leave_out=(2,)), BottleneckConfig.pfeiffer(4, leave_out=(2,))
HOULSBY = BottleneckConfig.houlsby(2, invertible=True), BottleneckConfig.houlsby(4)
CLASSES = {
    "lm": AutoModelForMaskedLM,
    "tokcls": AutoModelForTokenClassification,
    "seqcls": AutoModelForSequenceClassification,
}


class Case(NamedTuple):
    """A base (a folder of g1_madx, or one of tiny_models), a language and a task adapter, and the form exported to."""

    base: str
    adapters: tuple[BottleneckConfig, BottleneckConfig]
    safetensors: bool = False

    @property
    def head(self) -> str | None:
        """The task's kind of head, if the task adapter has one with it."""
        kind = self.base.rpartition("_")[2]
        return kind if kind in ("tokcls", "seqcls") else None


CASES = {
    "xlmr_pfeiffer": Case("xlmr/base_lm", PFEIFFER),
    "xlmr_leave_out": Case("xlmr/base_lm", LEAVE_OUT, safetensors=True),
    "xlmr_tagger": Case("xlmr/base_tokcls", PFEIFFER),
    "bert_houlsby": Case("bert/base_lm", HOULSBY),
    "bert_classifier": Case("bert/base_seqcls", HOULSBY, safetensors=True),
    "distilbert_houlsby": Case("distilbert", HOULSBY),
    "llama_pfeiffer": Case("llama", PFEIFFER),
    "llama_houlsby": Case("llama", HOULSBY, safetensors=True),
    "mistral_pfeiffer": Case("mistral", PFEIFFER),
    "t5_pfeiffer": Case("t5", PFEIFFER),
    "bart_pfeiffer": Case("bart", PFEIFFER),
    "mbart_houlsby": Case("mbart", HOULSBY),
}
NAMES = ("sw", "task")


def base(case: str) -> PreTrainedModel:
    """The base of a case, with the checkpoint's own head."""
    name = CASES[case].base
    if "/" not in name:
        return tiny(name)
    return CLASSES[name.rpartition("_")[2]].from_pretrained(GOLDENS / "g1_madx" / "bases" / name).eval()


def export(case: str, base_folder: Path, ours: Path, output: Path) -> None:
    """Our directories of a case below ``ours``, and what `convert` makes of them below ``output``."""
    model, chosen = base(case), CASES[case]
    for seed, (name, config) in enumerate(zip(NAMES, chosen.adapters, strict=True)):
        made = adapter(model, config, seed)
        tensors = {key: tensor.detach() for key, tensor in made.state_dict().items()}
        head = seeded_head(model, name) if name == "task" and chosen.head else None
        write_adapter(ours / name, AdapterFiles(name, config, tensors, head, lineage=Lineage(language="sw")))
        convert(ours / name, output / name, "adapterhub", base=str(base_folder), safetensors=chosen.safetensors)


def seeded_head(model: PreTrainedModel, name: str) -> HeadFiles:
    """A head with other weights than the base's."""
    head, generator = head_of(model, name), torch.Generator().manual_seed(7)
    drawn = {key: torch.randn(tensor.shape, generator=generator) * 0.3 for key, tensor in sorted(head.tensors.items())}
    return HeadFiles(dict(head.config) | {"model_name": ""}, drawn)


def base_folder(case: str, folder: Path) -> Path:
    """Where a case's base lies: among g1's, or saved to ``folder``."""
    name = CASES[case].base
    if "/" in name:
        return GOLDENS / "g1_madx" / "bases" / name
    if not (folder / name).exists():
        tiny(name).save_pretrained(folder / name)
    return folder / name


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for case in CASES:
        export(case, base_folder(case, target / "bases"), Path(sys.argv[2]) / case, target / case)
    (target / "cases.json").write_text(json.dumps({name: case.base for name, case in CASES.items()}, indent=1) + "\n")
