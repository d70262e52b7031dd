r"""Step 3: pretrain a backbone. Resumable and seeded; stop it at any time and start it again with the same command.

    python scripts/pretrain/train.py --work WORK --data DATA --backbone nano --steps 6000 \
        --embeddings WORK/embeddings.pt

Loss: masked (or causal) language modelling on plain text and on translation pairs (TLM, Conneau & Lample 2019), plus
distillation of sentence vectors: an English sentence and each of its translations are pulled to the vector that an
English teacher gives the English sentence (Reimers & Gurevych 2020, 2004.09813), by cosine and by InfoNCE over the
batch.
The learning rate is constant after the warm-up and falls linearly over the last 30 % of the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from backbones import CUES, build, pooled, predict_tokens
from probe import probe

BOS, PAD, EOS, MASK = 0, 1, 2, 4
IGNORE = -100


class Example(NamedTuple):
    ids: np.ndarray
    target: int  # row of the teacher's vectors, or -1


class Text:
    """The encoded sentences and the teacher's vectors of ``prepare.py``."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path))
        rows = self.arrays["parallel.row"]
        self.english_of = {int(rows[i]): int(i) for i in np.flatnonzero(self.arrays["parallel.is_english"])}
        self.vectors = torch.from_numpy(np.load(path.with_name("vectors.npy")))
        self.rows = int(rows.max()) + 1  # the teacher's vectors of the English sentences follow those of the rows

    def sentence(self, part: str, index: int) -> np.ndarray:
        offsets = self.arrays[f"{part}.offsets"]
        return self.arrays[f"{part}.ids"][offsets[index] : offsets[index + 1]]

    def count(self, part: str) -> int:
        return len(self.arrays[f"{part}.offsets"]) - 1


def draw(text: Text, generator: np.random.Generator, causal: bool, cues: list[np.ndarray]) -> Example:
    """One training sequence: 65 % parallel (a third of them as pairs), 20 % English, 15 % plain blocks."""
    kind = generator.random()
    if kind < 0.65:
        index = int(generator.integers(text.count("parallel")))
        row = int(text.arrays["parallel.row"][index])
        own, english = text.sentence("parallel", index), text.sentence("parallel", text.english_of[row])
        if generator.random() < 0.33 and not text.arrays["parallel.is_english"][index]:
            between = [EOS] if causal else [EOS, EOS]
            first, second = (own, english) if causal or generator.random() < 0.5 else (english, own)
            return Example(np.concatenate([[BOS], first, between, second, [EOS]])[:256], row)
        return Example(closed(own, generator, causal, cues), row)
    if kind < 0.85:
        index = int(generator.integers(text.count("english")))
        return Example(closed(text.sentence("english", index), generator, causal, cues), text.rows + index)
    length = int(generator.choice([1, 60, 120, 240]))
    index = int(generator.integers(text.count("plain")))
    block = [[BOS]]
    while sum(map(len, block)) < length + 1 and index < text.count("plain"):
        block += [text.sentence("plain", index), [EOS]]
        index += 1
    return Example(np.concatenate(block)[:256], -1)


def closed(sentence: np.ndarray, generator: np.random.Generator, causal: bool, cues: list[np.ndarray]) -> np.ndarray:
    """``<s> sentence </s>``; on the causal model a cue such as "Topic:" may end it, where the vector is read."""
    if not causal:
        return np.concatenate([[BOS], sentence, [EOS]])
    return np.concatenate([[BOS], sentence, cues[int(generator.integers(len(cues)))]])


def batches(
    text: Text, seed: int, round_: int, tokens: int, causal: bool, cues: list[np.ndarray]
) -> list[list[Example]]:
    """The batches of one round: sequences of similar length together, at most ``tokens`` padded tokens a batch."""
    generator = np.random.default_rng([seed, round_])
    pool = sorted((draw(text, generator, causal, cues) for _ in range(6000)), key=lambda example: len(example.ids))
    result: list[list[Example]] = [[]]
    for example in pool:
        if result[-1] and (len(result[-1]) + 1) * len(example.ids) > tokens:
            result.append([])
        result[-1].append(example)
    generator.shuffle(result)
    return result


def collate(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(example.ids) for example in batch)
    ids = np.full((len(batch), width), PAD, np.int64)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = example.ids
    tensor = torch.from_numpy(ids)
    return tensor, (tensor != PAD).long(), torch.tensor([example.target for example in batch])


