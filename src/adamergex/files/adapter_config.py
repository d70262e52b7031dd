"""Strict reading of ``adapter_config.json``: known fields have their type, and no field names code.

Unknown fields are kept as plain JSON. A field that would make PEFT or transformers import a module named in the file is
refused (``megatron_core``) or dropped (``auto_mapping`` of other libraries, ``auto_map``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adamergex.errors import AdapterFileError
from adamergex.files import inputs

LONGEST_TEXT = 4096
"""Longest text of a known field, in characters."""
LARGEST = 1 << 31
"""Ranks, widths and counts are below this."""
TASK_TYPES = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")

_TYPE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,999}")
_LIBRARY = re.compile(r"transformers(\.[A-Za-z_][A-Za-z0-9_]*)*")
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


class _Kind(NamedTuple):
    expected: str
    holds: Callable[[Any], bool]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value < LARGEST


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_layers(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(type(item) is int and 0 <= item < LARGEST for item in items)


def _pattern(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(of, value.values()))


_TEXT = _Kind(f"a text of at most {LONGEST_TEXT:,} characters", _is_text)
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_COUNT = _Kind("a whole number from 1", _is_count)
_NUMBER = _Kind("a number", _is_number)
_SHARE = _Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_NAMES = _Kind("a text, or a list of texts", lambda value: isinstance(value, str) or _is_texts(value))
_OBJECT = _Kind("an object", lambda value: isinstance(value, dict))

_FIELDS: dict[str, _Kind] = {
    **dict.fromkeys(("base_model_name_or_path", "revision", "peft_version", "bias", "model_name", "name"), _TEXT),
    **dict.fromkeys(("model_class", "model_type", "version", "megatron_core"), _TEXT),
    **dict.fromkeys(
        ("inference_mode", "fan_in_fan_out", "use_rslora", "use_dora", "use_qalora", "lora_bias", "prefix_projection"),
        _FLAG,
    ),
    **dict.fromkeys(("init_ia3_weights", "ensure_weight_tying"), _FLAG),
    **dict.fromkeys(("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"), _COUNT),
    **dict.fromkeys(("num_transformer_submodules", "encoder_hidden_size", "qalora_group_size", "hidden_size"), _COUNT),
    **dict.fromkeys(("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern"), _NAMES),
    **dict.fromkeys(("auto_mapping", "loftq_config", "megatron_config", "runtime_config", "config_map"), _OBJECT),
    "peft_type": _Kind(
        "PEFT's name in capital letters", lambda value: _is_text(value) and bool(_TYPE.fullmatch(value))
    ),
    "task_type": _Kind(", ".join(TASK_TYPES), lambda value: value in TASK_TYPES),
    "r": _COUNT,
    "lora_alpha": _NUMBER,
    "lora_dropout": _SHARE,
    "rank_pattern": _Kind("modules and their ranks, whole numbers from 1", _pattern(_is_count)),
    "alpha_pattern": _Kind("modules and their alphas, numbers", _pattern(_is_number)),
    "layers_to_transform": _Kind("layer numbers", _is_layers),
    "modules_to_save": _Kind(
        "a list of module names",
        lambda value: _is_texts(value) and all(_MODULE.fullmatch(item) for item in value),
    ),
    "init_lora_weights": _Kind("true, false or a text", lambda value: isinstance(value, bool) or _is_text(value)),
}
# Fields that PEFT's configs have no default for, or never write as null.
_NEVER_NULL = frozenset(("peft_type", "r", "lora_alpha", "num_virtual_tokens"))


def read(path: Path) -> dict[str, Any]:
    """A checked ``adapter_config.json``. Raises: AdapterFileError."""
    return checked(inputs.read_json_object(path, what="the adapter's config", error=AdapterFileError), path)


def checked(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The config without fields that name code. Raises: AdapterFileError for a field of the wrong type."""
    for name, kind in _FIELDS.items():
        if name not in config or (config[name] is None and name not in _NEVER_NULL):
            continue
        if not kind.holds(config[name]):
            raise _wrong(where, name, config[name], kind.expected + ("" if name in _NEVER_NULL else ", or null"))
    if config.get("megatron_config") or config.get("megatron_core") not in (None, "megatron.core"):
        name = "megatron_config" if config.get("megatron_config") else "megatron_core"
        raise _wrong(where, name, config[name], "null: a value would name a library to import")
    result = {name: value for name, value in config.items() if name not in ("auto_map", "trust_remote_code")}
    if config.get("auto_mapping") is not None and not _names_transformers_class(config["auto_mapping"]):
        result["auto_mapping"] = None
    return result


def _names_transformers_class(mapping: Mapping[str, Any]) -> bool:
    """Whether an ``auto_mapping`` names nothing but a class of transformers."""
    library, name = mapping.get("parent_library"), mapping.get("base_model_class")
    return (
        set(mapping) <= {"parent_library", "base_model_class"}
        and isinstance(library, str)
        and isinstance(name, str)
        and bool(_LIBRARY.fullmatch(library))
        and bool(_CLASS.fullmatch(name))
    )


def _wrong(where: object, name: str, found: object, expected: str) -> AdapterFileError:
    return AdapterFileError(
        f"{name} in the adapter's config is not valid",
        where=f"{where}: {name}",
        found=repr(found),
        expected=expected,
        fix="correct it, or save the adapter again with save_pretrained",
    )
