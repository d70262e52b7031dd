"""The study of docs/study-sib200.md: SIB-200 from English with the shipped backbones.

    python scripts/study_sib200.py --data DATA --output runs/sib200 [--base nano] [--structure lora] [--seeds 3]

DATA/sib200/<language>.<train|dev|test>.jsonl.gz: rows with text and label. Everything trained is kept in OUTPUT/store,
so that a stopped study goes on and one more seed trains only what it adds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adamergex.config import parse
from adamergex.pipeline import summary, transfer

TARGETS = ["es", "tr", "ha", "sw", "xh", "ig"]
RATES = {"lora": (2e-3, 5e-3), "ia3": (1e-2, 2e-2)}  # learning rates of the task and of the reference
METHODS = ["vanilla", "english_tuning", "average", "adamergex", "adamergex_delta", "adamergex_cross"]


def settings(data: Path, output: Path, base: str, structure: str, modules: str | None) -> dict[str, Any]:
    task_rate, reference_rate = RATES[structure]
    files = f"{data.absolute()}/sib200/{{language}}"
    shared = {"batch_size": 16, "max_grad_norm": 1.0}
    return {
        "title": f"SIB-200 from English, {base}, {structure}" + (f", modules {modules}" if modules else ""),
        "base": base,
        "structure": {"kind": structure},
        "proxy": "fr",
        "targets": TARGETS,
        "methods": [name for name in METHODS if structure == "lora" or name != "adamergex_delta"],
        "task": {
            "name": "sib200",
            "train": f"{files}.train.jsonl.gz",
            "validation": f"{files}.dev.jsonl.gz",
            "test": f"{files}.test.jsonl.gz",
            "max_length": 128,
            "optimisation": {"epochs": 4, "learning_rate": task_rate, **shared},
        },
        # Raw text of every language: the sentences of the training part; their labels are not read.
        "reference": {
            "text": f"{files}.train.jsonl.gz",
            "segment": 64,
            "optimisation": {"epochs": 2, "learning_rate": reference_rate, **shared},
        },
        "merge": {"modules": modules, "grid": [0, 0.1, 0.25, 0.5, 0.75, 1]},
        "store": str(output / "store"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--base", nargs="+", default=["nano", "nano-causal"])
    parser.add_argument("--structure", nargs="+", default=["lora", "ia3"], choices=sorted(RATES))
    parser.add_argument("--modules", help="instead of the paper's choice: all, or a regular expression")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for seeds in range(1, arguments.seeds + 1):  # a whole table after every seed
        for base in arguments.base:
            for structure in arguments.structure:
                name = f"{base}-{structure}" + (f"-{arguments.modules}" if arguments.modules else "")
                wanted = settings(arguments.data, arguments.output, base, structure, arguments.modules)
                config = parse({**wanted, "seeds": list(range(seeds)), "output": str(arguments.output / name)})
                print(summary(transfer(config), config.output), flush=True)


if __name__ == "__main__":
    main()
