"""LoRA and (IA)³ on a model, through PEFT: the only place that imports it.

Two laws live here. *Same start*: every adapter of one base and one shape begins from identical tensors, whatever head
the model carries, so that A[R,g] - A[R,s] is a difference of what was learned (METHOD §1). *Strict files*: a missing or
unexpected tensor is an error, where PEFT warns and goes on with a partly random adapter.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from adamergex.adapters.sites import targets
from adamergex.errors import AdapterFileError, ModelError
from adamergex.lineage import model_card

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedModel

    from adamergex.lineage import Lineage
    from adamergex.settings import Structure

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
Adapted: TypeAlias = PeftModel
_PREFIX = "base_model.model."
_KINDS = {"lora": (".lora_A.", ".lora_B."), "ia3": (".ia3_l",)}


def attach(
    model: PreTrainedModel,
    structure: Structure,
    *,
    task_head: bool,
    base_sha256: str,
    seed: int = 0,
    fresh: tuple[str, ...] = (),
) -> PeftModel:
    """Put a new, trainable adapter on a model; everything else is frozen.

    LoRA: A [r, in] ~ U(-1/√in, 1/√in), from a generator seeded by SHA-256(base, kind, r, module name inside the
    backbone); B [out, r] = 0. (IA)³: l = 1. With ``task_head`` the modules outside the backbone, and the ``fresh``
    ones inside it, train too; the fresh ones are drawn from ``seed``.
    Raises: ModelError when the structure's modules are not in the model.
    """
    aims = targets(model, structure)
    heads = _heads(model, fresh) if task_head else None
    config: PeftConfig
    if structure.kind == "lora":
        config = LoraConfig(
            r=structure.rank,
            lora_alpha=structure.alpha,  # type: ignore[arg-type]  # PEFT only divides by the rank
            lora_dropout=structure.dropout,
            target_modules=aims.modules,
            modules_to_save=heads,
        )
    else:
        config = IA3Config(target_modules=aims.modules, feedforward_modules=aims.feedforward, modules_to_save=heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = PeftModel(model, config)
        for name, wrapper in _head_wrappers(wrapped):
            if name in fresh:
                _redraw(wrapper.modules_to_save["default"], model)
    _same_start(wrapped, structure, base_sha256)
    return wrapped


def start_sha256(wrapped: PeftModel) -> str:
    """SHA-256 over names (inside the backbone) and bytes of the adapter's tensors as they stand, heads left out.

    Taken before training it is the same for every adapter of one base, structure and choice of modules.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_adapter_tensors(wrapped).items()):
        digest.update(name.encode() + b"\0" + str(tuple(tensor.shape)).encode() + b"\0")
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def detach(wrapped: PeftModel) -> PreTrainedModel:
    """The model as it was before ``attach`` or ``load``, its own heads included, in evaluation mode."""
    # Heads first: PEFT's unload would leave the trained copies in the model, and fails on them under (IA)³.
    for name, wrapper in list(_head_wrappers(wrapped)):
        _alone(wrapped).set_submodule(name, wrapper.original_module)
    return wrapped.unload().eval()  # type: ignore[no-any-return]


