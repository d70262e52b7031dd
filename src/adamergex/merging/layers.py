"""Weights by layer: one number for all modules, one per layer, or the layers to swap."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from adamergex.errors import ConfigError

_TOWERS = frozenset(["vision", "visual", "image", "images", "video", "audio", "speech", "vq", "vqmodel"])
_NUMBER = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d+)(?:\.|$)")

T = TypeVar("T")


class Swap(NamedTuple):
    """Layer swapping: weight 1 in the ``bottom`` and ``top`` layers, 1/2 in ``transition`` layers next to each (the
    paper does not fix their weights), 0 between. Source: 2410.01335, section 3."""

    bottom: int
    top: int
    transition: int = 0

    def weights(self, count: int) -> tuple[float, ...]:
        """The weight of each of ``count`` layers. Raises: ConfigError for more layers than the adapter has."""
        middle = count - self.bottom - self.top - 2 * self.transition
        if min(self) < 0 or middle < 0 or not self.bottom + self.top:
            raise ConfigError(
                "these layers cannot be swapped",
                where="weight",
                found=f"bottom {self.bottom}, top {self.top}, transition {self.transition} on both sides",
                expected=f"some of the adapter's {count} layers, without overlap",
                fix="swap fewer layers",
            )
        between = (0.5,) * self.transition
        return (1.0,) * self.bottom + between + (0.0,) * middle + between + (1.0,) * self.top


Weight = float | Sequence[float] | Swap
"""λ of a merge: one for all modules, one per layer, or 1 and 0 for layer swapping."""


def numbered(modules: Iterable[str]) -> tuple[dict[str, int], int]:
    """The layer of each module, from 0 with the encoder's before the decoder's, and the number of layers.

    A module outside the layers (invertible adapters, at the embeddings) belongs to the first. Modules in the vision
    and audio towers of a multimodal model are left out.
    """
    matches = {module: _NUMBER.match(module) for module in modules if not in_tower(module)}
    sizes: dict[str, int] = {}
    for match in matches.values():
        if match:
            sizes[match["stack"]] = max(sizes.get(match["stack"], 0), int(match["layer"]) + 1)
    starts, total = {}, 0
    for stack in sorted(sizes, key=lambda name: ("decoder" in name, name)):
        starts[stack] = total
        total += sizes[stack]
    layers = {name: starts[match["stack"]] + int(match["layer"]) if match else 0 for name, match in matches.items()}
    return layers, total


def in_tower(module: str) -> bool:
    """Whether a module is in the part of a model that reads images or sound."""
    return any(not _TOWERS.isdisjoint(part.lower().split("_")) for part in module.split("."))


def spread(weights: Sequence[T], modules: Iterable[str]) -> dict[str, T | float]:
    """The weight of every module by its layer; 0 in vision and audio towers, which stay the task adapter's."""
    names = list(modules)
    layers, _ = numbered(names)
    return {name: weights[layers[name]] if name in layers else 0.0 for name in names}


def by_layer(weight: Weight, modules: Iterable[str]) -> tuple[float, ...] | None:
    """The weights of an adapter's layers; None for one weight. Raises: ConfigError unless there is one per layer."""
    if isinstance(weight, int | float):
        return None
    _, count = numbered(modules)
    weights = weight.weights(count) if isinstance(weight, Swap) else tuple(map(float, weight))
    if len(weights) != count:
        raise ConfigError(
            "the number of weights differs from the number of layers",
            where="weight",
            found=f"{len(weights)} weights",
            expected=f"{count}, one for each layer of the adapter",
            fix="give one weight, or one per layer",
        )
    return weights


def by_module(weight: Weight, modules: Iterable[str]) -> Mapping[str, float]:
    """The weight of every module. Raises: ConfigError unless there is one per layer."""
    names = list(modules)
    weights = by_layer(weight, names)
    if weights is None:
        assert isinstance(weight, int | float)
        return dict.fromkeys(names, float(weight))
    return spread(weights, names)


def numbers(weight: object) -> list[float] | None:
    """The numbers in a weight; None if it is empty or has other values than finite numbers."""
    if isinstance(weight, Swap):
        return [0.0, 1.0]
    values = list(weight) if isinstance(weight, list | tuple) else [weight]
    real = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return real if len(real) == len(values) > 0 and all(map(math.isfinite, real)) else None
