"""Names of tensors in PEFT's files, made PEFT's own once, where a file is opened; or refused by name.

PEFT loads ``base_model.model.<module>.lora_A.weight`` and ignores, without an error, what is named otherwise: a tensor
under a wrapper's name (``_orig_mod.``), one without the prefix, or one with the adapter's name inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIX = "base_model.model."
LONGEST = 1000
"""Longest name of a tensor, in characters."""
# What torch.compile, FSDP, activation checkpointing and parameter offloading put into names, wherever it stands.
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"))
# DistributedDataParallel, DataParallel and DeepSpeed wrap the whole model only.
_OUTER = ("module", "_forward_module")
# Weights of the base inside an adapter: a state dict that was saved as it stands.
_BASE = frozenset(("base_layer", "original_module"))
_PROMPTS = frozenset(("prompt_embeddings", "prompt_encoder", "divergence", "embedding", "transform"))
_PLAIN = re.compile(r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")

# What a name of PEFT's own does not hold.
_MARKS = re.compile(
    r"\._orig_mod\.|\._fsdp_wrapped_module\.|\._fpw_module\.|\._checkpoint_wrapped_module\.|\.module\.|\.base_layer\."
    r"|\.original_module\.|\.modules_to_save\.|\.base_model\.|\._forward_module\.|\.\.|\.$"
    r"|\.lora_[AB]\.(?!weight$)|\.ia3_l\."
)


class WrongName(ValueError):
    """A name that cannot be read; ``str()`` says why."""


def require_plain(name: str) -> str:
    """The name, if it can be printed and is at most ``LONGEST`` long. Raises: WrongName."""
    if len(name) > LONGEST or not _PLAIN.fullmatch(name):
        raise WrongName(f"it is empty, longer than {LONGEST} characters, or holds control characters")
    return name


def canonical(names: Iterable[str], *, prompt: bool) -> dict[str, str]:
    """Name in a PEFT file -> the name that PEFT gives it.

    Wrappers' segments go, the prefix is added where it is missing throughout, and the adapter's name goes. ``prompt``:
    of an adapter whose tensors belong to no module (prefix tuning); PEFT's prefix is shorter there.
    Raises: WrongName for names of the base's own weights, a prefix that only some have, or two tensors that would share
    one name.
    """
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    without = ""
    for name in names:
        own, complete = _canonical(name, prompt)
        without = without if complete else without or name
        found[name] = own
        if own in owners:
            raise WrongName(f"{owners[own]} and {name} are one tensor, {own}")
        owners[own] = name
    if without and any(PREFIX.split(".")[0] in name for name in found):
        raise WrongName(f"{without} has no {PREFIX} before it, and others have")
    return found


def _canonical(name: str, prompt: bool) -> tuple[str, bool]:
    """PEFT's name, and whether the given one has PEFT's prefix, or needs none."""
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
        raise WrongName(f"{name} has {min(wrong)!r} inside: weights of a wrapped model, saved as they stand")
    if not parts or not all(parts):
        raise WrongName(f"{name} has an empty part")
    return ".".join([*prefix, _without_adapter(".".join(parts), name)]), complete


def _unwrapped(parts: list[str]) -> list[str]:
    while parts and parts[0] in _OUTER:
        parts = parts[1:]
    return parts


def _without_adapter(path: str, name: str) -> str:
    """``lora_A.default.weight`` is ``lora_A.weight``; ``ia3_l.default``, ``classifier.modules_to_save.default.weight``
    alike."""
    path = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", path)
    path = re.sub(r"\.ia3_l\.[^.]+$", ".ia3_l", path)
    path = re.sub(r"\.modules_to_save\.[^.]+\.", ".", path)
    if ".modules_to_save." in path:
        raise WrongName(f"{name} names no module")
    return path
