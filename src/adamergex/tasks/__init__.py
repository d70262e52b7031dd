"""The tasks: how rows become training examples, and how predictions are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class Examples(Protocol):
    """What training needs from a task: the length of each example, a batch of examples, the batch's loss, and the
    number of labelled positions (or texts) that the loss averages over. The tensors of a batch have one row per
    example.

    A class whose loss compares the rows of a batch has a true ``coupled``: its batches are not split among
    processes."""

    @property
    def lengths(self) -> Sequence[int]: ...

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]: ...

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor: ...

    def labelled(self, batch: Mapping[str, Tensor]) -> int: ...


def token_ids(tokenizer: object, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without special tokens."""
    if not texts:
        return []
    encode: Any = tokenizer
    encoding = encode(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [list(ids) for ids in encoding["input_ids"]]
