"""LoRA, (IA)³ and prefixes on a model, through PEFT: the only module that imports it.

Two rules hold here. *Same start*: every adapter of one base and one shape starts from identical tensors under any head,
so that A[R,g] - A[R,s] is a difference of what was learned (2402.18913, §3). *Strict files*: a missing or unexpected
tensor is an error, where PEFT warns and continues with a partly random adapter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import ModulesToSaveWrapper, merge_utils
from torch import nn

from adamergex.adapters import peft_settings, prefix, saving
from adamergex.adapters.guards import require_effect
from adamergex.adapters.heads import head_modules, redraw
from adamergex.adapters.precision import in_float32
from adamergex.adapters.sites import targets
from adamergex.errors import AdapterFileError, ModelError
from adamergex.files import tensor_files
from adamergex.files.directory import CONFIG, read_config
from adamergex.structures import card, structure_kind
from adamergex.structures.settings import Ia3, Lora, Prefix, Structure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from adamergex.files.lineage import Lineage

Adapted: TypeAlias = PeftModel
_PREFIX = "base_model.model."
Draw = Callable[[str, torch.Tensor, torch.Generator], torch.Tensor]
"""(name, parameter, generator) -> the parameter's initial values."""


def attach(
    model: PreTrainedModel,
    structure: Structure,
    *,
    task_head: bool,
    base_sha256: str,
    seed: int = 0,
    new_modules: tuple[str, ...] = (),
) -> PeftModel:
    """Put a new, trainable adapter on a model; everything else is frozen.

    LoRA: A [r, in] ~ U(-1/√in, 1/√in), from a generator seeded by SHA-256(base, kind, r, module name inside the
    backbone); B [out, r] = 0. (IA)³: l = 1. Prefix: P [n, 2·layers·width] ~ N(0, 1), seeded in the same way. With
    ``task_head`` the modules outside the backbone, and ``new_modules`` inside it, train too; they are drawn from
    ``seed``.
    Raises: ModelError when the model lacks the structure's modules, or takes no prefix.
    """
    config = _config(model, structure, head_modules(model, new_modules) if task_head else None)
    size = structure.context or getattr(structure, "rank", 0)
    return put(
        model, config, _drawn, identity=f"{base_sha256}\n{structure.kind} {size}", seed=seed, new_modules=new_modules
    )


def put(
    model: PreTrainedModel,
    config: PeftConfig,
    draw: Draw,
    *,
    identity: str,
    seed: int = 0,
    new_modules: tuple[str, ...] = (),
) -> PeftModel:
    """Put a new, trainable adapter of any PEFT config on a model; ``draw`` fills its tensors, from a generator seeded
    by SHA-256(``identity``, name inside the backbone).

    Raises: ModelError when the model takes no such adapter, or the adapter does not change its output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = _wrap(model, config)
        for name, wrapper in _head_wrappers(wrapped):
            if name in new_modules:
                redraw(wrapper.modules_to_save["default"], model)
    _same_start(wrapped, identity, draw)
    try:
        if isinstance(wrapped, _Prefixed):
            wrapped.require_same_output()
        require_effect(_base_model(wrapped), parameters(wrapped).values(), f"{kind_of(wrapped)} adapter")
    except BaseException:
        detach(wrapped)
        raise
    return wrapped


def _config(model: PreTrainedModel, structure: Structure, heads: list[str] | None) -> PeftConfig:
    if isinstance(structure, Prefix):
        shape = prefix.model_shape(model)._asdict()
        return PrefixTuningConfig(num_virtual_tokens=structure.virtual_tokens, **shape, modules_to_save=heads)
    assert isinstance(structure, Lora | Ia3)  # the other structures of this module
    sites = targets(model, structure)
    if isinstance(structure, Ia3):
        return IA3Config(target_modules=sites.modules, feedforward_modules=sites.feedforward, modules_to_save=heads)
    return LoraConfig(
        r=structure.rank,
        lora_alpha=structure.alpha,  # type: ignore[arg-type]  # PEFT only divides by the rank
        lora_dropout=structure.dropout,
        target_modules=sites.modules,
        modules_to_save=heads,
    )


class _Prefixed(PeftModel):
    """PEFT's model, with the prefix inserted by our own hook."""

    handle: RemovableHandle

    def __init__(self, model: PreTrainedModel, config: PeftConfig) -> None:
        prefix.require_no_checkpointing(model)
        prefix.cache_module(model)
        super().__init__(model, config)
        self.handle = prefix.insert(model, virtual_tokens(self), self.get_prompt)

    def require_same_output(self) -> None:
        """Raises: ModelError when the prefix does not act like the tokens whose keys and values it holds."""
        encoder: Any = self.prompt_encoder["default"]
        prefix.require_same_output(_base_model(self), encoder.embedding.weight)


