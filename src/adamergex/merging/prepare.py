"""From adapter directories to what a merge works on: opened, checked, their rule and modules chosen. Nothing is
written. ``merge``, ``divergence``, ``similarity`` and the searches of λ begin here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from adamergex.errors import ConfigError
from adamergex.files import lineage
from adamergex.files.directory import AdapterDirectory, TensorReader
from adamergex.merging import stream_prefix
from adamergex.merging.arguments import (
    prefix_choices,
    require_arguments,
    require_covered,
    require_divergence,
    require_one_weight,
    require_space,
)
from adamergex.merging.checks import (
    Adapter,
    require_fitting,
    require_no_trained_base,
    require_references,
    require_same_start,
)
from adamergex.merging.heads import require_head
from adamergex.merging.layers import Weight
from adamergex.merging.outcome import require_read
from adamergex.merging.rules import prefix
from adamergex.merging.rules.registry import rule_for, with_settings
from adamergex.merging.rules.rule import Rule, Setting
from adamergex.merging.select import default_selection, select
from adamergex.merging.stream import require_finite
from adamergex.structures.layout import layout

StrPath = str | Path


@dataclass(frozen=True)
class MergeSpec:
    """How adapters are merged, whatever their λ; see ``merging.merge``."""

    rule: str = "adaptive"
    space: str = "factors"
    modules: str | None = None
    rank: int | None = None
    span: str | None = None
    form: str | None = None
    allow_different_start: bool = False
    settings: Mapping[str, Setting] = field(default_factory=dict)


PAPER = MergeSpec()
"""What a merge does by default: the paper's rule of the structure, on factors."""


class Prepared(NamedTuple):
    """Adapters that can be merged, the task (of a divergence: the target reference) first; ``spec`` with its defaults
    filled in, the rule and the modules that it comes to."""

    adapters: list[Adapter]
    spec: MergeSpec
    rule: Rule
    selection: str
    chosen: frozenset[str]

    @property
    def own(self) -> Adapter:
        """The adapter that is changed, and that the result is like."""
        return self.adapters[0]


def opened(**roles: StrPath | None) -> Iterator[Adapter]:
    """The adapters of the roles that are given, in their order. Raises: AdapterFileError, IncompatibleAdaptersError."""
    for role, path in roles.items():
        if path is not None:
            directory = AdapterDirectory.open(path)
            yield Adapter(role.replace("_", " "), layout(directory), lineage.read(directory.path))


def prepare(
    spec: MergeSpec,
    *,
    task: StrPath | None = None,
    target_reference: StrPath | None = None,
    source_reference: StrPath | None = None,
    divergence: StrPath | None = None,
    weight: Weight = 1.0,
) -> Prepared:
    """Everything of a merge that can be checked before anything is computed; without a task that of a divergence.

    Raises: ConfigError, AdapterFileError, IncompatibleAdaptersError, NothingMergedError: as ``merging.merge``.
    """
    require_arguments(weight, spec.space, spec.rank, spec.rule, (target_reference, source_reference, divergence))
    others = opened(
        task=task, target_reference=target_reference, source_reference=source_reference, divergence=divergence
    )
    own = next(others)
    kind, rule = own.layout.kind, with_settings(rule_for(spec.rule, own.layout.kind), spec.settings)
    if task is None:
        _require_has_divergence(rule)
    require_space(own, rule, spec.space)
    require_one_weight(own, spec.space, weight)
    span, form = prefix_choices(kind, rule, spec.span, spec.form)
    rule = prefix.LITERAL if form == "literal" else rule
    adapters = [own, *others]
    references = adapters if task is None else adapters[1:]
    if divergence is not None:
        require_divergence(references[0], rule, spec.space, span)
    else:
        target, *source = references
        require_references(target, source[0] if source else None, own if task is not None else None)
    require_fitting(adapters, spec.space)
    if task is None:
        require_no_trained_base(own)
    _require_finite_heads(references)
    selection = spec.modules or default_selection(kind, rule)
    chosen = select(_modules(own, span), selection)
    require_covered(references[0], chosen, _modules(references[0], span))
    if spec.space == "factors":
        require_same_start(adapters, spec.allow_different_start)
    if task is not None and own.layout.structure.head_apart:
        require_head(own.layout.directory.path)
    require_read(own.layout)
    return Prepared(
        adapters, replace(spec, span=span, form=form if task is not None else None), rule, selection, chosen
    )


def _require_has_divergence(rule: Rule) -> None:
    if not rule.needs_source or rule.function is not None:
        raise ConfigError(
            "this rule has no divergence" if rule.function else "averaging has no divergence",
            where="rule",
            found=rule.name,
            expected="adaptive, additive or multiplicative",
            fix=f"merge with --rule {rule.name} --target-reference instead",
        )


def _require_finite_heads(references: list[Adapter]) -> None:
    """The heads of references are left out, but one that is not finite tells of a training that diverged."""
    for adapter in references:
        if adapter.layout.heads:
            with TensorReader(adapter.layout.directory) as reader:
                require_finite(reader, adapter.layout.heads.values())


def _modules(adapter: Adapter, span: str | None) -> list[str]:
    """What a selection chooses from: modules; of a prefix, its spans."""
    return list(adapter.layout.sites) if span is None else stream_prefix.names(adapter.layout, span)
