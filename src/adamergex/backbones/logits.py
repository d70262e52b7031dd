"""Logits only at labelled positions: with 250k tokens, computing the head at all positions takes most of a step.

A hook on the language-model head of any transformers model selects the positions, without copying any ``forward``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from adamergex.backbones.loading import decoder_inputs
from adamergex.errors import ModelError

IGNORE = -100


def head(model: nn.Module) -> nn.Module:
    """The language-model head: the model's top-level child that is, or contains, its output embeddings.

    Unwraps PEFT's and DistributedDataParallel's models. Raises: ModelError: the model has no such child.
    """
    backbone = without_adapter(model)
    output = backbone.get_output_embeddings() if hasattr(backbone, "get_output_embeddings") else None
    children: list[nn.Module] = list(backbone.children())
    for child in children:
        if output is not None and any(module is output for module in child.modules()):
            return child
    raise ModelError(
        "the model has no language-model head",
        where=type(backbone).__name__,
        expected="a masked-LM, causal-LM or sequence-to-sequence model",
        fix="load the base with that kind of head",
    )


@contextmanager
def only_at(model: nn.Module, wanted: Tensor) -> Iterator[None]:
    """Context in which the model's logits are [1, n, V] instead of [batch, length, V].

    ``wanted``: bool [batch, length], true at the n positions of the logits, in row-major order.
    """

    def select(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        name = None if args else next(iter(kwargs))
        hidden = args[0] if name is None else kwargs[name]
        if hidden.shape[:2] != wanted.shape:
            raise ModelError(
                "the head is not called on one hidden state per position",
                where=type(module).__name__,
                found=tuple(hidden.shape),
                expected=(*wanted.shape, "hidden size"),
                fix="report this architecture",
            )
        chosen = hidden[wanted][None]
        return ((chosen, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: chosen})

    handle = head(model).register_forward_pre_hook(select, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def labelled_loss(
    model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor, *, shift: bool, learned: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy (nats per token) over the labelled positions; equal to transformers' loss.

    ``labels`` [batch, length]: token ids, -100 at unlabelled positions. ``shift``: position t predicts the label at
    t + 1 (causal models), else the label at t (masked and sequence-to-sequence models, whose decoder inputs are made
    here from the labels). ``learned`` [batch, length]: the decoder's labels that count in the loss; default: all. A
    batch without labels has loss 0.
    """
    targets = _targets(labels, shift, learned)
    wanted = targets != IGNORE
    logits = logits_at(model, inputs, wanted, labels)
    return functional.cross_entropy(logits.float(), targets[wanted], reduction="sum") / wanted.sum().clamp(min=1)


def labelled(labels: Tensor, *, shift: bool, learned: Tensor | None = None) -> int:
    """Number of positions that ``labelled_loss`` averages over, for the same labels."""
    return int((_targets(labels, shift, learned) != IGNORE).sum())


def _targets(labels: Tensor, shift: bool, learned: Tensor | None) -> Tensor:
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORE) if shift else labels
    return targets if learned is None else targets.masked_fill(~learned, IGNORE)


def logits_at(model: nn.Module, inputs: Mapping[str, Tensor], wanted: Tensor, labels: Tensor | None = None) -> Tensor:
    """Logits [n, V] at the n ``wanted`` positions (bool [batch, length]), in row-major order."""
    backbone = without_adapter(model)
    extra: dict[str, Any] = {}
    if backbone.config.is_encoder_decoder:
        if labels is None:
            raise ValueError("an encoder-decoder needs labels: its decoder inputs are made from them")
        extra["decoder_input_ids"] = decoder_inputs(backbone, labels)
    if backbone.config.is_encoder_decoder or backbone.can_generate():
        extra["use_cache"] = False  # no incremental decoding: keys and values are not needed
    with only_at(model, wanted):
        logits: Tensor = model(**inputs, **extra).logits
    return logits[0]


def without_adapter(model: Any) -> Any:
    """The transformers model, which still contains the adapter's modules."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
