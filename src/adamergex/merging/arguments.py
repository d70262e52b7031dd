"""What a merge is asked for: arguments that go together, and a divergence that fits the rest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adamergex.errors import ConfigError, IncompatibleAdaptersError
from adamergex.merging.checks import Adapter
from adamergex.merging.layers import Weight, numbers
from adamergex.merging.rules import prefix
from adamergex.merging.rules.rule import Rule
from adamergex.structures import kind_named

SPACES = ("factors", "delta")
StrPath = str | Path


def require_arguments(
    weight: Weight,
    space: str,
    rank: int | None,
    rule: str,
    given: tuple[StrPath | None, StrPath | None, StrPath | None],
) -> None:
    """Which arguments go together. Raises ConfigError."""
    target, source, saved = given
    if numbers(weight) is None:
        raise ConfigError("the weight is not a finite number", where="weight", found=weight, fix="use one like 0.5")
    if space not in SPACES:
        raise ConfigError("there is no such space", where="space", found=space, expected=" or ".join(SPACES))
    if rank is not None and (space != "delta" or rank < 1):
        raise ConfigError(
            "a rank truncates delta merges",
            where="rank",
            found=f"rank {rank}, space {space}",
            expected="a positive rank and space delta",
            fix="add --space delta, or leave the rank out",
        )
    averaging = rule == "average"
    complete = saved is not None or (target is not None and (source is not None or averaging))
    if not complete or (saved is not None and (averaging or target is not None or source is not None)):
        roles = zip(("target reference", "source reference", "divergence"), given, strict=True)
        raise ConfigError(
            "the adapters of the merge are not complete, or too many",
            where=f"rule {rule}",
            found=", ".join(role for role, path in roles if path is not None) or "the task only",
            expected="a target reference" if averaging else "a target and a source reference, or one divergence",
            fix="see adamergex merge --help",
        )


def require_space(own: Adapter, rule: Rule, space: str) -> None:
    """Which structures and rules have a delta space. Raises ConfigError."""
    if space == "delta" and not own.layout.structure.low_rank:
        raise ConfigError(
            "delta space is for LoRA only",
            where="space",
            found=own.layout.kind,
            expected="lora",
            fix="leave --space out",
        )
    if rule.function is not None and (space == "delta" or own.layout.structure.whole):
        raise ConfigError(
            "a rule of whole tensors is for the tensors of modules, in space factors",
            where="rule",
            found=f"{rule.name}, {own.layout.kind}, space {space}",
            expected="additive or average" if space == "delta" else "adaptive",
            fix="choose another rule",
        )
    if space == "delta" and rule.name == "multiplicative":
        raise ConfigError(
            "a ratio of weight differences has no low rank, so it cannot be saved as LoRA",
            where="rule",
            found="multiplicative in space delta",
            expected="additive or average",
            fix="use --space factors for this ablation",
        )


def prefix_choices(kind: str, rule: Rule, span: str | None, form: str | None) -> tuple[str | None, str | None]:
    """(span, form) of a prefix merge, the defaults filled in; of other structures none. Raises ConfigError."""
    whole = kind_named(kind).whole
    for name, value, known in (("span", span, prefix.SPANS), ("form", form, prefix.FORMS)):
        if value is not None and value not in known:
            raise ConfigError(f"there is no such {name}", where=name, found=value, expected=", ".join(known))
        if value is not None and (not whole or (name == "form" and rule.name != "prefix")):
            raise ConfigError(
                f"a {name} is for prefixes and their own rule only",
                where=name,
                found=f"{kind}, rule {rule.name}",
                expected="prefix, rule adaptive",
                fix=f"leave --{name} out",
            )
    if not whole:
        return None, None
    return span or prefix.SPANS[0], (form or prefix.FORMS[0]) if rule.name == "prefix" else None


def require_one_weight(own: Adapter, space: str, weight: Weight) -> None:
    """Which structures and spaces take a weight per layer. Raises ConfigError."""
    if not isinstance(weight, int | float) and (space != "factors" or own.layout.structure.whole):
        raise ConfigError(
            "weights by layer are for the factors of an adapter",
            where="weight",
            found=f"{own.layout.kind}, space {space}",
            expected="LoRA, (IA)³ or bottlenecks in space factors",
            fix="give one weight for all layers",
        )


def require_divergence(saved: Adapter, rule: Rule, space: str, span: str | None = None) -> None:
    """A saved divergence of this rule, space and span. Raises IncompatibleAdaptersError."""
    lineage = saved.lineage
    if lineage is None or not lineage.is_divergence or lineage.merge is None:
        raise IncompatibleAdaptersError(
            "the adapter is not a divergence",
            where=saved.where,
            found="an adapter" if lineage else "an adapter without lineage",
            expected="what adamergex divergence wrote, with its lineage.json",
            fix="make it with adamergex divergence, or give two references",
        )
    made = (lineage.merge.get("rule"), lineage.merge.get("space"), lineage.merge.get("span"))
    if made != (rule.name, space, span):
        option = f"--span {made[2]}" if made[2] else f"--space {made[1]}"
        named = "adaptive" if made[0] == "prefix" else made[0]
        raise IncompatibleAdaptersError(
            "the divergence was made for another merge",
            where=saved.where,
            found=f"rule {made[0]}, space {made[1]}" + (f", span {made[2]}" if made[2] else ""),
            expected=f"rule {rule.name}, space {space}" + (f", span {span}" if span else ""),
            fix=f"merge with {option} --rule {named}, or make the divergence again",
        )


def require_covered(other: Adapter, chosen: frozenset[str], there: Iterable[str]) -> None:
    """All selected modules are there. Raises IncompatibleAdaptersError."""
    missing = sorted(chosen - set(there))
    if missing:
        raise IncompatibleAdaptersError(
            "the divergence lacks modules of this merge",
            where=other.where,
            found=f"no {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            expected=f"all {len(chosen)} selected modules",
            fix="make it again with adamergex divergence, which takes all modules, or select fewer with --modules",
        )
