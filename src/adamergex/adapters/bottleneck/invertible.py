"""Invertible adapters: NICE coupling blocks at the embeddings, inverted before the output projection."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN


class Nice(nn.Module):
    """Additive coupling of the two halves e = [e1, e2] of an embedding.

        forward: o1 = e1 + F(e2),  o2 = e2 + G(o1)        inverse: e2 = o2 - G(o1),  e1 = o1 - F(e2)

    F, G: Linear(in -> in // reduction), activation, Linear(-> out). For a width that is odd, e1 is the smaller half:
    width // 2 entries; F maps the second half to the first, G the first to the second. Shapes: (..., width) -> same.
    Near identity at the start: weights N(0, 0.02), biases 0. Source: MAD-X (2005.00052) §4.2.3, Eq 3-6; Dinh et al.
    2015 (1410.8516).
    """

    def __init__(self, width: int, reduction: float = 2, activation: str = "relu") -> None:
        super().__init__()
        first, second = width // 2, width - width // 2
        self.halves = [first, second]
        self.F = _coupling(second, first, reduction, activation)
        self.G = _coupling(first, second, reduction, activation)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """The layers' input, computed from the embedding."""
        first, second = self._split(embedding)
        first = first + self.F(second)
        second = second + self.G(first)
        return torch.cat((first, second), dim=-1).to(embedding.dtype)

    def inverse(self, output: torch.Tensor) -> torch.Tensor:
        """The output projection's input, computed from the hidden state: ``inverse(forward(x)) = x``."""
        first, second = self._split(output)
        second = second - self.G(first)
        first = first - self.F(second)
        return torch.cat((first, second), dim=-1).to(output.dtype)

    def _split(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = torch.split(states.to(next(self.F.parameters()).dtype), self.halves, dim=-1)
        return first, second


def _coupling(width: int, out: int, reduction: float, activation: str) -> nn.Sequential:
    middle = max(1, int(width // reduction))
    return nn.Sequential(nn.Linear(width, middle), ACT2FN[activation], nn.Linear(middle, out))
