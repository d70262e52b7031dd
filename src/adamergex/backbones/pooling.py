"""Mean pooling: the input of a sequence-classification head, and the vector of a text.

v = Σ_t mask_t · h_t / Σ_t mask_t over the last hidden states h [batch, length, width], as sentence encoders (E5,
LaBSE-like, sentence-transformers) are trained. Their first token alone carries little information.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adamergex.errors import ModelError
from adamergex.files.inputs import read_json_object

HeadInput = Literal["auto", "cls", "mean"]
POOLING_FILE = "1_Pooling/config.json"
"""sentence-transformers' pooling configuration."""


def masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of hidden states [batch, length, width] over the positions that the mask [batch, length] keeps."""
    if mask is None:
        return hidden.mean(1)
    kept = mask.to(hidden.dtype)[..., None]
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)


class _MeanPooler(nn.Module):
    """Replaces the architecture's pooler of the first token; has no weights."""

    def __init__(self, captured: dict[str, Tensor | None]) -> None:
        super().__init__()
        self._captured = captured

    def forward(self, hidden: Tensor) -> Tensor:
        mask = self._captured.get("mask")
        if hidden.dim() != 3 or (mask is not None and mask.shape != hidden.shape[:2]):  # ALBERT passes the first token
            raise _no_states(self, hidden)
        return masked_mean(hidden, mask)


def read_by_mean(model: nn.Module) -> None:
    """Make the head of a sequence-classification model read the mean over a text instead of its first token.

    Supports transformers encoders whose backbone has a pooler (BERT) or whose ``classifier`` gets all hidden states and
    reads the first (RoBERTa, XLM-R). Raises: ModelError for other models, detected with a short text.
    """
    backbone: Any = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    head: Any = getattr(model, "classifier", None)
    if backbone is None or head is None or getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            "this model's head cannot read the mean over a text",
            where=type(model).__name__,
            expected="an encoder with a backbone and a module 'classifier'",
            fix="set head: cls",
        )
    captured: dict[str, Tensor | None] = {}

    def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured["mask"] = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)

    backbone.register_forward_pre_hook(capture, with_kwargs=True)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = _MeanPooler(captured)
    else:

        def replace(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = args[0]
            if hidden.dim() != 3:
                raise _no_states(module, hidden)
            return (masked_mean(hidden, captured.get("mask"))[:, None].expand_as(hidden), *args[1:])

        head.register_forward_pre_hook(replace)
    _try(model, head)
    captured.clear()


def _try(model: nn.Module, head: nn.Module) -> None:
    """Run the model on a short text, or on a row of choices. Raises: ModelError."""
    shape = (1, 2, 8) if "MultipleChoice" in type(model).__name__ else (2, 8)
    ids = torch.full(shape, 2, device=next(model.parameters()).device)
    try:
        with torch.no_grad():  # a meta model cannot read a mask
            model(input_ids=ids, attention_mask=None if ids.is_meta else torch.ones_like(ids))
    except RuntimeError as error:
        if not ids.is_meta:
            raise _no_states(head, ids) from error


def _no_states(module: nn.Module, tensor: Tensor) -> ModelError:
    return ModelError(
        "this model's head does not read hidden states",
        where=type(module).__name__,
        found=tuple(tensor.shape),
        expected="[batch, length, width]",
        fix="set head: cls",
    )


def text_vectors(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean-pooled vectors [batch, width], float32, of texts under a transformers model without its head."""
    unwrapped = model.module if isinstance(model, DistributedDataParallel) else model
    transformer = unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped
    backbone = getattr(transformer, transformer.base_model_prefix, transformer)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if unwrapped is model:
        return masked_mean(backbone(**inputs).last_hidden_state.float(), attention_mask)
    states: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda module, args, output: states.append(output.last_hidden_state))
    try:
        model(**inputs)  # through the wrapper, which averages the gradients of all processes
    finally:
        handle.remove()
    return masked_mean(states[0].float(), attention_mask)


def uses_mean_pooling(config: Any, pooling_file: Path | None) -> bool:
    """Whether a checkpoint uses mean pooling, according to config.json (``"pooling": "mean"``, in our converted
    sentence encoders) or to sentence-transformers' file."""
    if getattr(config, "pooling", None) == "mean":
        return True
    if pooling_file is None:
        return False
    document = read_json_object(pooling_file, what="the pooling configuration", error=ModelError)
    return document.get("pooling_mode_mean_tokens") is True


def without_poolers(new_modules: tuple[str, ...]) -> tuple[str, ...]:
    """New modules without poolers, which mean pooling replaces."""
    return tuple(name for name in new_modules if not name.endswith("pooler"))


@torch.no_grad()
def all_text_vectors(model: Any, ids: list[list[int]], pad: int, batch_size: int = 32) -> Tensor:
    """``text_vectors`` of many texts (token ids with special tokens), in order, in evaluation mode."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    result: list[Tensor | None] = [None] * len(ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(ids[index]) for index in chosen)
        batch = torch.full((len(chosen), width), pad)
        mask = torch.zeros_like(batch)
        for row, index in enumerate(chosen):
            batch[row, : len(ids[index])] = torch.tensor(ids[index])
            mask[row, : len(ids[index])] = 1
        for index, vector in zip(chosen, text_vectors(model, batch.to(device), mask.to(device)).cpu(), strict=True):
            result[index] = vector
    model.train(training)
    return torch.stack([vector for vector in result if vector is not None])
