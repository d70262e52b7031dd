"""What the tensors of an adapter directory are: those of adapted modules, and heads; ranks and scalings as in PEFT."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from adamergex.errors import AdapterFileError, IncompatibleAdaptersError
from adamergex.files.directory import CONFIG, FLOATS, AdapterDirectory, TensorInfo
from adamergex.files.tensor_names import PREFIX
from adamergex.merging.rules import prefix
from adamergex.merging.targets import Ranks

KINDS = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix"}
_FACTOR = re.compile(r"(?P<module>.+)\.(?:(?P<factor>lora_[AB])\.weight|(?P<vector>ia3_l))")
# In a live model the adapter's name stands between: lora_A.default.weight, ia3_l.default.
_LIVE = re.compile(r"(?P<module>.+)\.(?:(?P<factor>lora_[AB])(?:\.[^.]+)?\.weight|(?P<vector>ia3_l)(?:\.[^.]+)?)")
_BOTTLENECK = re.compile(
    r"(?P<module>(?:decoder_)?layers\.\d+\.(?:attention|output))\.(?P<layer>(?:down|up)\.(?:weight|bias))"
    r"|(?P<half>invertible\.[FG])\.(?P<coupling>[02]\.(?:weight|bias))"
)
_ROLES = {
    "lora": {"lora_A", "lora_B"},
    "ia3": {"ia3_l"},
    "prefix": {prefix.PROMPT},
    "bottleneck": {f"{part}.{tensor}" for part in ("down", "up", "0", "2") for tensor in ("weight", "bias")},
}
# A dropout, or how a start was drawn, says nothing of what an adapter computes.
_FREE = ("dropout", "init_weights", "init_weights_seed", "stochastic_depth")
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


class Site(NamedTuple):
    """One adapted module: its tensors by role, and of LoRA its rank and α.

    ``lora_A`` (r, in) and ``lora_B`` (out, r); ``ia3_l``; ``prompt_embeddings`` (n, columns) as it will be written; or
    of a bottleneck ``down.weight`` (w, in), ``up.weight`` (in, w) and their biases (of an invertible half: 0 and 2).
    """

    tensors: Mapping[str, TensorInfo]
    rank: int = 0
    alpha: float = 0.0
    scaling: float = 1.0


@dataclass(frozen=True)
class Layout:
    """Kind, adapted modules by name, and all other tensors: heads, which belong to the adapter that has them.

    ``settings``: what the configs of adapters must have alike beside the shapes of their tensors."""

    directory: AdapterDirectory
    kind: str
    sites: Mapping[str, Site]
    heads: Mapping[str, TensorInfo]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base_name(self) -> str | None:
        """The base that the config names: PEFT's key, or AdapterHub's."""
        config = self.directory.config
        return config.get("model_name" if self.kind == "bottleneck" else "base_model_name_or_path")

    def owner(self, key: str) -> str | None:
        """The module of an adapter tensor, ``None`` for a head."""
        return self._owners.get(key)

    @cached_property
    def _owners(self) -> dict[str, str]:
        return {info.name: module for module, site in self.sites.items() for info in site.tensors.values()}


def split_key(key: str, *, live: bool = False) -> tuple[str | None, str]:
    """Tensor name -> (module, role): role as in ``Site``; module ``None`` for other tensors.

    ``live``: also names as a model's state dict has them, with the adapter's name inside."""
    if match := (_LIVE if live else _FACTOR).fullmatch(key):
        return match["module"].removeprefix(PREFIX), match["factor"] or match["vector"]
    if match := _BOTTLENECK.fullmatch(key):
        return match["module"] or match["half"], match["layer"] or match["coupling"]
    return (key, key) if key == prefix.PROMPT else (None, key)


def structure_kind(directory: AdapterDirectory) -> str:
    """``lora``, ``ia3``, ``prefix``, ``bottleneck``, or the PEFT type in lower case."""
    config = directory.config
    if config.get("peft_type") is None and "reduction_factor" in str(config.get("config", "")):
        return "bottleneck"
    declared = str(config.get("peft_type"))
    return KINDS.get(declared, declared.lower())


def layout(directory: AdapterDirectory) -> Layout:
    """Sort the tensors of an adapter into sites and heads.

    Raises:
        IncompatibleAdaptersError: a variant that is not supported (DoRA, biases, embeddings, convolutions, …).
        AdapterFileError: tensors that do not fit the config or each other.
    """
    kind = structure_kind(directory)
    if kind not in _ROLES:
        raise IncompatibleAdaptersError(
            f"Merging {kind} adapters is not supported yet.",
            where=directory.path,
            found=directory.config.get("peft_type"),
            expected="LORA, IA3, PREFIX_TUNING or a bottleneck adapter",
            fix="use LoRA, (IA)³, prefix or bottleneck adapters",
        )
    if kind == "prefix":
        return _prefix(directory)
    if kind == "bottleneck":
        return _bottleneck(directory)
    _require_supported(directory)
    factors: dict[str, dict[str, TensorInfo]] = {}
    heads = {}
    for name, info in directory.tensors.items():
        module, role = split_key(name)
        if module is None or role not in _ROLES[kind]:
            _require_head(directory, name, kind)
            heads[name] = info
        else:
            factors.setdefault(module, {})[role] = info
    if not factors:
        raise AdapterFileError(
            f"The adapter has no {kind} tensors.",
            where=directory.tensors_path,
            found=", ".join(list(directory.tensors)[:4]) or "no tensors",
            expected="lora_A and lora_B weights" if kind == "lora" else "ia3_l vectors",
            fix="save the adapter again with save_pretrained",
        )
    ranks = Ranks(directory.config, directory.path / CONFIG) if kind == "lora" else None
    sites = {module: _site(directory, ranks, module, tensors) for module, tensors in sorted(factors.items())}
    return Layout(directory, kind, sites, heads)


def _unsupported(directory: AdapterDirectory, what: str, found: object) -> IncompatibleAdaptersError:
    return IncompatibleAdaptersError(
        f"{what} cannot be merged or stacked: not supported.",
        where=directory.path,
        found=found,
        expected="plain LoRA or (IA)³ on linear modules",
        fix="train the adapter without it",
    )


def _require_supported(directory: AdapterDirectory) -> None:
    config = directory.config
    for name, what in _UNSUPPORTED.items():
        if config.get(name):
            raise _unsupported(directory, what, f"{name}: {config[name]}")
    if config.get("bias", "none") != "none":
        raise _unsupported(directory, "Trained biases", f"bias: {config['bias']}")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_BASE_CHANGING):
        raise _unsupported(directory, "A start that changes the base's weights", f"init_lora_weights: {start}")


def _require_head(directory: AdapterDirectory, name: str, kind: str) -> None:
    if "lora_embedding" in name:
        raise _unsupported(directory, "LoRA on embeddings", name)
    if "lora_magnitude" in name:
        raise _unsupported(directory, "DoRA", name)
    if any(part.startswith(("lora", "ia3")) for part in name.split(".")):
        raise _unsupported(directory, f"A tensor that is no part of plain {kind}", name)


def _site(directory: AdapterDirectory, ranks: Ranks | None, module: str, tensors: dict[str, TensorInfo]) -> Site:
    """``ranks``: those of LoRA; None for (IA)³."""
    for info in tensors.values():
        if info.dtype not in FLOATS:
            raise _unsupported(directory, f"Adapter tensors of dtype {info.dtype}", info.name)
        if len(info.shape) != 2:
            raise _unsupported(directory, "An adapter on a module that is not linear", f"{info.name}: {info.shape}")
    if ranks is None:
        return Site(tensors)
    missing = {"lora_A", "lora_B"} - set(tensors)
    if missing:
        raise AdapterFileError(
            "A factor of a module is missing.",
            where=f"{directory.tensors_path}: {module}",
            found=", ".join(sorted(tensors)),
            expected="lora_A and lora_B",
            fix="save the adapter again with save_pretrained",
        )
    rank, alpha = ranks(module)
    rows, columns = tensors["lora_A"].shape[0], tensors["lora_B"].shape[1]
    if not rows == columns == rank:
        raise AdapterFileError(
            "The rank of a module is not that of the config.",
            where=f"{directory.tensors_path}: {module}",
            found=f"lora_A {tensors['lora_A'].shape}, lora_B {tensors['lora_B'].shape}",
            expected=f"rank {rank} (r and rank_pattern of adapter_config.json)",
            fix="config and tensors belong to different adapters: save the adapter again",
        )
    return Site(tensors, rank, alpha, _scaling(directory, module, rank, alpha))


def _scaling(directory: AdapterDirectory, module: str, rank: int, alpha: float) -> float:
    scaling = alpha / (math.sqrt(rank) if directory.config.get("use_rslora") else rank)
    if not (math.isfinite(scaling) and scaling > 0):
        raise AdapterFileError(
            "The scaling of a module is not a positive number.",
            where=f"{directory.path}: {module}",
            found=f"alpha {alpha}, rank {rank}",
            expected="alpha > 0",
            fix="correct lora_alpha in adapter_config.json",
        )
    return scaling


def _prefix(directory: AdapterDirectory) -> Layout:
    """PEFT's materialised prefix, the encoder of a training checkpoint (with its projection or without), or a saved
    divergence: one site of the shape that the config gives the prefix."""
    shape = prefix.shape(directory.config, directory.path)
    own = {prefix.role(name): info for name, info in directory.tensors.items()}
    saved = [info for name, info in own.items() if name.startswith(prefix.SAVED)]
    parts, wanted = _prefix_parts(directory, shape, own)
    expected = (shape.num_virtual_tokens, shape.columns)
    for role, form in wanted.items():
        found = parts[role].shape if role in parts else None
        if found != form or parts[role].dtype not in FLOATS:
            raise AdapterFileError(
                "The prefix is not what the config says.",
                where=f"{directory.tensors_path}: {role}",
                found=f"{found} {parts[role].dtype}" if found else ", ".join(directory.tensors) or "no tensors",
                expected=f"{form}, floating point",
                fix="config and tensors belong to different adapters: save the adapter again",
            )
    dtype = "F64" if saved else next(iter(parts.values())).dtype
    site = Site({prefix.PROMPT: TensorInfo(prefix.PROMPT, dtype, expected)})
    taken = {info.name for info in (*parts.values(), *saved)}
    heads = {name: info for name, info in directory.tensors.items() if name not in taken}
    for name in heads:
        if name.startswith("prompt_encoder."):
            raise _unsupported(directory, "A tensor that is no part of a prefix", name)
    return Layout(directory, "prefix", {prefix.PROMPT: site}, heads, shape._asdict())


def _prefix_parts(
    directory: AdapterDirectory, shape: prefix.Shape, own: Mapping[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], dict[str, tuple[int, ...]]]:
    """The tensors that make up P by role, and the shapes that they must have."""
    columns, tokens = shape.columns, shape.num_virtual_tokens
    wanted: dict[str, tuple[int, ...]] = {prefix.PROMPT: (tokens, columns)}
    if any(name.startswith(prefix.SAVED) for name in own):
        wanted = {}
    elif "transform.0.weight" in own:
        middle = directory.config.get("encoder_hidden_size") or own["transform.0.weight"].shape[0]
        wanted = {
            "embedding.weight": (tokens, shape.token_dim),
            "transform.0.weight": (middle, shape.token_dim),
            "transform.0.bias": (middle,),
            "transform.2.weight": (columns, middle),
            "transform.2.bias": (columns,),
        }
    elif "embedding.weight" in own:
        wanted = {"embedding.weight": (tokens, columns)}
    return {role: own[role] for role in wanted if role in own}, wanted


def _bottleneck(directory: AdapterDirectory) -> Layout:
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in directory.tensors.items():
        module, role = split_key(name)
        if module is None or role not in _ROLES["bottleneck"]:
            raise AdapterFileError(
                "The file names its tensors otherwise than ours.",
                where=f"{directory.tensors_path}: {name}",
                found=name,
                expected="layers.N.output.down.weight, …, invertible.F.0.weight, …",
                fix="convert the adapter once with adamergex convert",
            )
        found.setdefault(module, {})[role] = info
    settings = directory.config.get("config")
    if not found or not isinstance(settings, dict):
        raise AdapterFileError(
            "The adapter has no bottlenecks." if not found else "The adapter's config is of another dialect.",
            where=directory.path,
            found=type(settings).__name__ if found else "no tensors",
            expected="tensors, and a config with all settings",
            fix="convert the adapter once with adamergex convert",
        )
    sites = {module: _bottleneck_site(directory, module, tensors) for module, tensors in sorted(found.items())}
    shaped = {key: value for key, value in settings.items() if key not in _FREE}
    return Layout(directory, "bottleneck", sites, {}, shaped)


def _bottleneck_site(directory: AdapterDirectory, module: str, tensors: dict[str, TensorInfo]) -> Site:
    first, second = ("0", "2") if module.startswith("invertible.") else ("down", "up")
    wanted = {f"{part}.{tensor}" for part in (first, second) for tensor in ("weight", "bias")}
    shapes = {role: info.shape for role, info in tensors.items()}
    down, up = shapes.get(f"{first}.weight", ()), shapes.get(f"{second}.weight", ())
    fits = (
        set(tensors) == wanted
        and len(down) == len(up) == 2
        and down[0] == up[1]
        and (shapes[f"{first}.bias"], shapes[f"{second}.bias"]) == (down[:1], up[:1])
    )
    if not fits or any(info.dtype not in FLOATS for info in tensors.values()):
        raise AdapterFileError(
            "The tensors of a bottleneck do not belong together.",
            where=f"{directory.tensors_path}: {module}",
            found=", ".join(f"{role} {info.shape} {info.dtype}" for role, info in sorted(tensors.items())),
            expected=f"{', '.join(sorted(wanted))} of one width, floating point",
            fix="save or convert the adapter again",
        )
    return Site(tensors)