def tensors(wrapped: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names that its file gives them, heads included."""
    return dict(get_peft_model_state_dict(wrapped, save_embedding_layers=False))


def save(wrapped: PeftModel, directory: Path, lineage: Lineage) -> None:
    """Write adapter_config.json, adapter_model.safetensors, lineage.json and the card: equal adapters, equal bytes."""
    write_tensors(wrapped, directory)
    config = _config_json(wrapped, str(lineage.base["name"]))
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    lineage.write(directory)
    card = model_card(lineage, task_type=config["task_type"])
    (directory / "README.md").write_text(card, encoding="utf-8")


def write_tensors(wrapped: PeftModel, directory: Path) -> None:
    """Write adapter_model.safetensors alone."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors(wrapped).items())}
    save_file(contents, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def load(model: PreTrainedModel, directory: Path, trainable: bool = False, *, fresh: tuple[str, ...] = ()) -> PeftModel:
    """Put a saved adapter on a model.

    ``fresh``: modules that the base lacks (``models.Loaded.fresh``), so that the adapter must bring them.
    Raises: AdapterFileError for unreadable files, a missing, unexpected or differently shaped tensor, or no head.
    """
    config, contents = read_config(directory), read_tensors(directory)
    return place(model, config, contents, where=Path(directory), trainable=trainable, fresh=fresh)


def place(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    contents: Mapping[str, torch.Tensor],
    *,
    where: object,
    trainable: bool = False,
    fresh: tuple[str, ...] = (),
) -> PeftModel:
    """Put an adapter that is in memory on a model: ``config`` as in adapter_config.json, ``contents`` as in its file.

    Raises: AdapterFileError, as ``load`` does; ``where`` names the adapter in the message.
    """
    absent = [head for head in fresh if not any(f".{head}." in name for name in contents)]
    if absent:
        raise AdapterFileError(
            "the adapter has no head, and the base has none either",
            where=where,
            found=f"nothing for {', '.join(absent)}",
            expected="an adapter trained on a task with labels, or merged from one",
            fix="name the task adapter, not a reference adapter",
        )
    settings = dict(config) | {"task_type": None, "inference_mode": not trainable}
    try:
        with torch.random.fork_rng(devices=[]):
            wrapped = PeftModel(model, PeftConfig.from_peft_type(**settings))  # type: ignore[no-untyped-call]
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterFileError(
            "PEFT does not accept this adapter for this model",
            where=where,
            found=str(error).splitlines()[0],
            expected=f"an adapter made for {type(model).__name__}",
            fix="check that adapter and base belong together",
        ) from error
    try:
        _fill(wrapped, contents, where)
    except AdapterFileError:
        detach(wrapped)
        raise
    return wrapped.train(trainable)


def replace(wrapped: PeftModel, contents: Mapping[str, torch.Tensor], *, where: object = "adapter") -> None:
    """Overwrite the adapter's tensors in place. Raises: AdapterFileError unless names and shapes are the same."""
    _fill(wrapped, contents, where)


def read_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json. Raises: AdapterFileError when it is missing or not JSON."""
    path = Path(directory) / CONFIG_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise AdapterFileError(
            "the adapter's configuration cannot be read", where=path, found=error, fix="name an adapter directory"
        ) from error


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """adapter_model.safetensors, on the CPU. Raises: AdapterFileError when it is missing or damaged."""
    path = Path(directory) / WEIGHTS_FILE
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise AdapterFileError(
            "the adapter's tensors cannot be read", where=path, found=error, fix="copy or train the adapter again"
        ) from error


def _fill(wrapped: PeftModel, contents: Mapping[str, torch.Tensor], where: object) -> None:
    expected = tensors(wrapped)
    missing, unexpected = sorted(expected.keys() - contents.keys()), sorted(contents.keys() - expected.keys())
    if missing or unexpected:
        raise AdapterFileError(
            "the adapter's tensors are not those that its configuration and this model call for",
            where=where,
            found=f"missing: {_some(missing)}; unexpected: {_some(unexpected)}",
            expected=f"{len(expected)} tensors",
            fix="use the base, and the kind of head, that the adapter was trained with",
        )
    for name, tensor in expected.items():
        if tensor.shape != contents[name].shape:
            raise AdapterFileError(
                "an adapter tensor has another shape than the model calls for",
                where=f"{where}: {name}",
                found=tuple(contents[name].shape),
                expected=tuple(tensor.shape),
                fix="use the base that the adapter was trained with",
            )
    set_peft_model_state_dict(wrapped, dict(contents))


def _some(names: list[str]) -> str:
    return "none" if not names else names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _heads(model: PreTrainedModel, fresh: tuple[str, ...]) -> list[str]:
    """What stands outside the backbone and has weights (classifier, score, …), and new modules inside it."""
    outside = {
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    }
    if not outside:
        raise ModelError(
            "the model has no head to train",
            where=type(model).__name__,
            found=[name for name, _ in model.named_children()],
            expected="a model with a head, such as a sequence-classification model",
            fix="load it with the kind of head that the task needs",
        )
    return sorted(outside | set(fresh))


def _alone(wrapped: PeftModel) -> PreTrainedModel:
    return cast("PreTrainedModel", wrapped.base_model.model)


def _head_wrappers(wrapped: PeftModel) -> Iterator[tuple[str, ModulesToSaveWrapper]]:
    for name, module in _alone(wrapped).named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            yield name, module


def _redraw(head: nn.Module, model: PreTrainedModel) -> None:
    deviation = getattr(model.config, "initializer_range", 0.02)
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _adapter_tensors(wrapped: PeftModel) -> dict[str, torch.Tensor]:
    """Adapter parameters by their name inside the backbone: the same under any head."""
    prefix = f"{_alone(wrapped).base_model_prefix}."
    result: dict[str, torch.Tensor] = {}
    for name, parameter in wrapped.named_parameters():
        if any(mark in name for marks in _KINDS.values() for mark in marks):
            result[name.removeprefix(_PREFIX).removeprefix(prefix).replace(".default", "")] = parameter
    return result


@torch.no_grad()
def _same_start(wrapped: PeftModel, structure: Structure, base_sha256: str) -> None:
    for name, parameter in _adapter_tensors(wrapped).items():
        if ".lora_A." in name:
            key = hashlib.sha256(f"{base_sha256}\n{structure.kind} {structure.rank}\n{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
            bound = 1 / math.sqrt(parameter.shape[1])
            values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(values.to(parameter.dtype))
        elif ".lora_B." in name:
            parameter.zero_()
        else:
            parameter.fill_(1)


def _head_type(model: PreTrainedModel) -> str | None:
    """PEFT's name of a head's kind; it has none for multiple choice."""
    ends = {"TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS", "MultipleChoice": None}
    name = type(model).__name__
    return next((kind for end, kind in ends.items() if name.endswith(end)), "SEQ_CLS")


def _config_json(wrapped: PeftModel, base: str) -> dict[str, Any]:
    config: Any = wrapped.peft_config["default"]
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    alone = _alone(wrapped)
    task = _head_type(alone) if config.modules_to_save else "CAUSAL_LM" if alone.can_generate() else None
    if getattr(alone.config, "is_encoder_decoder", False) and task:
        task = "SEQ_2_SEQ_LM"
    return values | {"base_model_name_or_path": base, "task_type": task, "inference_mode": True}
