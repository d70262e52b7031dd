"""A new masked-LM head for an encoder without one, and a low-rank change of its body.

The head is the architecture's (transformers' class): its dense layers start as the identity, its output embeddings are
the input embeddings, its bias starts as the log-frequency of each token in the text. The head's layer norm starts with
the scale g, and the shift -g·(mean of its output), that have the lowest loss on a few batches: without the shift, the
direction that all hidden states share would favour the same tokens everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM

from adamergex.backbones.base_documents import loading
from adamergex.backbones.base_files import resolve
from adamergex.backbones.loading import family, load_config, quiet
from adamergex.backbones.logits import IGNORE
from adamergex.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

SCALES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)


def with_new_head(base: str) -> tuple[Any, dict[str, nn.Parameter]]:
    """The encoder in float32, frozen except for a new masked-LM head; and the head's parameters by name.

    Dropout is off, so that the body is deterministic. Raises: ModelError: not an encoder, a base with a head, or a head
    other than dense layers as wide as the model, layer norm, tied embeddings and bias.
    """
    config = load_config(base)
    if family(config) != "encoder":
        raise ModelError("a masked-LM head is for encoders", where=base, found=family(config), fix="name an encoder")
    for name in [name for name in vars(config) if "dropout" in name and isinstance(getattr(config, name), float)]:
        setattr(config, name, 0.0)
    config.tie_word_embeddings = True
    loader: Any = AutoModelForMaskedLM
    with torch.random.fork_rng(devices=[]), loading(base), quiet():
        model, report = loader.from_pretrained(
            resolve(base), config=config, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    model.requires_grad_(False)
    embeddings = model.get_input_embeddings().weight
    missing = [model.get_parameter(name) for name in report["missing_keys"]]  # tied parameters may have two names
    new = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter is not embeddings and any(parameter is item for item in missing)
    }
    if not new:
        raise ModelError(
            "the base has a masked-LM head already",
            where=base,
            expected="an encoder without one",
            fix="use it as it is",
        )
    if in_body := sorted(name for name in new if name.startswith(f"{model.base_model_prefix}.")):
        raise ModelError(
            "the base lacks weights of its body", where=base, found=in_body[0], fix="choose a complete checkpoint"
        )
    if model.get_output_embeddings().weight is not embeddings:
        raise ModelError("the head's embeddings are not tied to the input's", where=base, fix="use another encoder")
    for name, parameter in new.items():
        _start(base, model, name, parameter)
        parameter.requires_grad_(True)
    if torch.cuda.is_available():
        model.to("cuda")
    return model.eval(), new


def _start(base: str, model: PreTrainedModel, name: str, parameter: nn.Parameter) -> None:
    owner = model.get_submodule(name.rpartition(".")[0])
    rows = len(next(model.get_input_embeddings().parameters()))
    with torch.no_grad():
        if parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1] and isinstance(owner, nn.Linear):
            parameter.copy_(torch.eye(parameter.shape[0]))
        elif parameter.dim() == 1 and isinstance(owner, nn.LayerNorm):
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif parameter.dim() == 1 and (isinstance(owner, nn.Linear) or parameter.shape[0] == rows):
            parameter.zero_()
        else:
            raise ModelError(
                "the head of this architecture has an unknown part",
                where=f"{base}: {name}",
                found=tuple(parameter.shape),
                expected="dense layers as wide as the model, layer norm and bias",
                fix="use another encoder, and report this one",
            )


def calibrate(
    model: PreTrainedModel, new: Mapping[str, nn.Parameter], batches: Iterable[Mapping[str, Tensor]], counts: Tensor
) -> float:
    """Initialise bias and layer norm of a new head; returns its loss on the batches, in nats per token.

    ``counts`` [V]: occurrences of each token in the text.
    """
    rows, embeddings, counts = len(counts), next(model.get_input_embeddings().parameters()), counts.to(model.device)
    bias = next((item for item in new.values() if item.shape == (rows,)), None)
    logarithms = torch.log((counts.float() + 0.1) / (counts.float() + 0.1).sum())
    norms = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.LayerNorm))
    norm = next((module for name, module in norms if f"{name}.weight" in new), None)
    hidden, targets = [], []
    with torch.no_grad():
        if bias is not None:
            bias.copy_(logarithms)
        for cpu_batch in batches:
            batch = {name: tensor.to(model.device) for name, tensor in cpu_batch.items()}
            wanted = batch["labels"] != IGNORE
            targets.append(batch["labels"][wanted])
            if norm is not None:
                hidden.append(_normalised(model, norm, batch)[wanted])
        if norm is None or not hidden:
            return math.nan
        values, labels = torch.cat(hidden), torch.cat(targets)
        mean, losses = values.mean(0), dict[float, float]()
        for scale in SCALES:
            logits = functional.linear(scale * (values - mean), embeddings, bias)
            losses[scale] = float(functional.cross_entropy(logits, labels))
        best = min(losses, key=lambda scale: losses[scale])
        norm.weight.fill_(best)
        if norm.bias is not None:
            norm.bias.copy_(-best * mean)
    return losses[best]


def _normalised(model: PreTrainedModel, norm: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The output of ``norm`` in a forward pass that stops there, without computing the expensive logits."""
    captured: list[Tensor] = []

    class Stop(Exception):
        pass

    def capture(module: nn.Module, inputs: Any, output: Tensor) -> None:
        captured.append(output)
        raise Stop

    handle = norm.register_forward_hook(capture)
    try:
        model(input_ids=batch["input_ids"], attention_mask=torch.ones_like(batch["input_ids"]))
    except Stop:
        pass
    finally:
        handle.remove()
    return captured[0]


