"""An independent implementation of adapters: each architecture's block written out by hand, in float64.

It shares no code with the library: the blocks of a copy of the model get a forward of their own, in the notation of the
golden values' README (x: sub-layer output, r: its residual), and take adapter tensors from a plain dictionary.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

Tensors = Mapping[str, torch.Tensor]


@dataclass
class Plain:
    """One adapter of a stack: its tensors, and whether it reads LN(x + r) or x."""

    tensors: Tensors
    pfeiffer: bool
    act: Any = torch.relu

    def up(self, site: str, h: torch.Tensor) -> torch.Tensor | None:
        if f"{site}.down.weight" not in self.tensors:
            return None
        t = self.tensors
        down = h @ t[f"{site}.down.weight"].T + t[f"{site}.down.bias"]
        return self.act(down) @ t[f"{site}.up.weight"].T + t[f"{site}.up.bias"]


def adapted(stack: Sequence[Plain], site: str, x: torch.Tensor, r: torch.Tensor, norm: Any = None) -> torch.Tensor:
    """What takes the place of x."""
    h = x
    for item in stack:
        h0 = h
        z = h if not item.pfeiffer else h + r if norm is None else norm(h + r)
        change = item.up(site, z)
        h = h0 if change is None else change + h0
    return h


def nice(tensors: Tensors, e: torch.Tensor, act: Any, reverse: bool = False) -> torch.Tensor:
    half = e.shape[-1] // 2
    e1, e2 = e[..., :half], e[..., half:]

    def f(name: str, v: torch.Tensor) -> torch.Tensor:
        inner = act(v @ tensors[f"invertible.{name}.0.weight"].T + tensors[f"invertible.{name}.0.bias"])
        return inner @ tensors[f"invertible.{name}.2.weight"].T + tensors[f"invertible.{name}.2.bias"]

    if reverse:
        e2 = e2 - f("G", e1)
        e1 = e1 - f("F", e2)
    else:
        e1 = e1 + f("F", e2)
        e2 = e2 + f("G", e1)
    return torch.cat([e1, e2], -1)


def reference(model: PreTrainedModel, kind: str, stack: Sequence[Plain]) -> PreTrainedModel:
    """A float64 copy of the model that computes with the stack."""
    copied = copy.deepcopy(model).double()
    wide = [Plain({k: v.double() for k, v in item.tensors.items()}, item.pfeiffer, item.act) for item in stack]
    PATCHES[kind](copied, wide)
    if wide and any(name.startswith("invertible") for name in wide[0].tensors):
        first, (embedding, head) = wide[0], EMBEDDINGS[kind](copied)
        _after(embedding, lambda e: nice(first.tensors, e, first.act))
        _before(head, lambda h: nice(first.tensors, h, first.act, reverse=True))
    return copied


def _after(module: Any, change: Any) -> None:
    old = module.forward
    module.forward = lambda *args, **kwargs: change(old(*args, **kwargs))


def _before(module: Any, change: Any) -> None:
    old = module.forward
    module.forward = lambda h: old(change(h))


def _bert(model: Any, stack: Sequence[Plain]) -> None:
    for i, layer in enumerate(model.base_model.encoder.layer):
        for where, module in (("attention", layer.attention.output), ("output", layer.output)):

            def forward(self: Any, hidden: Any, residual: Any, site: str = f"layers.{i}.{where}") -> Any:
                x = adapted(stack, site, self.dense(hidden), residual, self.LayerNorm)
                return self.LayerNorm(x + residual)

            module.forward = types.MethodType(forward, module)


def _distilbert(model: Any, stack: Sequence[Plain]) -> None:
    for i, layer in enumerate(model.base_model.transformer.layer):

        def forward(self: Any, hidden: Any, attention_mask: Any = None, i: int = i, **kwargs: Any) -> Any:
            x = self.attention(hidden, attention_mask=attention_mask, **kwargs)[0]
            r = self.sa_layer_norm(adapted(stack, f"layers.{i}.attention", x, hidden, self.sa_layer_norm) + hidden)
            x = self.ffn(r)
            return self.output_layer_norm(adapted(stack, f"layers.{i}.output", x, r, self.output_layer_norm) + r)

        layer.forward = types.MethodType(forward, layer)


def _decoder(model: Any, stack: Sequence[Plain]) -> None:
    for i, layer in enumerate(model.base_model.layers):

        def forward(self: Any, hidden: Any, i: int = i, **kwargs: Any) -> Any:
            x = self.self_attn(hidden_states=self.input_layernorm(hidden), **kwargs)[0]
            sandwich = hasattr(self, "pre_feedforward_layernorm")
            x = self.post_attention_layernorm(x) if sandwich else x
            r = hidden + adapted(stack, f"layers.{i}.attention", x, hidden)
            before = self.pre_feedforward_layernorm if sandwich else self.post_attention_layernorm
            x = self.mlp(before(r))
            x = self.post_feedforward_layernorm(x) if sandwich else x
            return r + adapted(stack, f"layers.{i}.output", x, r)

        layer.forward = types.MethodType(forward, layer)


def _t5(model: Any, stack: Sequence[Plain]) -> None:
    for group, tower in (("layers", model.encoder), ("decoder_layers", model.decoder)):
        for i, block in enumerate(tower.block):

            def attend(self: Any, hidden: Any, attention_mask: Any = None, site: str = "", **kwargs: Any) -> Any:
                x, bias, weights = self.SelfAttention(self.layer_norm(hidden), mask=attention_mask, **kwargs)
                return hidden + adapted(stack, self.site, x, hidden), bias, weights

            def forward(self: Any, hidden: Any) -> Any:
                return hidden + adapted(stack, self.site, self.DenseReluDense(self.layer_norm(hidden)), hidden)

            block.layer[0].site, block.layer[-1].site = f"{group}.{i}.attention", f"{group}.{i}.output"
            block.layer[0].forward = types.MethodType(attend, block.layer[0])
            block.layer[-1].forward = types.MethodType(forward, block.layer[-1])


def _bart(model: Any, stack: Sequence[Plain], pre: bool = False) -> None:
    def sub_layer(self: Any, site: str, hidden: Any, norm: Any, run: Any) -> Any:
        x = run(norm(hidden) if pre else hidden)
        x = adapted(stack, site, x, hidden, None if pre else norm)
        return hidden + x if pre else norm(hidden + x)

    def forward(
        self: Any, hidden: Any, mask: Any = None, encoder: Any = None, encoder_attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        def attend(h: Any) -> Any:
            return self.self_attn(hidden_states=h, attention_mask=mask, **kwargs)[0]

        hidden = sub_layer(self, f"{self.site}.attention", hidden, self.self_attn_layer_norm, attend)
        if encoder is not None:
            z = self.encoder_attn_layer_norm(hidden) if pre else hidden
            x = self.encoder_attn(
                hidden_states=z, key_value_states=encoder, attention_mask=encoder_attention_mask, **kwargs
            )[0]
            hidden = hidden + x if pre else self.encoder_attn_layer_norm(hidden + x)

        def feed(h: Any) -> Any:
            return self.fc2(self.activation_fn(self.fc1(h)))

        return sub_layer(self, f"{self.site}.output", hidden, self.final_layer_norm, feed)

    for group, tower in (("layers", model.model.encoder), ("decoder_layers", model.model.decoder)):
        for i, layer in enumerate(tower.layers):
            layer.site = f"{group}.{i}"
            layer.forward = types.MethodType(forward, layer)


def _mbart(model: Any, stack: Sequence[Plain]) -> None:
    _bart(model, stack, pre=True)


_DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
PATCHES: dict[str, Any] = {
    **dict.fromkeys(("bert", "xlm-roberta", "electra"), _bert),
    **dict.fromkeys(_DECODERS, _decoder),
    "distilbert": _distilbert,
    "t5": _t5,
    "mt5": _t5,
    "bart": _bart,
    "mbart": _mbart,
}
EMBEDDINGS: dict[str, Any] = {
    "bert": lambda m: (m.bert.embeddings, m.cls.predictions.decoder),
    "xlm-roberta": lambda m: (m.roberta.embeddings, m.lm_head.decoder),
    "distilbert": lambda m: (m.distilbert.embeddings, m.vocab_projector),
    "electra": lambda m: (m.electra.embeddings, m.generator_lm_head),
    **dict.fromkeys(_DECODERS, lambda m: (m.model.embed_tokens, m.lm_head)),
    **dict.fromkeys(("t5", "mt5"), lambda m: (m.encoder.embed_tokens, m.lm_head)),
    **dict.fromkeys(("bart", "mbart"), lambda m: (m.model.encoder.layernorm_embedding, m.lm_head)),
}
