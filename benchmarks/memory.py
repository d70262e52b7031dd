"""Peak memory of a training step: the whole batch at once, in parts, with activations computed again, and both.

    python benchmarks/memory.py

A Llama of 8 layers × 1,024 with random weights, LoRA of rank 8, 2 steps of 8 × 512 tokens in float32 on the CPU. Each
way runs in its own process, one after the other; the peak is the process's, beside what it held before the training.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = {
    "the whole batch": {},
    "accumulation: 8": {"accumulation": 8},
    "checkpointing: on": {"checkpointing": "on"},
    "both": {"accumulation": 8, "checkpointing": "on"},
}
TOKENS, ROWS = 512, 8


def main() -> None:
    """One line per way."""
    with tempfile.TemporaryDirectory() as folder:
        base = checkpoint(Path(folder) / "base")
        (Path(folder) / "text.txt").write_text("bread and butter on a cold morning\n" * 4 * TOKENS, encoding="utf-8")
        for way in WAYS:
            subprocess.run([sys.executable, __file__, way, base, f"{folder}/text.txt"], check=True)


def checkpoint(folder: Path) -> str:
    """The model, with the tokenizer of ``nano``."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from adamergex.base_names import folder as shipped

    tokenizer = AutoTokenizer.from_pretrained(shipped("nano-causal"))
    tokenizer.model_max_length = TOKENS
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=1024, intermediate_size=2752, num_hidden_layers=8,
            num_attention_heads=16, max_position_embeddings=TOKENS,
        )
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def measured(way: str, base: str, text: str) -> None:
    """Train, and print what it took."""
    from adamergex.jobs.settings import LanguageModeling, Optimisation, Rows, Structure, TrainJob
    from adamergex.training import train

    job = TrainJob(
        base=base, structure=Structure(rank=8, dropout=0.0), task=LanguageModeling(segment=TOKENS, segments=ROWS),
        language="en", rows=Rows(path=text), optimisation=Optimisation(steps=2, batch_size=ROWS, **WAYS[way]),
    )  # fmt: skip
    backbone = train.load_for(job)
    before, start = peak(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        train.train(job, Path(folder) / "adapter", backbone=backbone)
    print(
        f"{way:18} peak {peak():6,.0f} MiB (before {before:,.0f}), {time.process_time() - start:.0f} s CPU", flush=True
    )


def peak() -> float:
    """Largest resident set so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main() if len(sys.argv) == 1 else measured(*sys.argv[1:])
