"""Bottleneck adapters (pfeiffer, houlsby) with their invertible part: configuration, modules, a whole adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.activations import ACT2FN

from adamergex.adapters.bottleneck.invertible import Nice
from adamergex.adapters.saving import seeded
from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.files.tensor_files import require_same

if TYPE_CHECKING:
    from adamergex.adapters.bottleneck.places import Layer, Location, Places


@dataclass(frozen=True)
class BottleneckConfig:
    """The shape of an adapter: its locations, its width, its input.

    Args:
        reduction: hidden width / bottleneck width, rounded down, at least one wide; or layer number (as a string) ->
            reduction, with a "default". Decoder layers are numbered after the encoder's.
        activation: the name of one of transformers' activations.
        output, attention: after the feed-forward, after attention.
        reuse_norm: the adapter reads LN(x + r), the block's own norm (pfeiffer), else x (houlsby).
        leave_out: numbers of layers without an adapter (MAD-X 2.0, 2012.15562: the last one).
        dropout, scaling: of the adapter's update.
        invertible: add a NICE block at the embeddings, of reduction ``invertible_reduction``.

    Raises: ConfigError for invalid values.
    """

    reduction: float | Mapping[str, float] = 16.0
    activation: str = "relu"
    output: bool = True
    attention: bool = False
    reuse_norm: bool = True
    leave_out: tuple[int, ...] = field(default=())
    dropout: float = 0.0
    scaling: float = 1.0
    invertible: bool = False
    invertible_reduction: float = 2.0

    def __post_init__(self) -> None:
        sizes = list(self.reduction.values()) if isinstance(self.reduction, Mapping) else [self.reduction]
        checks = {
            "reduction": (sizes, bool(sizes) and all(size > 0 for size in sizes), "above 0"),
            "activation": (self.activation, self.activation in ACT2FN, "one of transformers' activations"),
            "output, attention": ((self.output, self.attention), self.output or self.attention, "at least one true"),
            "leave_out": (self.leave_out, all(number >= 0 for number in self.leave_out), "layer numbers from 0"),
            "dropout": (self.dropout, 0 <= self.dropout < 1, "from 0 up to, not including, 1"),
            "scaling": (self.scaling, math.isfinite(self.scaling), "a number"),
            "invertible_reduction": (self.invertible_reduction, self.invertible_reduction > 0, "above 0"),
        }
        for name, (value, valid, expected) in checks.items():
            if not valid:
                raise ConfigError(
                    "a setting of the bottleneck adapter is not valid", where=name, found=value, expected=expected
                )

    @classmethod
    def pfeiffer(cls, reduction: float = 16.0, **settings: object) -> BottleneckConfig:
        """One adapter per layer, after the feed-forward. Source: MAD-X §4.2.1; AdapterHub's seq_bn."""
        return cls(**({"reduction": reduction} | settings))  # type: ignore[arg-type]

    @classmethod
    def houlsby(cls, reduction: float = 16.0, **settings: object) -> BottleneckConfig:
        """Two adapters per layer, after attention and feed-forward. Source: 1902.00751; AdapterHub's double_seq_bn."""
        defaults = {"reduction": reduction, "attention": True, "reuse_norm": False, "activation": "swish"}
        return cls(**(defaults | settings))  # type: ignore[arg-type]

    def locations(self) -> tuple[Location, ...]:
        """The adapter's locations in each layer."""
        enabled: dict[Location, bool] = {"attention": self.attention, "output": self.output}
        return tuple(location for location, present in enabled.items() if present)

    def width(self, hidden: int, number: int) -> int:
        """Bottleneck width in the layer with this number."""
        reduction = self.reduction
        if isinstance(reduction, Mapping):
            value = reduction.get(str(number), reduction.get("default"))
            if value is None:
                raise ConfigError(
                    "reduction has no value for this layer",
                    where=f"layer {number}",
                    found=dict(reduction),
                    expected='a value for each layer, or a "default"',
                    fix='add "default"',
                )
            reduction = value
        return max(1, int(hidden // reduction))


class BottleneckLayer(nn.Module):
    """The update A(x) = scaling · U(act(D(x))), biases included; the caller adds it to the residual.

    D: (hidden -> width), U: (width -> hidden); x (..., hidden) -> same. Near identity at the start: weights N(0, 0.02),
    biases 0. Source: MAD-X (2005.00052) Eq 1-2.
    """

    def __init__(self, hidden: int, width: int, config: BottleneckConfig) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, width)
        self.activation = ACT2FN[config.activation]
        self.up = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.scaling = config.scaling

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        # The adapter may have another dtype than the base (float32 while it trains on a bfloat16 base).
        update: torch.Tensor = self.up(self.activation(self.down(states.to(self.down.weight.dtype))))
        if self.scaling != 1:
            update = update * self.scaling
        update = self.dropout(update)
        return update.to(states.dtype)


class BottleneckAdapter(nn.Module):
    """A whole adapter: a BottleneckLayer for each location of each layer, and optionally a Nice block.

    Tensors are named by structure, without the adapter's name, and equally for every base of one shape:
    ``layers.3.output.down.weight``, ``decoder_layers.0.attention.up.bias``, ``invertible.F.0.weight``.
    """

    def __init__(self, config: BottleneckConfig, places: Places) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleDict()
        self.decoder_layers = nn.ModuleDict()
        for layer in places.layers:
            if layer.number not in config.leave_out:
                self._add(layer)
        width = places.embedding_width
        self.invertible = Nice(width, config.invertible_reduction, config.activation) if config.invertible else None
        self.initialise()
        self._place(places)

    def _add(self, layer: Layer) -> None:
        width = self.config.width(layer.width, layer.number)
        group: nn.ModuleDict = getattr(self, layer.group)
        group[str(layer.index)] = nn.ModuleDict(
            {location: BottleneckLayer(layer.width, width, self.config) for location in self.config.locations()}
        )

    def at(self, layer: Layer, location: Location) -> BottleneckLayer | None:
        """The module at a location of a layer, or ``None`` if the adapter has none there."""
        group: nn.ModuleDict = getattr(self, layer.group)
        key = str(layer.index)
        modules = group[key] if key in group else None  # noqa: SIM401 (ModuleDict has no get)
        if not isinstance(modules, nn.ModuleDict) or location not in modules:
            return None
        module = modules[location]
        assert isinstance(module, BottleneckLayer)
        return module

    @torch.no_grad()
    def initialise(self, key: str = "") -> None:
        """Weights N(0, 0.02), biases 0, from generators seeded by SHA-256(key, tensor name): one key and shape always
        give the same start."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
                continue
            values = torch.empty(parameter.shape).normal_(0, 0.02, generator=seeded(f"{key}\n{name}"))
            parameter.copy_(values.to(parameter.dtype))

    def _place(self, places: Places) -> None:
        """Move each part to the dtype and device of its module: a model may be spread over devices."""
        for layer in places.layers:
            group: nn.ModuleDict = getattr(self, layer.group)
            if str(layer.index) in group:
                _like(group[str(layer.index)], layer.module)
        if self.invertible is not None:
            _like(self.invertible, places.embedding.module)

    def load(self, tensors: Mapping[str, torch.Tensor], where: object = "adapter") -> None:
        """Copy all tensors in. Raises: AdapterFileError for missing or unexpected tensors,
        IncompatibleAdaptersError for other shapes."""
        parameters = dict(self.named_parameters())
        fix = "use a base with the number and width of layers that the adapter was trained with"
        require_same(tensors, parameters, where, fix=fix, unlike=IncompatibleAdaptersError)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])


def _like(module: nn.Module, model_part: nn.Module) -> None:
    parameter = next((item for item in model_part.parameters() if item.is_floating_point()), None)
    if parameter is not None:
        # Offloaded parameters are on "meta" between calls; the adapter's must have data.
        device = None if parameter.device.type == "meta" else parameter.device
        module.to(device=device, dtype=parameter.dtype)
