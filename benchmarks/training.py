"""Training against what transformers and PEFT do out of the box, and against a bare loop.

    python benchmarks/training.py [--quick] [--threads 1]

Every figure is a ratio from one interleaved run: best of N in wall time, with CPU time beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from adamergex.adapters import peft_backed
from adamergex.backbones import loading
from adamergex.backbones.logits import IGNORE, labelled_loss
from adamergex.jobs.settings import Classification, Optimisation, Rows, Structure, TrainJob
from adamergex.training import loop, train

Timing = tuple[float, float]
LABELS = ("a", "b", "c", "d", "e", "f")
BATCH = 16


def best(work: dict[str, Callable[[], Timing]], rounds: int) -> dict[str, Timing]:
    """Interleaved: every piece of work once a round; the least wall and the least CPU seconds of each."""
    found = {name: (float("inf"), float("inf")) for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            wall, cpu = run()
            found[name] = min(found[name][0], wall), min(found[name][1], cpu)
    return found


class Clock(TrainerCallback):
    """Wall and CPU seconds from the first step's start to the last one's end."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.took = time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def masked_lm_step(layers: int, rounds: int) -> dict[str, Timing]:
    """One step of LoRA on a model of XLM-R base's shape (250k vocabulary), 15 % of the pieces masked."""
    config = XLMRobertaConfig(vocab_size=250_002, num_hidden_layers=layers, max_position_embeddings=514)
    model = XLMRobertaForMaskedLM(config)
    wrapped = peft_backed.attach(model, Structure(dropout=0), task_head=False, base_sha256="0").train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 250_002, (4, 64), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.15, ids, IGNORE)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def timed(loss: Callable[[], torch.Tensor]) -> Callable[[], Timing]:
        def run() -> Timing:
            wall, cpu = time.perf_counter(), time.process_time()
            loss().backward()
            wrapped.zero_grad()
            return time.perf_counter() - wall, time.process_time() - cpu

        return run

    return best(
        {
            "transformers": timed(lambda: wrapped(**inputs, labels=labels).loss),
            "ours": timed(lambda: labelled_loss(wrapped, inputs, labels, shift=False)),
        },
        rounds,
    )


def texts(variable: bool, count: int) -> list[dict[str, str]]:
    """Labelled texts of words; in pieces either log-normal around 30 as sentences are, or all alike."""
    generator = np.random.default_rng(0)
    words = ["water", "house", "nine", "green", "river", "music", "paper", "night"]
    lengths = np.clip(generator.lognormal(3.2, 0.7, count), 3, 120).astype(int) if variable else np.full(count, 40)
    return [
        {"text": " ".join(generator.choice(words, length)), "label": str(generator.choice(LABELS))}
        for length in lengths
    ]


def classification(folder: Path, variable: bool, steps: int, rounds: int) -> dict[str, Timing]:
    """LoRA on nano for some steps: ours, a bare loop over our batches, and Trainer + PEFT as their guides show them."""
    rows = texts(variable, steps * BATCH)
    path = folder / f"{variable}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = TrainJob(
        base="nano",
        structure=Structure(),
        task=Classification(labels=LABELS, max_length=128),
        language="en",
        rows=Rows(path=str(path)),
        optimisation=Optimisation(steps=steps, batch_size=BATCH),
    )
    loaded = train.load_for(job)
    runs = 0

    def ours() -> Timing:
        nonlocal runs
        runs, clock = runs + 1, Clock()
        train.train(job, folder / f"{variable}-{runs}", backbone=loaded, callbacks=[clock])
        return clock.took

    return best(
        {
            "ours": ours,
            "bare loop": lambda: bare_loop(job, loaded, rows, steps),
            "Trainer + PEFT": lambda: stock(job, loaded, rows, steps, folder, "longest"),
            "Trainer + PEFT, max_length": lambda: stock(job, loaded, rows, steps, folder, "max_length"),
        },
        rounds,
    )


def attached(job: TrainJob, loaded: loading.Loaded) -> Any:
    new = loaded.new_modules
    return peft_backed.attach(loaded.model, job.structure, task_head=True, base_sha256="0", new_modules=new)


def bare_loop(job: TrainJob, loaded: loading.Loaded, rows: list[dict[str, str]], steps: int) -> Timing:
    """The same batches, loss and optimiser, and nothing else."""
    examples, wrapped = train.examples_of(job, loaded, rows), attached(job, loaded)
    plan = loop.batches(examples.lengths, BATCH, steps, job.seed)
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    wrapped.train()
    wall, cpu = time.perf_counter(), time.process_time()
    for step, indices in enumerate(plan):
        examples.loss(wrapped, examples.batch(indices, step)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.3)
        optimizer.step()
        optimizer.zero_grad()
    took = time.perf_counter() - wall, time.process_time() - cpu
    peft_backed.detach(wrapped)
    return took


def stock(
    job: TrainJob, loaded: loading.Loaded, rows: list[dict[str, str]], steps: int, folder: Path, padding: str
) -> Timing:
    """transformers' Trainer on the same PEFT model, with its own batches, collator and loss."""
    wrapped, clock = attached(job, loaded), Clock()
    data = [
        {**loaded.tokenizer(row["text"], truncation=True, max_length=128), "labels": LABELS.index(row["label"])}
        for row in rows
    ]
    arguments = TrainingArguments(
        output_dir=str(folder / "stock"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        max_grad_norm=0.3,
    )
    collator = DataCollatorWithPadding(loaded.tokenizer, padding=padding, max_length=128)
    trainer = Trainer(wrapped, arguments, data_collator=collator, train_dataset=data, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    with loading.quiet():
        trainer.train()
    peft_backed.detach(wrapped)
    return clock.took


def show(title: str, goal: str, over: Timing, under: Timing) -> None:
    wall, cpu = over[0] / under[0], over[1] / under[1]
    print(f"{title:<66} {wall:5.2f}x wall {cpu:5.2f}x CPU  ({over[0]:.2f} / {under[0]:.2f} s)  goal {goal}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer layers, steps and rounds")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layers, steps, rounds = (4, 15, 2) if arguments.quick else (12, 40, 3)
    found = masked_lm_step(layers, rounds)
    show(
        f"MLM step, 250k vocabulary, {layers} layers: full logits / ours", ">= 2", found["transformers"], found["ours"]
    )
    with tempfile.TemporaryDirectory() as name:
        for variable, goal in ((True, ">= 1.5"), (False, ">= 1.0")):
            found = classification(Path(name), variable, steps, rounds)
            kind = "variable lengths" if variable else "equal lengths"
            for peer in ("Trainer + PEFT", "Trainer + PEFT, max_length"):
                show(f"{kind}: {peer} / ours", goal, found[peer], found["ours"])
            show(f"{kind}: ours / bare loop, same batches", "<= 1.1", found["ours"], found["bare loop"])


if __name__ == "__main__":
    main()