def _wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    wrapped = _Prefixed(model, config) if config.is_prompt_learning else PeftModel(model, config)
    for _, wrapper in _head_wrappers(wrapped):  # PEFT makes its own tensors float32, not the heads
        for copy in wrapper.modules_to_save.values():
            in_float32(copy)
    return wrapped


def kind_of(wrapped: PeftModel) -> str:
    """The name of the structure."""
    return structure_kind(wrapped.peft_config["default"].to_dict())


def virtual_tokens(model: nn.Module) -> int:
    """The number of context positions that a prefix takes; 0 without a prefix."""
    config: Any = model.peft_config["default"] if isinstance(model, PeftModel) else None
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def start_sha256(wrapped: PeftModel) -> str:
    """SHA-256 over names (inside the backbone) and bytes of the adapter's current tensors, without heads.

    Before training it is the same for every adapter of one base, structure and choice of modules.
    """
    return saving.tensors_sha256(_adapter_tensors(wrapped))


def detach(wrapped: PeftModel) -> PreTrainedModel:
    """Restore the model of before ``attach`` or ``load``, with its own heads, in evaluation mode."""
    # Heads first: PEFT's unload leaves the trained copies in the model, and fails on them under (IA)³.
    for name, wrapper in list(_head_wrappers(wrapped)):
        _base_model(wrapped).set_submodule(name, wrapper.original_module)
    if isinstance(wrapped, _Prefixed):
        wrapped.handle.remove()
        alone = _base_model(wrapped)
        alone.train(False)
        return alone
    return wrapped.unload().eval()  # type: ignore[no-any-return]


