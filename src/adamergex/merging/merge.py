"""merge() and divergence(): from adapter directories to an adapter directory. No base model, no torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from adamergex.errors import AdapterFileError, ConfigError
from adamergex.files import hashing
from adamergex.files import lineage as lineages
from adamergex.files.directory import TENSORS, AdapterDirectory, TensorReader
from adamergex.files.outputs import require_free, staged_directory
from adamergex.merging import delta, stream_prefix
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
from adamergex.merging.heads import copy_head, require_head
from adamergex.merging.layers import Weight, by_layer, by_module
from adamergex.merging.outcome import require_loadable, require_read
from adamergex.merging.records import merged_lineage, parents, require_change, write_beside
from adamergex.merging.report import MergeReport, ModuleChange
from adamergex.merging.rules import prefix
from adamergex.merging.rules.registry import rule_for
from adamergex.merging.rules.rule import Rule
from adamergex.merging.select import default_selection, select
from adamergex.merging.stream import ElementwiseMerge, require_finite, write_divergence
from adamergex.merging.stream_delta import (
    DeltaMerge,
    FactorSource,
    ReferenceFactors,
    SavedFactors,
    write_factors,
)
from adamergex.merging.stream_whole import WholeMerge
from adamergex.structures.layout import layout
from adamergex.structures.targets import Ranks

StrPath = str | Path


class Choices(NamedTuple):
    """How a merge is done, its arguments checked."""

    rule: Rule
    space: str
    weight: float
    layers: tuple[float, ...] | None
    rank: int | None
    span: str | None
    form: str | None


def merge(
    *,
    task: StrPath,
    target_reference: StrPath | None = None,
    source_reference: StrPath | None = None,
    divergence: StrPath | None = None,
    weight: Weight,
    output: StrPath,
    modules: str | None = None,
    space: str = "factors",
    rank: int | None = None,
    rule: str = "adaptive",
    allow_different_start: bool = False,
    span: str | None = None,
    form: str | None = None,
) -> MergeReport:
    """A[T,g] from A[T,s], A[R,g] and A[R,s] (or a saved divergence D) and λ = ``weight``; written to ``output``.

    LoRA, bottleneck: A[T,s] + λ·(A[R,g] − A[R,s]); (IA)³: A[T,s] ⊙ (λ·(A[R,g] ⊘ A[R,s] − 1) + 1); prefix:
    (I + λ(D − I))·P[T,s], D = P[R,g]·P[R,s]⁺. Source: 2402.18913, Eq 6-10.

    Args:
        task: the adapter of the task in the source language; heads are taken from it.
        target_reference: the reference task in the target language.
        source_reference: the reference task in the source language; ``average`` takes none.
        divergence: instead of the two references, what ``divergence()`` wrote.
        weight: λ; 0 gives the task adapter back. Also one λ a layer, or ``layers.Swap`` (factors; not of a prefix).
        output: a directory that does not exist yet.
        modules: ``attention-qv`` (default for LoRA), ``all`` (default for all others and ``average``), or a regular
            expression (PEFT's reading: it must match a whole name or its ending after a dot; of a prefix, its spans').
        space: ``factors`` (the paper: A and B each; one start needed) or ``delta`` (exact ΔW; LoRA only).
        rank: truncate a delta merge to this rank.
        rule: ``adaptive``, or ``additive``, ``multiplicative``, ``average``, or a registered one, on any structure.
        allow_different_start: merge factors or bottlenecks although they began from different random starts.
        span: of a prefix, what shares one D: ``per_layer`` (default), ``per_kv`` or ``whole``.
        form: of a prefix, ``left`` (default), or ``literal``: λ·D·P[T,s] as printed, without the identities.

    Raises:
        ConfigError: arguments that do not go together.
        AdapterFileError: files that cannot be read or written, or hold values that are not finite.
        IncompatibleAdaptersError: adapters that cannot be combined.
        NothingMergedError: no module matched, or nothing changed although the weight is not 0.
    """
    require_arguments(weight, space, rank, rule, (target_reference, source_reference, divergence))
    path = require_free(output)
    own = _open("task", task)
    chosen_rule = rule_for(rule, own.layout.kind)
    require_space(own, chosen_rule, space)
    require_one_weight(own, space, weight)
    layers = by_layer(weight, own.layout.sites)
    mean = sum(layers) / len(layers) if layers else float(weight)  # type: ignore[arg-type]
    span, form = prefix_choices(own.layout.kind, chosen_rule, span, form)
    if form == "literal":
        chosen_rule = prefix.LITERAL
    others = _others(target_reference, source_reference, divergence)
    if divergence is None:
        require_references(others[0], others[1] if len(others) > 1 else None, own)
    else:
        require_divergence(others[0], chosen_rule, space, span)
    require_fitting([own, *others], space)
    _require_finite_heads(others)
    selection = modules or default_selection(own.layout.kind, chosen_rule)
    chosen = select(_modules(own, span), selection)
    require_covered(others[0], chosen, _modules(others[0], span))
    if space == "factors":
        require_same_start([own, *others], allow_different_start)
    if own.layout.structure.head_apart:
        require_head(own.layout.directory.path)
    require_read(own.layout)
    with _hashes([own, *others]) as hashes, staged_directory(path) as stage:
        choices = Choices(chosen_rule, space, mean, layers, rank, span, form)
        items, config = _write(stage / TENSORS, own, others, choices, chosen)
        summary = MergeReport(
            own.layout.kind,
            chosen_rule.name,
            space,
            selection,
            mean,
            rank,
            tuple(items),
            tuple(own.layout.heads),
            tuple(name for adapter in others for name in adapter.layout.heads),
            span,
            form,
            layers,
        )
        origins = parents([own, *others], hashes())
        require_change(summary, origins)
        write_beside(stage, summary, config, merged_lineage(own, others, origins, summary, config))
        require_loadable(stage, summary, own.layout.sites)
        if own.layout.structure.head_apart:
            copy_head(own.layout.directory.path, stage)
    return _warned(summary)


def divergence(
    *,
    target_reference: StrPath,
    source_reference: StrPath,
    output: StrPath,
    modules: str | None = "all",
    space: str = "factors",
    rule: str = "adaptive",
    allow_different_start: bool = False,
    span: str | None = None,
) -> MergeReport:
    """The language vector D of two references, saved as an adapter directory that ``merge(divergence=...)`` applies.

    In float32 (float64 for F64), so that applying it is bit for bit the merge of the three adapters. In factor space
    its tensors are D of A and of B; in delta space it is a LoRA of rank r_g + r_s; of a prefix it is D − I of every
    span (n, n), in float64, and a merge may take either form of it. Source: 2402.18913, Eq 6, 8 and 10.

    Raises:
        as ``merge``.
    """
    require_arguments(1.0, space, None, rule, (target_reference, source_reference, None))
    path = require_free(output)
    target, source = _open("target reference", target_reference), _open("source reference", source_reference)
    chosen_rule = rule_for(rule, target.layout.kind)
    if not chosen_rule.needs_source or chosen_rule.function is not None:
        raise ConfigError(
            "This rule has no divergence." if chosen_rule.function else "Averaging has no divergence.",
            where="rule",
            found=chosen_rule.name,
            expected="adaptive, additive or multiplicative",
            fix=f"merge with --rule {chosen_rule.name} --target-reference instead",
        )
    require_space(target, chosen_rule, space)
    span, _ = prefix_choices(target.layout.kind, chosen_rule, span, None)
    require_references(target, source)
    require_fitting([target, source], space)
    require_no_trained_base(target)
    _require_finite_heads([target, source])
    selection = modules or default_selection(target.layout.kind, chosen_rule)
    chosen = select(_modules(target, span), selection)
    if space == "factors":
        require_same_start([target, source], allow_different_start)
    require_read(target.layout)
    with _hashes([target, source]) as hashes, staged_directory(path) as stage:
        choices = Choices(chosen_rule, space, 1.0, None, None, span, None)
        items, config = _write_divergence(stage / TENSORS, target, source, choices, chosen)
        summary = MergeReport(
            target.layout.kind,
            chosen_rule.name,
            space,
            selection,
            None,
            None,
            tuple(items),
            ignored_heads=(*target.layout.heads, *source.layout.heads),
            span=span,
        )
        origins = parents([target, source], hashes())
        require_change(summary, origins)
        write_beside(stage, summary, config, merged_lineage(target, [target, source], origins, summary, config))
        require_loadable(stage, summary, () if span else chosen)
    return _warned(summary)


def _open(role: str, path: StrPath) -> Adapter:
    directory = AdapterDirectory.open(path)
    return Adapter(role, layout(directory), lineages.read(directory.path))


def _others(target: StrPath | None, source: StrPath | None, divergence: StrPath | None) -> list[Adapter]:
    roles = (("target reference", target), ("source reference", source), ("divergence", divergence))
    return [_open(role, path) for role, path in roles if path is not None]


def _require_finite_heads(references: list[Adapter]) -> None:
    """The heads of references are left out, but one that is not finite tells of a training that diverged."""
    for adapter in references:
        if adapter.layout.heads:
            with TensorReader(adapter.layout.directory) as reader:
                require_finite(reader, adapter.layout.heads.values())


def _modules(adapter: Adapter, span: str | None) -> list[str]:
    """What a selection chooses from: modules; of a prefix, its spans."""
    return list(adapter.layout.sites) if span is None else stream_prefix.names(adapter.layout, span)


Written = tuple[list[ModuleChange], Mapping[str, Any]]


def _write(path: Path, own: Adapter, others: list[Adapter], choices: Choices, chosen: frozenset[str]) -> Written:
    rule, space, weight, layers, rank, span, _ = choices
    config = own.layout.directory.config
    with ExitStack() as stack:
        task, *readers = (stack.enter_context(TensorReader(adapter.layout.directory)) for adapter in (own, *others))
        saved = others[0].role == "divergence"
        if span is not None:
            found = [(reader, adapter.layout) for reader, adapter in zip(readers, others, strict=True)]
            source = stream_prefix.Divergence(rule, span, found, saved)
            prefixes = stream_prefix.PrefixMerge(rule, weight, span, own.layout, chosen, task, source)
            return prefixes.write(path), {**config, "prefix_projection": False}
        if space == "factors":
            weights = by_module(layers or weight, own.layout.sites)
            if rule.function is not None:
                return WholeMerge(rule.function, weights, own.layout, chosen, task, tuple(readers)).write(path), config
            merge_of = ElementwiseMerge(rule, weights, own.layout, chosen, task, tuple(readers), saved)
            return merge_of.write(path), config
        pairs = [(reader, adapter.layout) for reader, adapter in zip(readers, others, strict=True)]
        if saved:
            factors: FactorSource = SavedFactors(*pairs[0])
        else:
            factors = ReferenceFactors(pairs[0], pairs[1] if rule.needs_source else None)
        merger = DeltaMerge(not rule.needs_source, weight, rank, own.layout, chosen, task, factors)
        items = merger.write(path)
        return items, config if _same_ranks(own, merger) else ranked(config, dict(merger.shapes))


def _same_ranks(own: Adapter, merger: DeltaMerge) -> bool:
    return all((site.rank, site.scaling) == merger.shapes[name] for name, site in own.layout.sites.items())


def ranked(config: Mapping[str, Any], shapes: dict[str, tuple[int, float]]) -> Mapping[str, Any]:
    """A PEFT config with the (rank, scaling) of each module, read back as PEFT reads it."""
    made = delta.with_ranks(dict(config), shapes)
    ranks = Ranks(made)
    for name, (rank, scaling) in shapes.items():
        found = ranks(name)
        if found[0] != rank or abs(found[1] - rank * scaling) > 1e-9 * found[1]:
            raise AssertionError(f"rank pattern of {name}: {found}, wanted {(rank, rank * scaling)}")
    return made


def _write_divergence(
    path: Path, target: Adapter, source: Adapter, choices: Choices, chosen: frozenset[str]
) -> Written:
    rule, space, span = choices.rule, choices.space, choices.span
    config = dict(target.layout.directory.config)
    if "modules_to_save" in config:
        config["modules_to_save"] = None
    with (
        TensorReader(target.layout.directory) as one,
        TensorReader(source.layout.directory) as two,
    ):
        if span is not None:
            pairs = [(one, target.layout), (two, source.layout)]
            return stream_prefix.write_divergence(path, rule, span, chosen, pairs), config
        if space == "factors":
            return write_divergence(path, rule, target.layout, chosen, (one, two)), config
        pair = ReferenceFactors((one, target.layout), (two, source.layout))
        items, shapes = write_factors(path, pair, target.layout, chosen)
        return items, ranked(config, shapes)


@contextmanager
def _hashes(adapters: list[Adapter]) -> Iterator[Any]:
    """SHA-256 of every input, computed beside the merge."""
    paths = [adapter.layout.directory.tensors_path for adapter in adapters]
    digests = hashing.beside(paths)

    def collect() -> list[str]:
        found = digests.result()
        missing = [adapter for adapter, path in zip(adapters, paths, strict=True) if path not in found]
        if missing:
            raise AdapterFileError("The adapter changed while it was read.", where=missing[0].where, fix="try again")
        return [found[path] for path in paths]

    try:
        yield collect
    finally:
        digests.stop()


def _warned(summary: MergeReport) -> MergeReport:
    for text in summary.warnings:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    return summary
