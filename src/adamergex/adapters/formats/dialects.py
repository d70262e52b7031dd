"""The dialects of AdapterHub's files: versions of ``adapter_config.json`` and of tensor names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adamergex.adapters.bottleneck.modules import BottleneckConfig
from adamergex.errors import AdapterFileError

# The loader of ``adapters`` reads the activations of files without a version as those of 2020.
VERSION = "adapters.1.3.0"

_NAMED = {
    "seq_bn": BottleneckConfig.pfeiffer(),
    "pfeiffer": BottleneckConfig.pfeiffer(),
    "double_seq_bn": BottleneckConfig.houlsby(),
    "houlsby": BottleneckConfig.houlsby(),
}
# Settings that do not change what a supported adapter computes.
_CONSTANT: dict[str, Any] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "is_parallel": False,
    "learn_phm": True,
    "ln_after": False,
    "ln_before": False,
    "original_ln_after": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "residual_before_ln": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
# Settings that change the computation, with the only supported values.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "architecture": (None, "bottleneck", "adapter"),
    "is_parallel": (False,),
    "phm_layer": (False,),
    "use_gating": (False,),
    "ln_before": (False,),
    "ln_after": (False,),
    "cross_adapter": (False,),
    "new_attention_norm": (False,),
    "original_ln_after": (True,),
    "residual_before_ln": (True,),
    "stochastic_depth": (0,),
    "inv_adapter": (None, "nice"),
}
_RENAMED_UNVERSIONED = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_STRING = re.compile(r"(?P<name>[\w+]+)(?:\[(?P<settings>[^\[\]]*)\])?")
_KEY = re.compile(
    r"(?P<path>.+?)\.(?:(?P<kind>attention_adapters|output_adapters)\.)?"
    r"(?P<list>adapters|(?:attention|layer)_text_(?:task|lang)_adapters)\.(?P<name>[^.]+)\."
    r"adapter_(?P<part>down\.0|down|up)\.(?P<tensor>weight|bias)"
)
_INVERTIBLE = re.compile(
    r"(?:.*\.)?invertible_(?:lang_)?adapters\.(?P<name>[^.]+)\.(?P<tensor>[FG]\.[02]\.(?:weight|bias))"
)
_OURS = re.compile(
    r"(?:decoder_)?layers\.\d+\.(?:attention|output)\.(?:down|up)\.(?:weight|bias)"
    r"|invertible\.[FG]\.[02]\.(?:weight|bias)"
)
_NUMBERED = re.compile(r"(?:^|\.)(\w+)\.(\d+)(?=\.|$)")


def read_config(raw: Mapping[str, Any], where: object) -> BottleneckConfig:
    """Parse an ``adapter_config.json``: nested or flat, a dictionary, a name such as ``pfeiffer+inv`` or a string
    such as ``seq_bn_inv[reduction_factor=2]``.

    Raises: AdapterFileError for another kind of adapter, or a setting that is not supported.
    """
    if "peft_type" in raw:
        raise AdapterFileError(
            "this is a PEFT adapter, not a bottleneck adapter",
            where=where,
            found=raw["peft_type"],
            fix="load it with PEFT: adamergex.adapters.peft_backed.load",
        )
    config, versioned = raw.get("config", raw), "version" in raw
    if isinstance(config, str):
        config_map = raw.get("config_map")
        by_hash = isinstance(config_map, dict) and config in config_map
        versioned = versioned or not by_hash  # such strings are newer than the renaming of the activations
        config = config_map[config] if isinstance(config_map, dict) and by_hash else _from_string(config, where)
    if isinstance(config, BottleneckConfig):
        return config
    if not isinstance(config, dict):
        raise _unsupported(where, "config", config, "a dictionary, or a name")
    settings = {str(key).lower(): value for key, value in config.items()}
    nested = settings.pop("invertible_adapter", None)
    if isinstance(nested, dict):
        settings.setdefault("inv_adapter", nested.get("block_type"))
        settings.setdefault("inv_adapter_reduction_factor", nested.get("reduction_factor"))
    _require_types(settings, where)
    if not versioned and settings.get("non_linearity") is not None:
        settings["non_linearity"] = _RENAMED_UNVERSIONED.get(settings["non_linearity"], settings["non_linearity"])
    for key, allowed in _REQUIRED.items():
        # residual_before_ln has an effect only where the block's norm is reused.
        applies = key != "residual_before_ln" or settings.get("original_ln_before", False)
        if key in settings and settings[key] not in allowed and applies:
            raise _unsupported(where, key, settings[key], " or ".join(map(repr, allowed)))
    return _from_settings(settings, where)


def write_config(config: BottleneckConfig) -> dict[str, Any]:
    """The configuration as AdapterHub writes it, with every key, so that it does not depend on a version's defaults."""
    return _CONSTANT | {
        "dropout": config.dropout,
        "inv_adapter": "nice" if config.invertible else None,
        "inv_adapter_reduction_factor": config.invertible_reduction if config.invertible else None,
        "leave_out": list(config.leave_out),
        "mh_adapter": config.attention,
        "non_linearity": "leakyrelu" if config.activation == "leaky_relu" else config.activation,
        "original_ln_before": config.reuse_norm,
        "output_adapter": config.output,
        "reduction_factor": dict(config.reduction) if isinstance(config.reduction, Mapping) else config.reduction,
        "scaling": float(config.scaling),
    }


