"""A model's own parameters, where they train themselves: named once, put aside, the output matrix parted from them."""

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
    """Every parameter once; of a tied one's names the backbone's, which is the same under any head."""
    names: dict[int, str] = {}
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = names.get(id(parameter), "")
        if not known or (name.startswith(prefix) and not known.startswith(prefix)):
            names[id(parameter)] = name
    return {names[id(parameter)]: parameter for parameter in model.parameters()}


def put_aside(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Put a float32 copy in the place of every parameter (tied ones stay tied); where each one was."""
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


def part_output(model: PreTrainedModel) -> bool:
    """Part the output matrix from the embeddings; whether it was tied to them.

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


def is_a_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of whatever width: of hidden states, of narrower embeddings, of a head's queries."""
    weight = module._parameters.get("weight")
    return weight is not None and is_norm(module, weight.numel())
