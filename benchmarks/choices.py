"""Choices scored after a context that is read once, against a whole reading for every choice.

    python benchmarks/choices.py [--base nano-causal] [--rows 12] [--rounds 3]

Both score the same texts to the same numbers, in batches of similar length of the same number of tokens, with logits at
the choices' tokens only. Reading one by one costs n(P + c) tokens, sharing P + nc: their ratio is the sharing formula.
It counts tokens through the layers, so it holds where the layers are the work, as in models of billions of parameters:
the first model is a random Llama of 205 million, whose head over the vocabulary costs as small a part (under 3 %). In
nano-causal the head over 36,864 tokens costs four times the layers a position, and both ways pay for it at the choices.
One thread, CPU time, interleaved: the median over the rounds of each round's ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adamergex.backbones import loading
from adamergex.backbones.logits import logits_at
from adamergex.tasks import token_ids
from adamergex.tasks.answering.choosing import choice_scores
from adamergex.tasks.answering.prompts import following
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.classification import padded

BATCH_TOKENS = 2048
Rows = tuple[list[str], list[list[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="nano-causal")
    parser.add_argument("--rows", type=int, default=12, help="the small model reads 8 × as many")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    small = loading.load(arguments.base, "causal-lm")
    print("| model | rows like | choices | context | choice | formula | one by one ÷ ours, CPU | share | goal |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    report("205 M, random", heavy(small), arguments.rows, arguments.rounds, "≥ 0.9")
    report(arguments.base, small, 8 * arguments.rows, arguments.rounds, "")


def heavy(loaded: loading.Loaded) -> loading.Loaded:
    """A Llama with the same tokenizer whose layers are nearly all of its work."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 1024, "num_hidden_layers": 16, "intermediate_size": 2816}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": len(loaded.tokenizer)}
    return dataclasses.replace(loaded, model=LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval())


def report(model: str, loaded: loading.Loaded, rows: int, rounds: int, goal: str) -> None:
    for name, count, words in (("XCOPA", 2, None), ("XNLI", 3, ("true", "inconclusive", "contradictory"))):
        contexts, choices = made(loaded, rows, count, words)
        read, said = sizes(loaded, contexts, choices)
        formula = count * (read + said) / (read + count * said)
        ratio = compared(loaded, contexts, choices, rounds)
        line = f"{count} | {read:.0f} | {said:.1f} | {formula:.2f} | {ratio:.2f} | {ratio / formula:.2f} | {goal}"
        print(f"| {model} | {name} | {line} |", flush=True)


def made(loaded: loading.Loaded, rows: int, count: int, words: Sequence[str] | None) -> Rows:
    """Contexts of 60 to 120 tokens; sentences of 1 to 12 tokens as choices, or the same words in every row."""
    generator = np.random.default_rng(0)
    vocabulary = [piece[1:] for piece in loaded.tokenizer.get_vocab() if piece.startswith("▁") and piece[1:].isalpha()]
    vocabulary.sort()

    def text(tokens: int) -> str:
        return " ".join(generator.choice(vocabulary, tokens))

    contexts = [f"{text(int(generator.integers(60, 121)))}:" for _ in range(rows)]
    choices = [[text(int(generator.integers(1, 13))) for _ in range(count)] for _ in range(rows)]
    return contexts, choices if words is None else [list(words)] * rows


def sizes(loaded: loading.Loaded, contexts: list[str], choices: list[list[str]]) -> tuple[float, float]:
    read = [len(tokens) for tokens in token_ids(loaded.tokenizer, contexts)]
    flat = [choice for row in choices for choice in row]
    said = following(loaded.tokenizer, [c for c, row in zip(contexts, choices, strict=True) for _ in row], flat)
    return statistics.mean(read), statistics.mean(map(len, said))


def compared(loaded: loading.Loaded, contexts: list[str], choices: list[list[str]], rounds: int) -> float:
    ratios = []
    for _ in range(rounds + 1):
        apart, first = timed(lambda: one_by_one(loaded, contexts, choices))
        shared, (second, _) = timed(lambda: ours(loaded, contexts, choices))
        ratios.append(apart / shared)
        np.testing.assert_allclose(np.concatenate(first), np.concatenate(second), rtol=1e-4, atol=1e-3)
    return statistics.median(ratios[1:])  # the first round warms up


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def ours(loaded: loading.Loaded, contexts: list[str], choices: list[list[str]]) -> Any:
    return choice_scores(loaded.model, contexts, choices, loaded.tokenizer, longest=512, batch_tokens=BATCH_TOKENS)


@torch.inference_mode()
def one_by_one(loaded: loading.Loaded, contexts: list[str], choices: list[list[str]]) -> list[np.ndarray]:
    """Every choice after its whole context."""
    flat = [choice for row in choices for choice in row]
    repeated = [context for context, row in zip(contexts, choices, strict=True) for _ in row]
    said = following(loaded.tokenizer, repeated, flat)
    before, _ = loading.frame(loaded.tokenizer)
    read = [before + tokens for tokens in token_ids(loaded.tokenizer, repeated)]
    scores = np.zeros(len(flat))
    for indices in by_length([len(a) + len(b) for a, b in zip(read, said, strict=True)], BATCH_TOKENS):
        batch = padded([read[index] + said[index] for index in indices], int(loaded.tokenizer.pad_token_id))
        wanted = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for place, index in enumerate(indices):
            wanted[place, len(read[index]) - 1 : len(read[index]) + len(said[index]) - 1] = True
        labels = torch.tensor([piece for index in indices for piece in said[index]])
        found = logits_at(loaded.model, batch, wanted).float().log_softmax(-1).gather(1, labels[:, None])[:, 0]
        sums = torch.stack([part.sum() for part in found.split([len(said[index]) for index in indices])])
        scores[indices] = sums.double().numpy()
    return np.split(scores, np.cumsum([len(row) for row in choices])[:-1])


if __name__ == "__main__":
    main()
