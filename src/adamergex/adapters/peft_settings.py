"""An adapter's config in the form that PEFT receives: every module by its full name, ranks as in the tensors.

PEFT matches the regular expressions of a config without a time limit, and allocates the sizes of a config before it
reads the tensors. So expressions are resolved here by ``structures.targets``, and sizes by the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adamergex.errors import AdapterFileError
from adamergex.files import adapter_config
from adamergex.files.patterns import literal
from adamergex.structures import prefix
from adamergex.structures.lora import KIND as LORA
from adamergex.structures.lora import require_rank
from adamergex.structures.targets import Names, Ranks, Targets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Initialisation settings, which a saved adapter does not need; some name libraries or data.
_STARTS = ("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core")


def resolved(
    config: Mapping[str, Any], contents: Mapping[str, torch.Tensor], modules: Sequence[str], where: object
) -> dict[str, Any]:
    """Arguments of ``PeftConfig.from_peft_type``; ``modules``: the model's module names.

    Raises: AdapterFileError for fields of the wrong type, expressions that take too long, or ranks and sizes that
        differ from the tensors'.
    """
    checked = adapter_config.checked(config, where)
    settings = {name: value for name, value in checked.items() if name not in _STARTS}
    settings |= {"task_type": None, "auto_mapping": None}
    kind = settings.get("peft_type")
    if kind == "PREFIX_TUNING":
        _require_size(settings, contents, where)
    if "target_modules" in settings:
        targets = Targets(settings, where)
        if targets.known:
            settings["target_modules"] = literal([name for name in modules if name in targets])
        settings |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    if kind == "IA3" and settings.get("feedforward_modules"):
        forward = Names(settings["feedforward_modules"], "feedforward_modules", where)
        settings["feedforward_modules"] = literal([name for name in modules if name in forward])
    if kind == "LORA":
        settings |= _ranked(settings, contents, where)
    return {name: value for name, value in settings.items() if value is not None or name == "task_type"}


def _ranked(settings: Mapping[str, Any], contents: Mapping[str, torch.Tensor], where: object) -> dict[str, Any]:
    """r and lora_alpha of most modules, and patterns for the others."""
    ranks, by_module = Ranks(settings, where), {}
    for name, tensor in contents.items():
        module, role = LORA.split(name)
        if module is None or role != "lora_A":
            continue
        by_module[module] = ranks(module)
        if tensor.ndim:
            require_rank(by_module[module][0], {role: tuple(tensor.shape)}, f"{where}: {module}")
    if not by_module:
        return {}
    values = list(by_module.values())
    rank, alpha = max(sorted(set(values)), key=values.count)
    # Longer names first: PEFT takes the first pattern that matches, also at the end of a name.
    ordered = sorted(by_module, key=lambda module: (-len(module), module))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(name): by_module[name][0] for name in ordered if by_module[name][0] != rank},
        "alpha_pattern": {re.escape(name): by_module[name][1] for name in ordered if by_module[name][1] != alpha},
    }


def _require_size(settings: Mapping[str, Any], contents: Mapping[str, torch.Tensor], where: object) -> None:
    shape = prefix.shape(settings, where)
    tensor = contents.get(prefix.PROMPT)
    if tensor is not None and tuple(tensor.shape) != (shape.num_virtual_tokens, shape.columns):
        raise AdapterFileError(
            "the prefix does not have the shape in the config",
            where=where,
            found=tuple(tensor.shape),
            expected=(shape.num_virtual_tokens, shape.columns),
            fix="config and tensors belong to different adapters: save the adapter again",
        )


def config_json(config: Any, model: PreTrainedModel, base: str) -> dict[str, Any]:
    """The contents of ``adapter_config.json`` for a PEFT config of an adapter on a model."""
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    task = _head_type(model) if config.modules_to_save else "CAUSAL_LM" if model.can_generate() else None
    if getattr(model.config, "is_encoder_decoder", False) and task:
        task = "SEQ_2_SEQ_LM"
    if task is None and config.is_prompt_learning:
        task = "FEATURE_EXTRACTION"  # without a task PEFT would load a prefix and never use it
    return values | {"base_model_name_or_path": base, "task_type": task, "inference_mode": True}


def _head_type(model: PreTrainedModel) -> str | None:
    """PEFT's task type of a head; None for multiple choice."""
    ends = {"TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS", "MultipleChoice": None}
    name = type(model).__name__
    return next((kind for end, kind in ends.items() if name.endswith(end)), "SEQ_CLS")
