"""Mean pooling: what the head of a sequence-classification encoder reads, and the vector of a whole text.

v = Σ_t mask_t · h_t / Σ_t mask_t over the last hidden states h [batch, length, width]: how sentence encoders (E5,
LaBSE-like, sentence-transformers) were trained to speak of a text. Their first token alone says little.
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
"""Where sentence-transformers says how a text's vector is made."""


def masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of hidden states [batch, length, width] over the positions that the mask [batch, length] keeps."""
    if mask is None:
        return hidden.mean(1)
    kept = mask.to(hidden.dtype)[..., None]
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)


class _MeanPooler(nn.Module):
    """Stands where the architecture has its pooler of the first token; without weights."""

    def __init__(self, seen: dict[str, Tensor | None]) -> None:
        super().__init__()
        self._seen = seen

    def forward(self, hidden: Tensor) -> Tensor:
        mask = self._seen.get("mask")
        if hidden.dim() != 3 or (mask is not None and mask.shape != hidden.shape[:2]):  # ALBERT gives the first token
            raise _no_states(self, hidden)
        return masked_mean(hidden, mask)


def read_by_mean(model: nn.Module) -> None:
    """Let the head of a sequence-classification model read the mean over a text instead of its first token.

    Works on any transformers encoder whose backbone has a pooler (BERT) or whose ``classifier`` takes all hidden states
    and reads the first (RoBERTa, XLM-R). Raises: ModelError for another shape of model, which a short text shows.
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
    seen: dict[str, Tensor | None] = {}

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["mask"] = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)

    backbone.register_forward_pre_hook(remember, with_kwargs=True)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = _MeanPooler(seen)
    else:

        def replace(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = args[0]
            if hidden.dim() != 3:
                raise _no_states(module, hidden)
            return (masked_mean(hidden, seen.get("mask"))[:, None].expand_as(hidden), *args[1:])

        head.register_forward_pre_hook(replace)
    _try(model, head)
    seen.clear()


def _try(model: nn.Module, head: nn.Module) -> None:
    """Read a short text, or a row of choices. Raises: ModelError."""
    shape = (1, 2, 8) if "MultipleChoice" in type(model).__name__ else (2, 8)
    ids = torch.full(shape, 2, device=next(model.parameters()).device)
    try:
        with torch.no_grad():  # an outline cannot look into a mask
            model(input_ids=ids, attention_mask=None if ids.is_meta else torch.ones_like(ids))
    except RuntimeError as error:
        if not ids.is_meta:
            raise _no_states(head, ids) from error


def _no_states(module: nn.Module, given: Tensor) -> ModelError:
    return ModelError(
        "this model's head does not read hidden states",
        where=type(module).__name__,
        found=tuple(given.shape),
        expected="[batch, length, width]",
        fix="set head: cls",
    )


def text_vectors(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean-pooled vectors [batch, width], float32, of texts under a transformers model, its head left out."""
    whole = model.module if isinstance(model, DistributedDataParallel) else model
    alone = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    backbone = getattr(alone, alone.base_model_prefix, alone)
    given = {"input_ids": input_ids, "attention_mask": attention_mask}
    if whole is model:
        return masked_mean(backbone(**given).last_hidden_state.float(), attention_mask)
    seen: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    try:
        model(**given)  # through the wrapper, which averages the gradients of all processes
    finally:
        handle.remove()
    return masked_mean(seen[0].float(), attention_mask)


def says_mean(config: Any, pooling_file: Path | None) -> bool:
    """Whether a checkpoint says that its texts are read by their mean: in config.json (``"pooling": "mean"``, as our
    converted sentence encoders do) or in sentence-transformers' file."""
    if getattr(config, "pooling", None) == "mean":
        return True
    if pooling_file is None:
        return False
    document = read_json_object(pooling_file, what="the pooling configuration", error=ModelError)
    return document.get("pooling_mode_mean_tokens") is True


def trains_without(new_modules: tuple[str, ...]) -> tuple[str, ...]:
    """New modules of a loaded model that mean pooling leaves unused."""
    return tuple(name for name in new_modules if not name.endswith("pooler"))


@torch.no_grad()
def all_text_vectors(model: Any, ids: list[list[int]], pad: int, batch_size: int = 32) -> Tensor:
    """``text_vectors`` of many texts (token ids, special ones included), in their order, in evaluation mode."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    result: list[Tensor | None] = [None] * len(ids)
    for at in range(0, len(order), batch_size):
        chosen = order[at : at + batch_size]
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
