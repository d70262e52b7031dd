"""Bottleneck adapters: h + U·f(D·h) in every layer; language adapters also have an invertible block at the embeddings.

Source: 1902.00751 (Houlsby), 2005.00247 (Pfeiffer), 2005.00052 (MAD-X).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from adamergex.errors import AdapterFileError
from adamergex.files.directory import FLOATS, AdapterDirectory, TensorInfo
from adamergex.files.inputs import Json
from adamergex.files.lineage import Lineage
from adamergex.structures.card import base_in_code
from adamergex.structures.kind import StructureKind
from adamergex.structures.layout import Layout, Site, by_module

# Settings that do not affect what a trained adapter computes.
_FREE = ("dropout", "init_weights", "init_weights_seed", "stochastic_depth")


def recognised(config: Mapping[str, Json]) -> bool:
    """Whether a config is AdapterHub's: no PEFT type, and a reduction factor."""
    return config.get("peft_type") is None and "reduction_factor" in str(config.get("config", ""))


def layout(directory: AdapterDirectory, kind: StructureKind) -> Layout:
    """One site per location of a layer and per half of the invertible block; a head is in separate files.

    Raises: AdapterFileError."""
    modules, others = by_module(directory, kind)
    for name in others:
        raise AdapterFileError(
            "a tensor does not have a name of adamergex's layout",
            where=f"{directory.tensors_path}: {name}",
            found=name,
            expected="layers.N.output.down.weight, …, invertible.F.0.weight, …",
            fix="convert the adapter once with adamergex convert",
        )
    settings = directory.config.get("config")
    if not modules or not isinstance(settings, dict):
        raise AdapterFileError(
            "the adapter has no bottlenecks" if not modules else "the adapter's config is of another dialect",
            where=directory.path,
            found=type(settings).__name__ if modules else "no tensors",
            expected="tensors, and a config with all settings",
            fix="convert the adapter once with adamergex convert",
        )
    sites = {module: _site(directory, module, tensors) for module, tensors in sorted(modules.items())}
    shaped = {key: value for key, value in settings.items() if key not in _FREE}
    return Layout(directory, kind.name, sites, {}, shaped)


def _site(directory: AdapterDirectory, module: str, tensors: dict[str, TensorInfo]) -> Site:
    first, second = ("0", "2") if module.startswith("invertible.") else ("down", "up")
    expected = {f"{part}.{tensor}" for part in (first, second) for tensor in ("weight", "bias")}
    shapes = {role: info.shape for role, info in tensors.items()}
    down, up = shapes.get(f"{first}.weight", ()), shapes.get(f"{second}.weight", ())
    fits = (
        set(tensors) == expected
        and len(down) == len(up) == 2
        and down[0] == up[1]
        and (shapes[f"{first}.bias"], shapes[f"{second}.bias"]) == (down[:1], up[:1])
    )
    if not fits or any(info.dtype not in FLOATS for info in tensors.values()):
        raise AdapterFileError(
            "the tensors of a bottleneck do not fit together",
            where=f"{directory.tensors_path}: {module}",
            found=", ".join(f"{role} {info.shape} {info.dtype}" for role, info in sorted(tensors.items())),
            expected=f"{', '.join(sorted(expected))} of one width, floating point",
            fix="save or convert the adapter again",
        )
    return Site(tensors)


def snippet(lineage: Lineage, base: str, task_type: str | None) -> str:
    """The code that loads a bottleneck adapter, which PEFT does not support."""
    labels = len((lineage.task or {}).get("labels", ()))
    kind = (
        "SequenceClassification" if task_type == "SEQ_CLS" else "CausalLM" if task_type == "CAUSAL_LM" else "MaskedLM"
    )
    name, shipped = base_in_code(base)
    imports = ["from adamergex import attach", *([shipped] if shipped else [])]
    extra = f", num_labels={labels}" if task_type == "SEQ_CLS" else ""
    lower = '"path/to/the/language/adapter", ' if "base_adapter" in lineage.parents else ""
    lines = [
        f"model = AutoModelFor{kind}.from_pretrained({name}{extra})",
        f'model = attach(model, {lower}"path/to/this/folder")',
    ]
    if task_type == "SEQ_CLS":
        imports += [
            "from adamergex.adapters.formats.adapterhub import read_head",
            "from adamergex.adapters.heads import load_head",
        ]
        lines.append('load_head(model, read_head("path/to/this/folder"))')
    imports.append(f"from transformers import AutoModelFor{kind}")
    return "```python\n" + "\n".join([*imports, "", *lines]) + "\n```"


KIND = StructureKind(
    "bottleneck",
    "adamergex.structures.settings:Bottleneck",
    "adamergex.adapters.bottleneck.bottleneck_backed",
    recognised=recognised,
    stackable=True,
    rule="additive",
    pattern=re.compile(
        r"(?P<module>(?P<half>invertible\.[FG])|(?:decoder_)?layers\.\d+\.(?:attention|output))"
        r"\.(?P<role>(?(half)[02]|(?:down|up))\.(?:weight|bias))"
    ),
    layout=layout,
    random=("down.weight", "0.weight"),
    random_name="the down-projections",
    head_apart=True,
    card=snippet,
)
