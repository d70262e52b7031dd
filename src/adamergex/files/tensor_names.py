"""Normalises tensor names of PEFT's files when a file is opened, or refuses them.

PEFT loads ``base_model.model.<module>.lora_A.weight`` and silently ignores other names: those with a wrapper's name
(``_orig_mod.``), without the prefix, or with the adapter's name inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIX = "base_model.model."
LONGEST = 1000
"""Longest name of a tensor, in characters."""
# Segments that torch.compile, FSDP, activation checkpointing and parameter offloading insert anywhere in names.
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"))
# DistributedDataParallel, DataParallel and DeepSpeed wrap the whole model only.
_OUTER = ("module", "_forward_module")
# Parameters of the base inside an adapter: a state dict that was saved without unwrapping.
_BASE = frozenset(("base_layer", "original_module"))
_PROMPTS = frozenset(("prompt_embeddings", "prompt_encoder", "divergence", "embedding", "transform"))
_PLAIN = re.compile(r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")

# Segments that PEFT's own names never contain.
_MARKS = re.compile(
    r"\._orig_mod\.|\._fsdp_wrapped_module\.|\._fpw_module\.|\._checkpoint_wrapped_module\.|\.module\.|\.base_layer\."
    r"|\.original_module\.|\.modules_to_save\.|\.base_model\.|\._forward_module\.|\.\.|\.$"
    r"|\.lora_[AB]\.(?!weight$)|\.ia3_l\."
)


class WrongName(ValueError):
    """A name that is not valid; ``str()`` gives the reason."""


def require_plain(name: str) -> str:
    """Check that a name is printable and at most ``LONGEST`` long. Raises: WrongName."""
    if len(name) > LONGEST or not _PLAIN.fullmatch(name):
        raise WrongName(f"it is empty, longer than {LONGEST} characters, or holds control characters")
    return name


def canonical(names: Iterable[str], *, prompt: bool) -> dict[str, str]:
    """Name in a PEFT file -> PEFT's own name.

    Removes segments of wrappers and the adapter's name, and adds the prefix if all names lack it. ``prompt``: the
    tensors belong to no module (prefix tuning); PEFT's prefix is shorter then.
    Raises: WrongName for names of the base's parameters, a prefix that only some names have, or two tensors with one
    resulting name.
    """
    canonical_names: dict[str, str] = {}
    originals: dict[str, str] = {}
    without = ""
    for name in names:
        peft_name, complete = _canonical(name, prompt)
        without = without if complete else without or name
        canonical_names[name] = peft_name
        if peft_name in originals:
            raise WrongName(f"{originals[peft_name]} and {name} are one tensor, {peft_name}")
        originals[peft_name] = name
    if without and any(PREFIX.split(".")[0] in name for name in canonical_names):
        raise WrongName(f"{without} lacks the prefix {PREFIX}, which other names have")
    return canonical_names


def _canonical(name: str, prompt: bool) -> tuple[str, bool]:
    """PEFT's name, and whether the given one has PEFT's prefix or needs none."""
    if not prompt and name.startswith(PREFIX) and not _MARKS.search(name, len(PREFIX) - 1):
        return name, True
    parts = _unwrapped([part for part in name.split(".") if part not in _WRAPPERS])
    if parts and parts[0] in _PROMPTS:
        return ".".join(parts), True
    prefix = PREFIX.split(".")[: 1 if prompt else 2]
    complete = parts[: len(prefix)] == prefix
    if complete:
        parts = _unwrapped(parts[len(prefix) :])
    if wrong := {"base_model", "module", *_BASE} & set(parts):
        raise WrongName(f"{name} contains {min(wrong)!r}: parameters of a wrapped model, saved without unwrapping")
    if not parts or not all(parts):
        raise WrongName(f"{name} has an empty part")
    return ".".join([*prefix, _without_adapter(".".join(parts), name)]), complete


def _unwrapped(parts: list[str]) -> list[str]:
    while parts and parts[0] in _OUTER:
        parts = parts[1:]
    return parts


def _without_adapter(path: str, name: str) -> str:
    """Remove the adapter's name: ``lora_A.default.weight`` -> ``lora_A.weight``; likewise in ``ia3_l.default`` and
    ``classifier.modules_to_save.default.weight``."""
    path = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", path)
    path = re.sub(r"\.ia3_l\.[^.]+$", ".ia3_l", path)
    path = re.sub(r"\.modules_to_save\.[^.]+\.", ".", path)
    if ".modules_to_save." in path:
        raise WrongName(f"{name} names no module")
    return path
