"""Common checks of PEFT's LoRA and (IA)³ directories: unsupported variants, and linear modules."""

from __future__ import annotations

from collections.abc import Mapping

from adamergex.files.directory import FLOATS, AdapterDirectory, TensorInfo
from adamergex.structures.kind import StructureKind
from adamergex.structures.layout import by_module, require_modules, unsupported

_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "lora_bias": "LoRA biases",
    "target_parameters": "LoRA on parameters",
    "trainable_token_indices": "trainable tokens",
    "layer_replication": "layer replication",
}
_BASE_CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq", "pmf")

Modules = dict[str, dict[str, TensorInfo]]


def linear_modules(directory: AdapterDirectory, kind: StructureKind) -> tuple[Modules, Mapping[str, TensorInfo]]:
    """The tensors by module, sorted by name, and the heads.

    Raises: IncompatibleAdaptersError for variants of LoRA and (IA)³; AdapterFileError without modules."""
    _require_supported(directory)
    modules, heads = by_module(directory, kind)
    for name in heads:
        _require_head(directory, name, kind.name)
    require_modules(directory, kind, modules)
    for module in sorted(modules):
        _require_linear(directory, modules[module])
    return {module: modules[module] for module in sorted(modules)}, heads


def _require_supported(directory: AdapterDirectory) -> None:
    config = directory.config
    for name, what in _UNSUPPORTED.items():
        if config.get(name):
            raise unsupported(directory, what, f"{name}: {config[name]}")
    if config.get("bias", "none") != "none":
        raise unsupported(directory, "a trained bias", f"bias: {config['bias']}")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_BASE_CHANGING):
        raise unsupported(directory, "a start that changes the base's parameters", f"init_lora_weights: {start}")


def _require_head(directory: AdapterDirectory, name: str, kind: str) -> None:
    if "lora_embedding" in name:
        raise unsupported(directory, "LoRA on embeddings", name)
    if "lora_magnitude" in name:
        raise unsupported(directory, "DoRA", name)
    if any(part.startswith(("lora", "ia3")) for part in name.split(".")):
        raise unsupported(directory, f"a tensor that does not belong to plain {kind}", name)


def _require_linear(directory: AdapterDirectory, tensors: Mapping[str, TensorInfo]) -> None:
    for info in tensors.values():
        if info.dtype not in FLOATS:
            raise unsupported(directory, f"an adapter tensor of dtype {info.dtype}", info.name)
        if len(info.shape) != 2:
            raise unsupported(directory, "an adapter on a module that is not linear", f"{info.name}: {info.shape}")
