"""Prediction heads that travel with an adapter: what stands outside the backbone, between a model and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from adamergex.adapters.formats import flexible_heads
from adamergex.adapters.formats.adapterhub import HeadFiles
from adamergex.errors import IncompatibleAdaptersError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def head_modules(model: PreTrainedModel, new_modules: tuple[str, ...]) -> list[str]:
    """What stands outside the backbone and has weights (classifier, score, …), and new modules inside it."""
    outside = {
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    }
    if not outside:
        raise ModelError(
            "the model has no head to train",
            where=type(model).__name__,
            found=[name for name, _ in model.named_children()],
            expected="a model with a head, such as a sequence-classification model",
            fix="load it with the kind of head that the task needs",
        )
    return sorted(outside | set(new_modules))


def redraw(head: torch.nn.Module, model: PreTrainedModel) -> None:
    """Draw a new head from the global generator, as wide as the model draws its own weights."""
    deviation = getattr(model.config, "initializer_range", 0.02)
    for module in head.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def draw(model: PreTrainedModel, new: Iterable[str], seed: int) -> None:
    """Draw the named new modules of a model from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in new:
            redraw(model.get_submodule(name), model)


def head_of(model: PreTrainedModel, name: str, new_modules: tuple[str, ...] = ()) -> HeadFiles:
    """The model's head as AdapterHub stores it for transformers' own classes; and ``new_modules`` inside the backbone
    (BERT's pooler), which AdapterHub does not store.

    Raises: ModelError when the model has none.
    """
    tensors = {key: tensor.detach().cpu() for key, tensor in head_parameters(model, new_modules).items()}
    if not tensors:
        raise ModelError("the model has no head", where=type(model).__name__, fix="load it with a head")
    config = {
        "config": None,
        "hidden_size": model.config.get_text_config().hidden_size,
        "label2id": dict(model.config.label2id or {}),
        "model_class": type(model).__name__,
        "model_name": model.config.name_or_path,
        "model_type": model.config.model_type,
        "name": name,
        "num_labels": model.config.num_labels,
    }
    return HeadFiles(config, tensors)


def load_head(
    model: PreTrainedModel,
    head: HeadFiles,
    where: object = "head",
    new_modules: tuple[str, ...] = (),
    *,
    label: bool = True,
) -> None:
    """Copy a stored head, and with ``label`` its labels, into the model's own; a flexible head's layers go by their
    order. Raises: IncompatibleAdaptersError when the two heads do not have the same tensors, or do not compute the
    same.
    """
    kinds = [str(name or "").partition("For")[2] for name in (head.config.get("model_class"), type(model).__name__)]
    if kinds[0] and kinds[0] != kinds[1]:
        raise IncompatibleAdaptersError(
            "the stored head is of another kind than the model's",
            where=where,
            found=head.config.get("model_class"),
            expected=type(model).__name__,
            fix=f"load the model as {head.config.get('model_class')}",
        )
    own = head_parameters(model, new_modules)
    found = _renamed(head.tensors, own)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != {name: tuple(parameter.shape) for name, parameter in own.items()}:
        raise IncompatibleAdaptersError(
            "the stored head is not one for this model",
            where=where,
            found=", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in head.tensors.items()),
            expected=", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in own.items()) or "no head",
            fix=f"load the model as {head.config.get('model_class')}, with as many labels as the head has",
        )
    before = {name: parameter.detach().clone() for name, parameter in own.items()}
    _copy(own, found)
    try:
        flexible_heads.require_same(model, head, where)
    except BaseException:
        _copy(own, before)
        raise
    if label:
        _label(model, head.config)


@torch.no_grad()
def _copy(own: Mapping[str, torch.nn.Parameter], found: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in own.items():
        parameter.copy_(found[name])


def head_parameters(model: PreTrainedModel, new_modules: tuple[str, ...] = ()) -> dict[str, torch.nn.Parameter]:
    """Parameters outside the backbone and the adapters, and of the ``new_modules`` modules inside it; those tied to the
    embeddings are the backbone's."""
    inside = {id(parameter) for parameter in model.base_model.parameters()} if model.base_model is not model else set()
    inside -= {id(parameter) for module in new_modules for parameter in model.get_submodule(module).parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside and not name.startswith("adapter_stack.") and model.base_model is not model
    }


def _renamed(tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    if set(own) <= set(tensors):  # a masked-LM head also stores its tied projection
        return {name: tensors[name] for name in own}
    layers = flexible_heads.in_order(tensors)
    if layers is None or len(layers) != len(own):
        return dict(tensors)
    return {name: tensor for name, (_, _, tensor) in zip(own, layers, strict=True)}


def _label(model: PreTrainedModel, config: Mapping[str, Any]) -> None:
    nested = config.get("config")
    labels = config.get("label2id") or (nested.get("label2id") if isinstance(nested, dict) else None)
    if labels:
        model.config.label2id = {str(label): int(number) for label, number in labels.items()}
        model.config.id2label = {number: label for label, number in model.config.label2id.items()}