def mask(ids: torch.Tensor, vocabulary: int, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT's masking: of the chosen pieces 80 % become <mask>, 10 % another piece, 10 % stay."""
    chosen = (torch.rand(ids.shape) < rate) & (ids > MASK)
    dice = torch.rand(ids.shape)
    inputs = torch.where(chosen & (dice < 0.8), MASK, ids)
    inputs = torch.where(chosen & (dice >= 0.9), torch.randint(5, vocabulary, ids.shape), inputs)
    return inputs, torch.where(chosen, ids, IGNORE)


def causal_labels(ids: torch.Tensor, share: float) -> torch.Tensor:
    """Next pieces, at a random ``share`` of the positions: the head is half of a small model's cost."""
    labels = torch.full_like(ids, IGNORE)
    labels[:, :-1] = ids[:, 1:]
    keep = (torch.rand(ids.shape) < share) & (labels != PAD)
    return torch.where(keep, labels, IGNORE)


def distillation(vectors: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cos(student, teacher), plus InfoNCE against the teacher's vectors of the batch at temperature 0.05."""
    student = functional.normalize(vectors, dim=-1)
    unique, index = targets.unique(return_inverse=True)
    candidates = teacher[unique].float()
    similarity = student @ candidates.T
    own = similarity.gather(1, index[:, None]).mean()
    return 2.0 * (1 - own) + functional.cross_entropy(similarity / 0.05, index)


def step_loss(
    model: nn.Module, projection: nn.Module, text: Text, batch: list[Example], causal: bool
) -> dict[str, torch.Tensor]:
    ids, attention, targets = collate(batch)
    if causal:
        inputs, labels = ids, causal_labels(ids, 0.4)
    else:
        inputs, labels = mask(ids, model.config.vocab_size, 0.15)
    body = model.model if causal else model.roberta
    hidden = body(input_ids=inputs, attention_mask=attention).last_hidden_state
    wanted = labels != IGNORE
    losses = {}
    if wanted.any():
        losses["language"] = functional.cross_entropy(predict_tokens(model, hidden[wanted]), labels[wanted])
    known = targets >= 0
    if known.any():
        views = pooled(hidden[known], attention[known], causal)
        losses["sentence"] = sum(distillation(projection(view), targets[known], text.vectors) for view in views) / 2
    return losses


def rate(step: int, steps: int, peak: float) -> float:
    warm, decay = 300, int(0.3 * steps)
    return peak * min(1.0, (step + 1) / warm, max(0.02, (steps - step) / decay))


def save(path: Path, state: dict) -> None:
    torch.save(state, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", choices=["nano", "nano-causal"], required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=2048, help="padded tokens a batch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--embeddings", type=Path, help="what embeddings.py wrote; the start of the token embeddings")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    causal = arguments.backbone == "nano-causal"
    text = Text(arguments.work / "prepared.npz")
    torch.manual_seed(arguments.seed)
    model, tokenizer = build(arguments.backbone, arguments.work / "tokenizer.json")
    cues = [np.asarray(tokenizer(cue, add_special_tokens=False).input_ids, np.uint16) for cue in CUES]
    if arguments.embeddings:
        start = torch.load(arguments.embeddings, weights_only=True)["embeddings"]
        model.get_input_embeddings().weight.data.copy_(start)
    projection = nn.Linear(model.config.hidden_size, text.vectors.shape[1])
    parameters = [*model.parameters(), *projection.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint = arguments.work / f"{arguments.backbone}.pt"
    step, round_, done, seen = 0, 0, 0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        projection.load_state_dict(state["projection"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        step, round_, done, seen = state["place"]
    log = (arguments.work / f"{arguments.backbone}.jsonl").open("a")
    means: dict[str, list[float]] = {}
    began, last = time.monotonic(), seen
    model.train()
    while step < arguments.steps:
        for batch in batches(text, arguments.seed, round_, arguments.tokens, causal, cues)[done:]:
            for group in optimizer.param_groups:
                group["lr"] = rate(step, arguments.steps, arguments.lr)
            losses = step_loss(model, projection, text, batch, causal)
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, done, seen = step + 1, done + 1, seen + sum(len(example.ids) for example in batch)
            for name, loss in losses.items():
                means.setdefault(name, []).append(loss.item())
            if step % 100 == 0 or step == arguments.steps:
                row = {
                    "step": step,
                    "tokens": seen,
                    "tokens_per_second": round((seen - last) / (time.monotonic() - began)),
                }
                row |= {name: round(sum(values) / len(values), 3) for name, values in means.items()}
                if step % 500 == 0 or step == arguments.steps:
                    row["probe"] = probe(model, tokenizer, arguments.data, causal)
                    model.train()
                print(json.dumps(row), file=log, flush=True)
                means, began, last = {}, time.monotonic(), seen
            if step % 250 == 0 or step == arguments.steps:
                place = [step, round_, done, seen]
                state = {"model": model.state_dict(), "projection": projection.state_dict()}
                save(
                    checkpoint,
                    state | {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "place": place},
                )
            if step == arguments.steps:
                break
        else:
            round_, done = round_ + 1, 0


if __name__ == "__main__":
    main()