def canonical(key: str) -> tuple[str | None, str] | None:
    """(the adapter's name in the key, our name of the tensor), or ``None`` for an unknown key.

    Layers are identified by their number: ``roberta.encoder.layer.3.output.adapters.sw.adapter_down.0.weight`` and
    ``model.layers.3.output_adapters.adapters.sw.adapter_down.0.weight`` are both ``layers.3.output.down.weight``.
    """
    if _OURS.fullmatch(key):
        return None, key
    if match := _INVERTIBLE.fullmatch(key):
        return match["name"], f"invertible.{match['tensor']}"
    if not (match := _KEY.fullmatch(key)):
        return None
    numbers = _NUMBERED.findall(match["path"])
    if not numbers or "cross" in match["path"]:
        return None
    group = "decoder_layers" if re.search(r"(?:^|\.)decoder\.", match["path"]) else "layers"
    # T5: block.<layer>.layer.<sub-layer>; the first sub-layer is attention, a decoder's second is cross-attention.
    in_attention = "attention" in match["path"] or match["kind"] == "attention_adapters"
    in_attention = in_attention or match["list"].startswith("attention") or (len(numbers) > 1 and numbers[1][1] == "0")
    if len(numbers) > 1 and group == "decoder_layers" and numbers[1][1] == "1":
        return None
    location, part = "attention" if in_attention else "output", match["part"].removesuffix(".0")
    return match["name"], f"{group}.{numbers[0][1]}.{location}.{part}.{match['tensor']}"


# Settings with a required type: ``bool()`` and ``float()`` would accept other values.
_FLAGS = ("output_adapter", "mh_adapter", "original_ln_before", "original_ln_after")
_NUMBERS = ("scaling", "dropout", "inv_adapter_reduction_factor")


def _require_types(settings: Mapping[str, Any], where: object) -> None:
    for name in _FLAGS:
        if not isinstance(settings.get(name), bool | None):
            raise _unsupported(where, name, repr(settings[name]), "true or false")
    for name in _NUMBERS:
        if not _is_number(settings.get(name, 0)) and settings[name] is not None:
            raise _unsupported(where, name, repr(settings[name]), "a number")
    activation, left_out = settings.get("non_linearity"), settings.get("leave_out")
    if not isinstance(activation, str | None):
        raise _unsupported(where, "non_linearity", repr(activation), "a name")
    if left_out is not None and not (isinstance(left_out, list) and all(type(number) is int for number in left_out)):
        raise _unsupported(where, "leave_out", repr(left_out), "a list of layer numbers")
    reduction = settings.get("reduction_factor", 16)
    sizes = list(reduction.values()) if isinstance(reduction, dict) else [reduction]
    if not sizes or not all(_is_number(size) and size > 0 for size in sizes):
        raise _unsupported(where, "reduction_factor", repr(reduction), "a number above 0, or one by layer")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _from_string(text: str, where: object) -> BottleneckConfig | dict[str, Any]:
    match = _STRING.fullmatch(text.strip())
    name = match["name"] if match else ""
    plain = re.sub(r"(\+inv|_inv)$", "", name)
    if not match or plain not in _NAMED:
        raise _unsupported(where, "config", repr(text), f"one of {', '.join(_NAMED)}, with or without _inv or +inv")
    named = replace(_NAMED[plain], invertible=plain != name)
    if not match["settings"]:
        return named
    return write_config(named) | {key: _value(value) for key, value in _pairs(match["settings"], where)}


def _pairs(text: str, where: object) -> list[tuple[str, str]]:
    pairs = [item.partition("=") for item in text.split(",") if item.strip()]
    if not all(separator for _, separator, _ in pairs):
        raise _unsupported(where, "config", text, "key=value, key=value")
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _value(text: str) -> Any:
    if text in ("true", "True", "false", "False"):
        return text in ("true", "True")
    if text in ("null", "None"):
        return None
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def _from_settings(settings: Mapping[str, Any], where: object) -> BottleneckConfig:
    activation = str(settings.get("non_linearity", "relu")).lower()
    reduction = settings.get("reduction_factor", 16)
    scaling = settings.get("scaling", 1.0)
    if isinstance(scaling, str):
        raise _unsupported(where, "scaling", repr(scaling), "a number")
    if "mh_adapter" not in settings and "output_adapter" not in settings:
        raise _unsupported(where, "config", sorted(settings)[:6], "mh_adapter and output_adapter")
    try:
        return BottleneckConfig(
            reduction=_numbers(reduction) if isinstance(reduction, dict) else float(reduction),
            activation="leaky_relu" if activation == "leakyrelu" else activation,
            output=bool(settings.get("output_adapter", True)),
            attention=bool(settings.get("mh_adapter", False)),
            reuse_norm=bool(settings.get("original_ln_before", False)),
            leave_out=tuple(int(number) for number in settings.get("leave_out") or ()),
            dropout=float(settings.get("dropout", 0.0)),
            scaling=float(scaling),
            invertible=settings.get("inv_adapter") is not None,
            invertible_reduction=float(settings.get("inv_adapter_reduction_factor") or 2),
        )
    except (TypeError, ValueError) as error:
        raise _unsupported(where, "config", error, "numbers where numbers belong") from error


def _numbers(reduction: Mapping[str, Any]) -> dict[str, float]:
    return {str(layer): float(value) for layer, value in reduction.items()}


def _unsupported(where: object, key: str, found: object, expected: object) -> AdapterFileError:
    return AdapterFileError(
        "this adapter's configuration is not supported",
        where=f"{where}: {key}",
        found=found,
        expected=expected,
        fix="use a sequential bottleneck adapter (pfeiffer/seq_bn or houlsby/double_seq_bn, with or without inv)",
    )
