"""Prediction heads that belong to an adapter: the modules outside the backbone, in a model and in files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from adamergex.adapters.formats import flexible_heads
from adamergex.adapters.formats.adapterhub import HeadFiles
from adamergex.errors import IncompatibleAdaptersError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def head_modules(model: PreTrainedModel, new_modules: tuple[str, ...]) -> list[str]:
    """The modules with parameters outside the backbone (classifier, score, …), and the new modules inside it."""
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
    """Initialise a head from the global generator, with the standard deviation of the model's own initialisation."""
    deviation = getattr(model.config, "initializer_range", 0.02)
    for module in head.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def draw(model: PreTrainedModel, new: Iterable[str], seed: int) -> None:
    """Initialise the named new modules of a model from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in new:
            redraw(model.get_submodule(name), model)


def head_of(model: PreTrainedModel, name: str, new_modules: tuple[str, ...] = ()) -> HeadFiles:
    """The model's head as AdapterHub stores it for transformers' classes, with the ``new_modules`` inside the backbone
    (BERT's pooler), which AdapterHub does not store.

    Raises: ModelError when the model has no head.
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
    """Copy a stored head, and with ``label`` its labels, into the model's; the layers of a flexible head are matched by
    order. Raises: IncompatibleAdaptersError when the heads differ in tensors or in what they compute."""
    kinds = [str(name or "").partition("For")[2] for name in (head.config.get("model_class"), type(model).__name__)]
    if kinds[0] and kinds[0] != kinds[1]:
        raise IncompatibleAdaptersError(
            "the stored head is of another kind than the model's",
            where=where,
            found=head.config.get("model_class"),
            expected=type(model).__name__,
            fix=f"load the model as {head.config.get('model_class')}",
        )
    parameters = head_parameters(model, new_modules)
    stored = _renamed(head.tensors, parameters)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if shapes != {name: tuple(parameter.shape) for name, parameter in parameters.items()}:
        raise IncompatibleAdaptersError(
            "the stored head does not fit this model",
            where=where,
            found=", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in head.tensors.items()),
            expected=", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in parameters.items()) or "no head",
            fix=f"load the model as {head.config.get('model_class')}, with as many labels as the head has",
        )
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    _copy(parameters, stored)
    try:
        flexible_heads.require_same_output(model, head, where)
    except BaseException:
        _copy(parameters, before)
        raise
    if label:
        _label(model, head.config)


@torch.no_grad()
def _copy(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def head_parameters(model: PreTrainedModel, new_modules: tuple[str, ...] = ()) -> dict[str, torch.nn.Parameter]:
    """The parameters outside the backbone and the adapters, and those of ``new_modules`` inside it; parameters tied to
    the embeddings belong to the backbone."""
    if model.base_model is model:
        return {}
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    inside -= {id(parameter) for module in new_modules for parameter in model.get_submodule(module).parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside and not name.startswith("adapter_stack.")
    }


def _renamed(tensors: Mapping[str, torch.Tensor], names: Collection[str]) -> dict[str, torch.Tensor]:
    if set(names) <= set(tensors):  # a masked-LM head also stores its tied projection
        return {name: tensors[name] for name in names}
    layers = flexible_heads.in_order(tensors)
    if layers is None or len(layers) != len(names):
        return dict(tensors)
    return {name: tensor for name, (_, _, tensor) in zip(names, layers, strict=True)}


def _label(model: PreTrainedModel, config: Mapping[str, Any]) -> None:
    nested = config.get("config")
    labels = config.get("label2id") or (nested.get("label2id") if isinstance(nested, dict) else None)
    if labels:
        model.config.label2id = {str(label): int(number) for label, number in labels.items()}
        model.config.id2label = {number: label for label, number in model.config.label2id.items()}
