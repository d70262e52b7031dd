"""The places of bottleneck and invertible adapters in a model, found by module types and tree shape, never by names.

A *layer* is an item of a list of modules of one type, each with a norm as wide as the hidden states and two or more
matrices. A stack of layers is *pre-norm* when its owner has one more norm after it (Llama, T5, mBART), else
*post-norm* (BERT, BART), where nothing is left to normalise. With x a sub-layer's output, r its residual and s = x + r,
an adapter changes s (``reuse_norm``: the norm's input in a post-norm layer, the layer's output in a pre-norm one) or x.
No place keeps state between modules, so compiling, checkpointing and parallel wrappers see ordinary hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import nn

from adamergex.adapters.bottleneck.language_part import in_language_part
from adamergex.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedModel

Location = Literal["attention", "output"]
Group = Literal["layers", "decoder_layers"]
LOCATIONS: tuple[Location, ...] = ("attention", "output")
GROUPS: tuple[Group, ...] = ("layers", "decoder_layers")


class Place(NamedTuple):
    """A module whose input or output (``side``) an adapter changes; the adapter reads it after ``norm``."""

    module: nn.Module
    side: Literal["input", "output"]
    norm: nn.Module | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """One transformer layer. ``number`` continues from encoder to decoder; ``index`` counts within the stack."""

    group: Group
    index: int
    number: int
    path: str
    module: nn.Module
    width: int
    pre_norm: bool

    def place(self, location: Location, reuse_norm: bool) -> Place:
        """The place after attention, or after the feed-forward ("output").

        Raises: ModelError when it cannot be identified, or does not exist.
        """
        if not reuse_norm:
            return Place(self._exit(location), "output")
        if not self.pre_norm:
            norm = self._norms()[0 if location == "attention" else -1][1]
            return Place(norm, "input", norm)
        if location == "output":
            return Place(self.module, "output")
        raise ModelError(
            "this pre-norm layer has no place after attention for an adapter that reuses residual and norm",
            where=self.path,
            expected="original_ln_before = false for an adapter after attention (houlsby)",
            fix="use the pfeiffer configuration, or houlsby as it is",
        )

    def sub_layer(self, location: Location) -> str:
        """Path, within the layer, of the module that holds this adapter's tensors in AdapterHub's files."""
        nested = self._sub_layers()
        if nested:
            return f"{nested[0 if location == 'attention' else -1][0]}.adapters"
        parent = "" if self.pre_norm else self._norms()[0 if location == "attention" else -1][0].rpartition(".")[0]
        return f"{parent}.adapters" if parent else f"{location}_adapters.adapters"

    def _norms(self) -> list[tuple[str, nn.Module]]:
        norms = [(name, module) for name, module in self.module.named_modules() if is_norm(module, self.width)]
        if len(norms) < 2:
            raise self._unclear(f"two norms {self.width} wide, of attention and of the feed-forward", norms)
        return norms

    def _sub_layers(self) -> list[tuple[str, nn.Module]]:
        """T5's shape: the layer is a list of sub-layers, each with its norm and its dropout."""
        for name, child in self.module.named_children():
            alike = isinstance(child, nn.ModuleList) and all(_direct_norms(item, self.width) for item in child)
            if alike and len(items := list(child.children())) >= 2:
                return [(f"{name}.{index}", item) for index, item in enumerate(items)]
        return []

    def _exit(self, location: Location) -> nn.Module:
        """The module whose output is x: the sub-layer's dropout if that is a module."""
        sub_layers, last = self._sub_layers(), 0 if location == "attention" else -1
        if sub_layers:
            return self._dropout(sub_layers[last][1])
        direct = _direct_norms(self.module, self.width)
        if self.pre_norm and len(direct) == 4:  # Gemma 2: (before, after) of attention, then of the feed-forward
            return direct[1 if location == "attention" else 3]
        if not direct:  # BERT: the norm is in a separate module, after dense and dropout
            name = self._norms()[last][0].rpartition(".")[0]
            return self._dropout(self.module.get_submodule(name))
        workers = [child for child in self.module.children() if _matrices(child) and child not in direct]
        module = workers[last] if len(workers) >= 2 and len(direct) >= 2 else None
        if module is None or ("attention" in type(module).__name__.lower()) != (location == "attention"):
            expected = "an attention module first and a feed-forward module last"
            raise self._unclear(expected, self.module.named_children())
        return module

    def _dropout(self, module: nn.Module) -> nn.Module:
        dropouts = [child for child in module.children() if isinstance(child, nn.Dropout)]
        if len(dropouts) != 1:
            raise self._unclear("one dropout at the end of the sub-layer", module.named_children())
        return dropouts[0]

    def _unclear(self, expected: str, found: Iterable[tuple[str, nn.Module]]) -> ModelError:
        names = [f"{name} ({type(module).__name__})" for name, module in found]
        return ModelError(
            "the place of an adapter in this layer cannot be identified",
            where=self.path,
            found=", ".join(names) or "none",
            expected=expected,
            fix="use the pfeiffer configuration on a pre-norm model, or another base",
        )


