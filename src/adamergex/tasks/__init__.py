"""The tasks: how rows become training examples, and how predictions are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class Examples(Protocol):
    """What training needs of a task: how long each example is, a batch of some of them, the batch's loss, and over how
    many labelled positions (or texts) that is a mean. The tensors of a batch have a row for each of its examples.

    A class whose loss compares the rows of a batch with each other says ``coupled``: no batch of it is shared out."""

    @property
    def lengths(self) -> Sequence[int]: ...

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]: ...

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor: ...

    def labelled(self, batch: Mapping[str, Tensor]) -> int: ...


def pieces_of(tokenizer: object, texts: Sequence[str]) -> list[list[int]]:
    """The pieces of each text, without special ones."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)  # type: ignore[operator]
    return [list(ids) for ids in found["input_ids"]]
