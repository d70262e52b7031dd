"""Weights by layer: one number for every module, one a layer, or the layers that are swapped."""

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
    """Layer swapping: weight 1 at the ``bottom`` and ``top`` layers, 1/2 at the ``transition`` layers beside each of
    the two (the paper leaves their weights open), 0 between. Source: 2410.01335, section 3."""

    bottom: int
    top: int
    transition: int = 0

    def weights(self, count: int) -> tuple[float, ...]:
        """The weight of each of ``count`` layers. Raises ConfigError: they are more than there are."""
        middle = count - self.bottom - self.top - 2 * self.transition
        if min(self) < 0 or middle < 0 or not self.bottom + self.top:
            raise ConfigError(
                "these layers cannot be swapped",
                where="weight",
                found=f"bottom {self.bottom}, top {self.top}, transition {self.transition} on both sides",
                expected=f"some of the adapter's {count} layers, each once",
                fix="swap fewer layers",
            )
        between = (0.5,) * self.transition
        return (1.0,) * self.bottom + between + (0.0,) * middle + between + (1.0,) * self.top


Weight = float | Sequence[float] | Swap
"""λ of a merge: one for all modules, one a layer, or 1 and 0 as layers are swapped."""


def numbered(modules: Iterable[str]) -> tuple[dict[str, int], int]:
    """The layer of each module, from 0 and an encoder's before its decoder's, and how many layers there are.

    A module that stands in no layer (invertible adapters, at the embeddings) counts to the first. The vision and audio
    towers of a multimodal model have no layers of a language: their modules are left out.
    """
    found = {module: _NUMBER.match(module) for module in modules if not in_tower(module)}
    sizes: dict[str, int] = {}
    for match in found.values():
        if match:
            sizes[match["stack"]] = max(sizes.get(match["stack"], 0), int(match["layer"]) + 1)
    begins, total = {}, 0
    for stack in sorted(sizes, key=lambda name: ("decoder" in name, name)):
        begins[stack] = total
        total += sizes[stack]
    return {name: begins[match["stack"]] + int(match["layer"]) if match else 0 for name, match in found.items()}, total


def in_tower(module: str) -> bool:
    """Whether a module's path leads through the part of a model that reads images or sound."""
    return any(not _TOWERS.isdisjoint(part.lower().split("_")) for part in module.split("."))


def spread(weights: Sequence[T], modules: Iterable[str]) -> dict[str, T | float]:
    """The weight of every module, by its layer; 0 in vision and audio towers, which stay as the task's adapter has
    them."""
    names = list(modules)
    places, _ = numbered(names)
    return {name: weights[places[name]] if name in places else 0.0 for name in names}


def by_layer(weight: Weight, modules: Iterable[str]) -> tuple[float, ...] | None:
    """The weights of an adapter's layers, where a weight has some. Raises ConfigError: not one a layer."""
    if isinstance(weight, int | float):
        return None
    _, count = numbered(modules)
    weights = weight.weights(count) if isinstance(weight, Swap) else tuple(map(float, weight))
    if len(weights) != count:
        raise ConfigError(
            "there is not one weight per layer",
            where="weight",
            found=f"{len(weights)} weights",
            expected=f"{count}, one for each layer of the adapter",
            fix="give one weight, or one per layer",
        )
    return weights


def by_module(weight: Weight, modules: Iterable[str]) -> Mapping[str, float]:
    """The weight of every module. Raises ConfigError: not one a layer."""
    names = list(modules)
    weights = by_layer(weight, names)
    if weights is None:
        assert isinstance(weight, int | float)
        return dict.fromkeys(names, float(weight))
    return spread(weights, names)


def numbers(weight: object) -> list[float] | None:
    """The finite numbers that a weight consists of; None where it has others, or none."""
    if isinstance(weight, Swap):
        return [0.0, 1.0]
    listed = list(weight) if isinstance(weight, list | tuple) else [weight]
    fine = [one for one in listed if isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)]
    return fine if fine and len(fine) == len(listed) else None