@dataclass(frozen=True, eq=False)
class Places:
    """All places of a model. ``embedding``: the output of the embeddings; ``head``: the output projection, if any.

    ``invertible_path``: the module that holds the invertible adapter in AdapterHub's files.
    """

    layers: tuple[Layer, ...]
    embedding: Place
    embedding_width: int
    head: nn.Module | None
    invertible_path: str

    def layer(self, group: str, index: int) -> Layer | None:
        """The layer at an index of a group; a model with one stack has it under either group's name."""
        groups = {layer.group for layer in self.layers}
        group = next(iter(groups)) if len(groups) == 1 else group
        return next((layer for layer in self.layers if layer.group == group and layer.index == index), None)


def find_places(model: PreTrainedModel) -> Places:
    """The places of a transformers model.

    Raises: ModelError when the model's structure does not show one stack of layers (two for an encoder-decoder), or its
    embeddings.
    """
    config = model.config.get_text_config()
    width = int(config.hidden_size)
    stacks = list(_stacks(model, width))
    if len(stacks) != (expected := 2 if _two_stacks(model) else 1):
        raise ModelError(
            "the transformer layers cannot be found",
            where=type(model).__name__,
            found=", ".join(path for path, _ in stacks) or "no such list",
            expected=f"{expected} list(s) of alike layers, each with a norm {width} wide and two or more matrices",
            fix="use a text encoder, decoder or encoder-decoder; of a multimodal model, its language model",
        )
    layers: list[Layer] = []
    for group, (path, items) in zip(GROUPS, stacks, strict=False):
        owner = model.get_submodule(path.rpartition(".")[0])
        pre_norm = any(is_norm(child, width) and "emb" not in name.lower() for name, child in owner.named_children())
        for index, item in enumerate(items):
            layers.append(Layer(group, index, len(layers), f"{path}.{index}", item, width, pre_norm))
    embedding, embedding_width = _embedding(model, stacks[0][0], width)
    owner_path = stacks[0][0].rpartition(".")[0] if expected == 2 else _backbone_path(model)
    return Places(tuple(layers), embedding, embedding_width, _head(model), owner_path)


def is_norm(module: nn.Module, width: int) -> bool:
    """Whether a module is a norm by shape: a weight (width,), at most a bias like it, and nothing inside."""
    parameters = dict(module.named_parameters(recurse=False))
    alike = all(parameter.ndim == 1 and parameter.numel() == width for parameter in parameters.values())
    return "weight" in parameters and set(parameters) <= {"weight", "bias"} and alike and not any(module.children())


def _direct_norms(module: nn.Module, width: int) -> list[nn.Module]:
    return [child for child in module.children() if is_norm(child, width)]


def _matrices(module: nn.Module) -> int:
    return sum(parameter.ndim == 2 for parameter in module.parameters())


def _stacks(model: nn.Module, width: int) -> Iterator[tuple[str, nn.ModuleList]]:
    paths: list[str] = []
    is_language = in_language_part(model)
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in paths):
            continue
        if not is_language(path):
            continue
        items = list(module)
        if len({type(item) for item in items}) == 1 and all(_is_layer(item, width) for item in items):
            paths.append(path)
            yield path, module


def _is_layer(module: nn.Module, width: int) -> bool:
    return _matrices(module) >= 2 and any(is_norm(inner, width) for inner in module.modules())


def _two_stacks(model: PreTrainedModel) -> bool:
    # A decoder or encoder taken out of an encoder-decoder keeps that config.
    return bool(model.config.is_encoder_decoder) and len(list(_stacks(model, model.config.hidden_size))) > 1


def _embedding(model: PreTrainedModel, stack: str, width: int) -> tuple[Place, int]:
    """The output of the module with embeddings, norm and dropout (BERT), else of the norm (BART), else of the token
    embeddings (Llama; T5: the encoder's)."""
    owner_path = stack.rpartition(".")[0]
    owner = model.get_submodule(owner_path)
    for name, child in owner.named_children():
        if is_norm(child, width) and "emb" in name.lower():
            return Place(child, "output"), width
    tokens = [child for child in owner.children() if isinstance(child, nn.Embedding)]
    token = tokens[0] if tokens else model.get_input_embeddings()
    if not isinstance(token, nn.Embedding):
        raise ModelError(
            "the token embeddings cannot be found",
            where=type(model).__name__,
            found=type(token).__name__,
            expected="an nn.Embedding from get_input_embeddings()",
            fix="use another base, or an adapter without an invertible part",
        )
    paths = [name for name, module in model.named_modules(remove_duplicate=False) if module is token]
    parent = model.get_submodule(paths[0].rpartition(".")[0])
    norms = [child for child in parent.children() if is_norm(child, token.embedding_dim)]
    if norms and not any(isinstance(inner, nn.ModuleList) for inner in parent.modules()):
        return Place(parent, "output"), token.embedding_dim
    if tokens and len(paths) > 2:  # encoder and decoder share the module (T5, resized), but not the first layer
        return Place(model.get_submodule(f"{stack}.0"), "input"), width
    return Place(token, "output"), token.embedding_dim


def _head(model: PreTrainedModel) -> nn.Module | None:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head if isinstance(head, nn.Module) else None


def _backbone_path(model: PreTrainedModel) -> str:
    prefix = model.base_model_prefix
    return prefix if prefix and hasattr(model, prefix) else ""