class BodyUpdate:
    """ΔW = (alpha / rank)·B·A on every linear layer of a model's body, to be folded into the weights after training."""

    def __init__(self, model: PreTrainedModel, rank: int, alpha: float) -> None:
        self.scale, self.factors, self._on = alpha / rank, dict[str, tuple[nn.Parameter, nn.Parameter]](), True
        self.model, self._handles = model, []
        for name, module in linear_layers(model).items():
            a, b = (
                nn.Parameter(module.weight.new_zeros(rows, columns))
                for rows, columns in ((rank, module.in_features), (module.out_features, rank))
            )
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            module.register_parameter("low_rank_a", a)
            module.register_parameter("low_rank_b", b)
            self.factors[name] = (a, b)
            self._handles.append(module.register_forward_hook(self._add(a, b)))

    def _add(self, a: nn.Parameter, b: nn.Parameter) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not self._on:
                return output
            return output + functional.linear(functional.linear(inputs[0], a), b) * self.scale

        return add

    @contextmanager
    def off(self) -> Iterator[None]:
        """Context with the original body."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def fold(self) -> None:
        """Add every ΔW to its weight, and restore a plain model."""
        for handle in self._handles:
            handle.remove()
        fold(self.model, {name: (a.data, b.data) for name, (a, b) in self.factors.items()}, self.scale)
        for name in self.factors:
            module = self.model.get_submodule(name)
            del module.low_rank_a, module.low_rank_b


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of a model's body by name, without a pooler's."""
    prefix = f"{model.base_model_prefix}."
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefix) and "pooler" not in name
    }


def fold(model: PreTrainedModel, factors: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> None:
    """W ← W + scale·B·A. Raises: ModelError: a layer is missing or has another shape."""
    layers = linear_layers(model)
    with torch.no_grad():
        for name, (a, b) in factors.items():
            fits = a.dim() == b.dim() == 2 and a.shape[0] == b.shape[1] and name in layers
            if not fits or layers[name].weight.shape != (b.shape[0], a.shape[1]):
                raise ModelError("a low-rank change does not fit the base", where=name, fix="name the base it is for")
            layers[name].weight.add_((scale * (b @ a)).to(layers[name].weight.device))
