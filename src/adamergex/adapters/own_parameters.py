"""A model's own parameters, when they train: named once, replaced by copies, the output matrix untied from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from adamergex.adapters.bottleneck.places import is_norm
from adamergex.adapters.sparse import untie_output
from adamergex.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Named = dict[str, nn.Parameter]


def named(model: PreTrainedModel) -> Named:
    """Every parameter once; a tied one by its name in the backbone, which is the same under any head."""
    names: dict[int, str] = {}
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = names.get(id(parameter), "")
        if not known or (name.startswith(prefix) and not known.startswith(prefix)):
            names[id(parameter)] = name
    return {names[id(parameter)]: parameter for parameter in model.parameters()}


def put_aside(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Replace every parameter by a float32 copy (tied ones stay tied); returns (module, name, original)."""
    copies: dict[int, nn.Parameter] = {}
    aside = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in copies:
                copies[id(parameter)] = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            aside.append((module, name, parameter))
            module._parameters[name] = copies[id(parameter)]
    return aside


def separate_output(model: PreTrainedModel) -> bool:
    """Untie the output matrix from the embeddings; returns whether it was tied.

    Raises: ModelError for a model that predicts tokens with the embeddings themselves, not through a layer."""
    tied = untie_output(model)
    outputs = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    matrix, rows = getattr(outputs, "weight", None), len(model.get_input_embeddings().weight)  # type: ignore
    if outputs is not None and (matrix is None or matrix.ndim != 2 or len(matrix) < rows):
        raise ModelError(
            "the output matrix of this model cannot be separated from its embeddings and frozen",
            where=type(model).__name__,
            found=f"an output layer with {'no weight' if matrix is None else tuple(matrix.shape)}",
            expected=f"a matrix of {rows} rows, one per token",
            fix="choose another base for lf_sft",
        )
    return tied


def is_any_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of any width: of hidden states, of narrower embeddings, of a head's queries."""
    weight = module._parameters.get("weight")
    return weight is not None and is_norm(module, weight.numel())
