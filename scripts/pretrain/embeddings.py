"""Step 2: token embeddings by distillation into a bag of pieces, the start of both backbones.

    python scripts/pretrain/embeddings.py --work WORK --data DATA

A sentence's vector is the weighted mean of its pieces' embeddings (one learned weight a piece), mapped to the teacher's
space. It sees a hundred times more sentences a second than a transformer and aligns the languages' pieces; the
transformer then starts from words that already mean something.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from probe import probe_vectors
from train import Text, distillation

WIDTH = 192


class Bag(nn.Module):
    def __init__(self, vocabulary: int, output: int) -> None:
        super().__init__()
        self.pieces = nn.EmbeddingBag(vocabulary, WIDTH, mode="sum")
        self.weights = nn.Embedding(vocabulary, 1)
        nn.init.normal_(self.pieces.weight, std=0.1)
        nn.init.zeros_(self.weights.weight)
        self.projection = nn.Linear(WIDTH, output)

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        weights = self.weights(ids).squeeze(-1).exp()
        lengths = torch.diff(offsets, append=torch.tensor([len(ids)]))
        owner = torch.repeat_interleave(torch.arange(len(offsets)), lengths)
        totals = torch.zeros(len(offsets)).index_add(0, owner, weights)
        return self.pieces(ids, offsets, per_sample_weights=weights / totals[owner])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--drop", type=float, default=0.3, help="share of pieces left out of a sentence, at random")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    generator = np.random.default_rng(arguments.seed)
    text = Text(arguments.work / "prepared.npz")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(arguments.work / "tokenizer.json"), pad_token="<pad>")
    bag = Bag(len(tokenizer), text.vectors.shape[1])
    optimizer = torch.optim.Adam(bag.parameters(), lr=arguments.lr)
    parallel, english = text.count("parallel"), text.count("english")
    steps = arguments.epochs * ((parallel + english) // 1024)
    step = 0
    for epoch in range(arguments.epochs):
        order, losses = generator.permutation(parallel + english), []
        for start in range(0, len(order) - 1024, 1024):
            sentences, targets = [], []
            for index in order[start : start + 1024].tolist():
                inside = index < parallel
                ids = text.sentence("parallel", index) if inside else text.sentence("english", index - parallel)
                kept = ids[generator.random(len(ids)) >= arguments.drop]
                sentences.append(kept if len(kept) else ids)
                targets.append(int(text.arrays["parallel.row"][index]) if inside else text.rows + index - parallel)
            ids = torch.from_numpy(np.concatenate(sentences).astype(np.int64))
            offsets = torch.from_numpy(np.cumsum([0, *map(len, sentences[:-1])]))
            for group in optimizer.param_groups:
                group["lr"] = arguments.lr * max(0.02, 1 - step / steps)
            loss = distillation(bag.projection(bag(ids, offsets)), torch.tensor(targets), text.vectors)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1

        @torch.no_grad()
        def embed(texts: list[str]) -> np.ndarray:
            rows = tokenizer(texts, add_special_tokens=False).input_ids
            flat = torch.tensor([piece for row in rows for piece in row])
            return bag(flat, torch.tensor(np.cumsum([0, *map(len, rows[:-1])]))).double().numpy()

        row = {"epoch": epoch, "loss": round(float(np.mean(losses)), 3)}
        if epoch % 3 == 2:
            row["probe"] = probe_vectors(embed, arguments.data)
        print(json.dumps(row), flush=True)
    # Frequent function pieces get small weights; the transformer's mean has none, so they are folded in.
    weights = bag.weights.weight.exp()
    vectors = bag.pieces.weight.detach() * (weights / weights.mean()).clamp(max=3).detach()
    torch.save({"embeddings": vectors / vectors.std() * 0.05}, arguments.work / "embeddings.pt")


if __name__ == "__main__":
    main()
