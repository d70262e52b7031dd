"""An adapter's config as PEFT is given it: every module by its full name, ranks as the tensors have them.

PEFT runs the expressions of a config through ``re``, without a limit of time, and allocates what a config says before
it sees the tensors. So both are settled here: expressions by ``structures.targets``, sizes by the tensors.
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

# How a start is drawn or computed, which a saved adapter does not need; some name libraries or data.
_STARTS = ("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core")


def resolved(
    config: Mapping[str, Any], contents: Mapping[str, torch.Tensor], modules: Sequence[str], where: object
) -> dict[str, Any]:
    """Arguments of ``PeftConfig.from_peft_type``; ``modules``: the names of the model's.

    Raises: AdapterFileError for fields that are not what they should be, expressions that take too long, or ranks and
        sizes that are not the tensors'.
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
    """r, lora_alpha and patterns that give each module its own; the commonest need no pattern."""
    ranks, found = Ranks(settings, where), {}
    for name, tensor in contents.items():
        module, role = LORA.split(name)
        if module is None or role != "lora_A":
            continue
        found[module] = ranks(module)
        if tensor.ndim:
            require_rank(found[module][0], {role: tuple(tensor.shape)}, f"{where}: {module}")
    if not found:
        return {}
    values = list(found.values())
    rank, alpha = max(sorted(set(values)), key=values.count)
    # Whole names before endings of them: PEFT takes the first pattern that matches.
    ordered = sorted(found, key=lambda module: (-len(module), module))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(name): found[name][0] for name in ordered if found[name][0] != rank},
        "alpha_pattern": {re.escape(name): found[name][1] for name in ordered if found[name][1] != alpha},
    }


def _require_size(settings: Mapping[str, Any], contents: Mapping[str, torch.Tensor], where: object) -> None:
    shape = prefix.shape(settings, where)
    tensor = contents.get(prefix.PROMPT)
    if tensor is not None and tuple(tensor.shape) != (shape.num_virtual_tokens, shape.columns):
        raise AdapterFileError(
            "the prefix is not what the config says",
            where=where,
            found=tuple(tensor.shape),
            expected=(shape.num_virtual_tokens, shape.columns),
            fix="config and tensors belong to different adapters: save the adapter again",
        )


def written(config: Any, model: PreTrainedModel, base: str) -> dict[str, Any]:
    """``adapter_config.json`` for a config of PEFT, of an adapter on a model."""
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    task = _head_type(model) if config.modules_to_save else "CAUSAL_LM" if model.can_generate() else None
    if getattr(model.config, "is_encoder_decoder", False) and task:
        task = "SEQ_2_SEQ_LM"
    if task is None and config.is_prompt_learning:
        task = "FEATURE_EXTRACTION"  # without a task PEFT would load a prefix and never use it
    return values | {"base_model_name_or_path": base, "task_type": task, "inference_mode": True}


def _head_type(model: PreTrainedModel) -> str | None:
    """PEFT's name of a head's kind; it has none for multiple choice."""
    ends = {"TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS", "MultipleChoice": None}
    name = type(model).__name__
    return next((kind for end, kind in ends.items() if name.endswith(end)), "SEQ_CLS")
