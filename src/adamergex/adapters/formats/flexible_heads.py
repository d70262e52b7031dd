"""AdapterHub's flexible heads (of AutoAdapterModel): a chain of linear layers that must compute what the model's head
computes. ``head_config.json`` gives the number of layers, the activation between them and their input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from adamergex.adapters.guards import probe, probing, raising_model_error, tokens
from adamergex.errors import IncompatibleAdaptersError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adamergex.adapters.formats.adapterhub import HeadFiles

NAME = re.compile(r"heads\.(?P<name>.+)\.(?P<number>\d+)\.(?P<tensor>weight|bias)")
_ONE_STATE = ("classification", "multilabel_classification", "multiple_choice")
_EVERY_STATE = ("tagging", "question_answering")


def in_order(tensors: Mapping[str, torch.Tensor]) -> list[tuple[int, str, torch.Tensor]] | None:
    """(layer, "weight" or "bias", tensor), weights first; None for names of another kind of head."""
    matches = [(NAME.fullmatch(name), tensor) for name, tensor in tensors.items()]
    if not matches or not all(match for match, _ in matches):
        return None
    keyed = [(int(match["number"]), match["tensor"], tensor) for match, tensor in matches if match]
    return sorted(keyed, key=lambda item: (item[0], item[1] != "weight"))


def require_same_output(model: PreTrainedModel, head: HeadFiles, where: object) -> None:
    """Require that the model's head, after copying a flexible one into it, computes what AdapterHub computes:

        logits = W_n · act(… act(W_1 · x + b_1) …) + b_n, x the first state, every state, or the pooler's

    Raises: IncompatibleAdaptersError with the head's settings, for other logits or unknown settings.
    """
    nested, layers = head.config.get("config"), in_order(head.tensors)
    if layers is None:
        return
    config: Mapping[str, Any] = nested if isinstance(nested, Mapping) else {}
    kind, activation = str(config.get("head_type")), config.get("activation_function")
    if kind == "masked_lm":  # dense, activation, norm: the model's own, but for the activation
        same = activation in (None, getattr(model.config, "hidden_act", activation))
    elif kind not in _ONE_STATE + _EVERY_STATE or not (activation is None or activation in ACT2FN):
        same = False
    else:
        with probing(model), raising_model_error(model, "a forward pass with this head fails"):
            same = _same_logits(model, config, layers)
    if not same:
        shown = {name: config.get(name) for name in ("head_type", "layers", "activation_function", "use_pooler")}
        raise IncompatibleAdaptersError(
            "this flexible head does not compute what the model's own head computes",
            where=where,
            found=", ".join(f"{name}: {value}" for name, value in shown.items()),
            expected=f"what {type(model).__name__} computes",
            fix="load it with AdapterHub's AutoAdapterModel, or train a head here",
        )


def _same_logits(model: Any, config: Mapping[str, Any], layers: list[tuple[int, str, torch.Tensor]]) -> bool:
    outputs: list[Any] = []
    handle = model.base_model.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        answer = probe(model, tokens(model, 4))
    finally:
        handle.remove()
    states = outputs[0][0]
    if config.get("head_type") in _ONE_STATE:
        pooled = getattr(outputs[0], "pooler_output", None)
        if config.get("use_pooler") and pooled is None:
            return False
        states = pooled if config.get("use_pooler") else states[:, 0]
    act = ACT2FN[str(config["activation_function"])] if config.get("activation_function") else nn.Identity()
    by_layer: dict[int, dict[str, torch.Tensor]] = {}
    for number, name, tensor in layers:
        by_layer.setdefault(number, {})[name] = tensor.to(states.device, states.dtype)
    for position, layer in enumerate(by_layer.values()):
        states = functional.linear(act(states) if position else states, layer["weight"], layer.get("bias"))
    logits = torch.stack([answer[0], answer[1]], -1) if config.get("head_type") == "question_answering" else answer[0]
    wanted = states.reshape(logits.shape) if states.numel() == logits.numel() else states
    bound = 1e-4 if states.dtype in (torch.float32, torch.float64) else 5e-2
    return wanted.shape == logits.shape and torch.allclose(wanted, logits.to(wanted.dtype), rtol=bound, atol=bound)