def tensors(wrapped: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors with heads, by their names in its file."""
    return dict(get_peft_model_state_dict(wrapped, save_embedding_layers=False))


def parameters(wrapped: PeftModel) -> dict[str, nn.Parameter]:
    """The adapter's parameters without heads, by their names in its file (for a prefix, in the model)."""
    mark = "prompt_encoder." if isinstance(wrapped, _Prefixed) else f".{wrapped.base_model.prefix}"
    return {name.replace(".default", ""): parameter for name, parameter in wrapped.named_parameters() if mark in name}


def save(wrapped: PeftModel, directory: Path, lineage: Lineage) -> None:
    """Write adapter_config.json, adapter_model.safetensors, lineage.json and the card: equal adapters, equal bytes."""
    write_tensors(wrapped, directory)
    config = peft_settings.config_json(wrapped.peft_config["default"], _base_model(wrapped), str(lineage.base["name"]))
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    card.write_beside(directory, lineage, task_type=config["task_type"])


def write_tensors(wrapped: PeftModel, directory: Path) -> None:
    """Write adapter_model.safetensors alone."""
    saving.write_adapter_tensors(directory, tensors(wrapped))


def load(
    model: PreTrainedModel, directory: Path, trainable: bool = False, *, new_modules: tuple[str, ...] = ()
) -> PeftModel:
    """Put a saved adapter on a model.

    ``new_modules``: modules that the base lacks (``loading.Loaded.new_modules``), so the adapter must contain them.
    Raises: AdapterFileError for unreadable files, a missing, unexpected or differently shaped tensor, or no head.
    """
    config, contents = read_config(Path(directory)), tensor_files.read_directory(Path(directory))
    return place(model, config, contents, where=Path(directory), trainable=trainable, new_modules=new_modules)


def place(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    contents: Mapping[str, torch.Tensor],
    *,
    where: object,
    trainable: bool = False,
    new_modules: tuple[str, ...] = (),
) -> PeftModel:
    """Put an adapter from memory on a model: ``config`` as in adapter_config.json, ``contents`` as in its file.

    Raises: AdapterFileError, as ``load`` does; ``where`` names the adapter in the message.
    """
    absent = [head for head in new_modules if not any(f".{head}." in name for name in contents)]
    if absent:
        raise AdapterFileError(
            "neither the adapter nor the base has a head",
            where=where,
            found=f"nothing for {', '.join(absent)}",
            expected="an adapter trained on a task with labels, or merged from one",
            fix="name the task adapter, not a reference adapter",
        )
    settings = peft_settings.resolved(config, contents, [name for name, _ in model.named_modules()], where)
    settings |= {"inference_mode": not trainable}
    shape = prefix.model_shape(model) if config.get("peft_type") == "PREFIX_TUNING" else None
    try:
        with torch.random.fork_rng(devices=[]):
            wrapped = _wrap(model, PeftConfig.from_peft_type(**settings))  # type: ignore[no-untyped-call]
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError, ImportError) as error:
        raise AdapterFileError(
            "PEFT rejects this adapter for this model",
            where=where,
            found=next(iter(str(error).splitlines()), type(error).__name__),
            expected=f"an adapter made for {type(model).__name__}",
            fix="check that adapter and base belong together",
        ) from error
    try:
        if shape is not None:
            prefix.require_fitting(model, shape, wrapped.peft_config["default"], where)
        replace(wrapped, contents, where=where)
        if isinstance(wrapped, _Prefixed):
            wrapped.require_same_output()
    except (AdapterFileError, ModelError):
        detach(wrapped)
        raise
    return wrapped.train(trainable)


def combined(method: str, tensors: list[torch.Tensor], weights: list[float], density: float) -> torch.Tensor:
    """PEFT's ``ties`` or ``dare_linear`` of tensors of one shape; DARE draws from torch's global generator."""
    combine = {"ties": merge_utils.ties, "dare": merge_utils.dare_linear}[method]
    return combine(tensors, torch.tensor(weights, dtype=tensors[0].dtype), density)


def replace(wrapped: PeftModel, contents: Mapping[str, torch.Tensor], *, where: object = "adapter") -> None:
    """Overwrite the adapter's tensors in place. Raises: AdapterFileError for other names or shapes."""
    fix = "use the base and the kind of head that the adapter was trained with"
    tensor_files.require_same(contents, tensors(wrapped), where, fix=fix)
    tensor_files.require_finite(contents, where)
    set_peft_model_state_dict(wrapped, dict(contents))


def _base_model(wrapped: PeftModel) -> PreTrainedModel:
    return cast("PreTrainedModel", wrapped.get_base_model())


def _head_wrappers(wrapped: PeftModel) -> Iterator[tuple[str, ModulesToSaveWrapper]]:
    for name, module in _base_model(wrapped).named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            yield name, module


def _adapter_tensors(wrapped: PeftModel) -> dict[str, torch.Tensor]:
    """Adapter parameters by their name inside the backbone: the same under any head."""
    backbone, by_name = f"{_base_model(wrapped).base_model_prefix}.", parameters(wrapped).items()
    return {name.removeprefix(_PREFIX).removeprefix(backbone): parameter for name, parameter in by_name}


@torch.no_grad()
def _same_start(wrapped: PeftModel, identity: str, draw: Draw) -> None:
    for name, parameter in _adapter_tensors(wrapped).items():
        parameter.copy_(draw(name, parameter, saving.seeded(f"{identity}\n{name}")).to(parameter.dtype))


def _drawn(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    values = torch.empty(parameter.shape)
    if ".lora_A." in name:
        bound = 1 / math.sqrt(parameter.shape[1])
        return values.uniform_(-bound, bound, generator=generator)
    if "prompt_encoder." in name:
        return values.normal_(generator=generator)
    return values.fill_(0 if ".lora_B." in name else 1)
