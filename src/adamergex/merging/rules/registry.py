"""The rules by name, and the rule that each structure takes."""

from __future__ import annotations

from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.merging.rules import additive, average, multiplicative, prefix
from adamergex.merging.rules.rule import Rule

RULES = {rule.name: rule for rule in (additive.RULE, multiplicative.RULE, average.RULE)}
ADAPTIVE = {"lora": additive.RULE, "ia3": multiplicative.RULE, "prefix": prefix.RULE, "bottleneck": additive.RULE}
"""Structure kind -> the rule that fits how it meets the frozen weights (2402.18913, section 3.2)."""


def rule_for(name: str, kind: str) -> Rule:
    """The rule ``name``; of ``adaptive``, the one of the structure ``kind``.

    Raises:
        ConfigError: no such rule.
        IncompatibleAdaptersError: the structure cannot be merged yet.
    """
    if kind not in ADAPTIVE:
        raise IncompatibleAdaptersError(
            f"Merging {kind} adapters is not supported yet.",
            found=kind,
            expected=" or ".join(sorted(ADAPTIVE)),
            fix="merge LoRA, (IA)³, prefix or bottleneck adapters",
        )
    if name == "adaptive":
        return ADAPTIVE[kind]
    if name not in RULES:
        raise ConfigError(
            "There is no such rule.",
            where="rule",
            found=name,
            expected=", ".join(["adaptive", *RULES]),
            fix="use adaptive: the rule of the paper for the structure",
        )
    return RULES[name]
