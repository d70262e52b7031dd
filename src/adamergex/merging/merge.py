"""merge() and divergence(): from adapter directories to an adapter directory. No base model, no torch."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from adamergex.errors import AdapterFileError
from adamergex.files import hashing
from adamergex.files.directory import TENSORS, TensorReader
from adamergex.files.outputs import require_free, staged_directory
from adamergex.merging import delta, stream_prefix
from adamergex.merging.checks import Adapter
from adamergex.merging.heads import copy_head
from adamergex.merging.layers import Weight, by_layer, by_module
from adamergex.merging.outcome import require_loadable
from adamergex.merging.prepare import MergeSpec, Prepared, StrPath, prepare
from adamergex.merging.records import merged_lineage, parents, require_change, write_beside
from adamergex.merging.report import MergeReport, ModuleChange
from adamergex.merging.rules.rule import Setting
from adamergex.merging.stream import ElementwiseMerge, write_divergence
from adamergex.merging.stream_delta import DeltaMerge, FactorSource, ReferenceFactors, SavedFactors, write_factors
from adamergex.merging.stream_whole import WholeMerge
from adamergex.structures.layout import Layout
from adamergex.structures.targets import Ranks

Written = tuple[list[ModuleChange], Mapping[str, Any]]


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
    settings: Mapping[str, Setting] | None = None,
) -> MergeReport:
    """A[T,g] from A[T,s], A[R,g] and A[R,s] (or a saved divergence D) and λ = ``weight``; written to ``output``.

    LoRA, bottleneck: A[T,s] + λ·(A[R,g] − A[R,s]); (IA)³: A[T,s] ⊙ (λ·(A[R,g] ⊘ A[R,s] − 1) + 1); prefix:
    (I + λ(D − I))·P[T,s], D = P[R,g]·P[R,s]⁺. Source: 2402.18913, Eq 6-10.

    Args:
        task: the adapter of the task in the source language; heads are taken from it.
        target_reference: the reference task in the target language.
        source_reference: the reference task in the source language; ``average`` takes none.
        divergence: instead of the two references, what ``divergence()`` wrote.
        weight: λ; 0 gives the task adapter back. Also one λ per layer, or ``layers.Swap`` (factors; not of a prefix).
        output: a directory that does not exist yet.
        modules: ``attention-qv`` (default for LoRA), ``all`` (default for all others and ``average``), or a regular
            expression (PEFT's reading: it must match a whole name or its ending after a dot; of a prefix, its spans').
        space: ``factors`` (the paper: A and B each; one start needed) or ``delta`` (exact ΔW; LoRA only).
        rank: truncate a delta merge to this rank.
        rule: ``adaptive``, or ``additive``, ``multiplicative``, ``average``, or a registered one, on any structure.
        allow_different_start: merge factors or bottlenecks although they began from different random starts.
        span: of a prefix, what shares one D: ``per_layer`` (default), ``per_kv`` or ``whole``.
        form: of a prefix, ``left`` (default), or ``literal``: λ·D·P[T,s] as printed, without the identities.
        settings: of the rule's own, by name; see ``rule``.

    Raises:
        ConfigError: arguments that do not go together.
        AdapterFileError: files that cannot be read or written, or hold values that are not finite.
        IncompatibleAdaptersError: adapters that cannot be combined.
        NothingMergedError: no module matched, or nothing changed although the weight is not 0.
    """
    path = require_free(output)
    spec = MergeSpec(rule, space, modules, rank, span, form, allow_different_start, settings or {})
    prepared = prepare(
        spec,
        task=task,
        target_reference=target_reference,
        source_reference=source_reference,
        divergence=divergence,
        weight=weight,
    )
    own = prepared.own.layout
    layers = by_layer(weight, own.sites)
    mean = sum(layers) / len(layers) if layers else float(weight)  # type: ignore[arg-type]
    with _hashes(prepared.adapters) as hashes, staged_directory(path) as stage:
        written = _write(stage / TENSORS, prepared, mean, layers)
        summary = _finish(stage, prepared, written, hashes(), own.sites, mean, layers)
        if own.structure.head_apart:
            copy_head(own.directory.path, stage)
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
    path = require_free(output)
    spec = MergeSpec(rule, space, modules, span=span, allow_different_start=allow_different_start)
    prepared = prepare(spec, target_reference=target_reference, source_reference=source_reference)
    with _hashes(prepared.adapters) as hashes, staged_directory(path) as stage:
        written = _write_divergence(stage / TENSORS, prepared)
        summary = _finish(stage, prepared, written, hashes(), () if prepared.spec.span else prepared.chosen)
    return _warned(summary)


def _finish(
    stage: Path,
    prepared: Prepared,
    written: Written,
    hashes: list[str],
    expected: Collection[str],
    weight: float | None = None,
    layers: tuple[float, ...] | None = None,
) -> MergeReport:
    """Write what stands beside the tensors, and read the directory back. Without a weight it is a divergence."""
    (items, config), adapters, own, spec = written, prepared.adapters, prepared.own, prepared.spec
    references = adapters if weight is None else adapters[1:]
    summary = MergeReport(
        own.layout.kind,
        prepared.rule.name,
        spec.space,
        prepared.selection,
        weight,
        spec.rank,
        tuple(items),
        () if weight is None else tuple(own.layout.heads),
        tuple(name for adapter in references for name in adapter.layout.heads),
        spec.span,
        spec.form,
        layers,
        prepared.rule.settings,
    )
    origins = parents(adapters, hashes)
    require_change(summary, origins)
    write_beside(stage, summary, config, merged_lineage(own, references, origins, summary, config))
    require_loadable(stage, summary, expected)
    return summary


def _write(path: Path, prepared: Prepared, weight: float, layers: tuple[float, ...] | None) -> Written:
    (own, *others), spec, rule, _, chosen = prepared
    config, span = own.layout.directory.config, spec.span
    with ExitStack() as stack:
        task, *readers = (stack.enter_context(TensorReader(adapter.layout.directory)) for adapter in prepared.adapters)
        saved = others[0].role == "divergence"
        pairs = [(reader, adapter.layout) for reader, adapter in zip(readers, others, strict=True)]
        if span is not None:
            source = stream_prefix.Divergence(rule, span, pairs, saved)
            prefixes = stream_prefix.PrefixMerge(rule, weight, span, own.layout, chosen, task, source)
            return prefixes.write(path), {**config, "prefix_projection": False}
        if spec.space == "factors":
            weights = by_module(layers or weight, own.layout.sites)
            if rule.function is not None:
                return WholeMerge(rule.function, weights, own.layout, chosen, task, tuple(readers)).write(path), config
            merge_of = ElementwiseMerge(rule, weights, own.layout, chosen, task, tuple(readers), saved)
            return merge_of.write(path), config
        merger = delta_merge(prepared, weight, task, pairs)
        items = merger.write(path)
        return items, reranked(own.layout, merger.shapes)


def delta_merge(
    prepared: Prepared, weight: float, task: TensorReader, others: Sequence[tuple[TensorReader, Layout]]
) -> DeltaMerge:
    """The merge in space delta, of the readers of the task and of the others."""
    (own, first, *_), spec, rule, _, chosen = prepared
    source = others[1] if rule.needs_source and len(others) > 1 else None
    saved = first.role == "divergence"
    factors: FactorSource = SavedFactors(*others[0]) if saved else ReferenceFactors(others[0], source)
    return DeltaMerge(not rule.needs_source, weight, spec.rank, own.layout, chosen, task, factors)


def reranked(layout: Layout, shapes: Mapping[str, tuple[int, float]]) -> Mapping[str, Any]:
    """The config of an adapter whose modules got these (rank, scaling): its own where none changed."""
    config = layout.directory.config
    same = all((site.rank, site.scaling) == shapes[name] for name, site in layout.sites.items())
    return config if same else ranked(config, shapes)


def ranked(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, float]]) -> Mapping[str, Any]:
    """A PEFT config with the (rank, scaling) of each module, read back as PEFT reads it."""
    made = delta.with_ranks(config, shapes)
    ranks = Ranks(made)
    for name, (rank, scaling) in shapes.items():
        found = ranks(name)
        if found[0] != rank or abs(found[1] - rank * scaling) > 1e-9 * found[1]:
            raise AssertionError(f"rank pattern of {name}: {found}, wanted {(rank, rank * scaling)}")
    return made


def _write_divergence(path: Path, prepared: Prepared) -> Written:
    (target, source), spec, rule, _, chosen = prepared
    config = dict(target.layout.directory.config)
    if "modules_to_save" in config:
        config["modules_to_save"] = None
    with TensorReader(target.layout.directory) as one, TensorReader(source.layout.directory) as two:
        pairs = [(one, target.layout), (two, source.layout)]
        if spec.span is not None:
            return stream_prefix.write_divergence(path, rule, spec.span, chosen, pairs), config
        if spec.space == "factors":
            return write_divergence(path, rule, target.layout, chosen, (one, two)), config
        items, shapes = write_factors(path, ReferenceFactors(*pairs), target.layout, chosen)
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
            raise AdapterFileError("the adapter changed while it was read", where=missing[0].where, fix="try again")
        return [found[path] for path in paths]

    try:
        yield collect
    finally:
        digests.stop()


def _warned(summary: MergeReport) -> MergeReport:
    for text in summary.warnings:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    return summary
