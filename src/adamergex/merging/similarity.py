"""Cosines between the divergences D of several target languages, streamed. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adamergex.errors import ConfigError
from adamergex.files.directory import Array, TensorReader
from adamergex.merging.lockstep import lockstep, tensor_runs
from adamergex.merging.prepare import MergeSpec, prepare
from adamergex.merging.stream import Tally, reference_divergence

_BLOCK = 8192


@dataclass(frozen=True)
class Similarity:
    """Cosines of the languages' divergences. ``cosines[i][j]`` is None if one of the two is zero.

    Args:
        languages: in the order of the matrix.
        cosines: symmetric, between −1 and 1.
        norms: ‖D‖ (‖D − 1‖ for the multiplicative rule), Frobenius, over all modules.
        rule: the rule that defines D.
    """

    languages: tuple[str, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    norms: tuple[float, ...]
    rule: str


def similarity(
    source_reference: str | Path, target_references: Mapping[str, str | Path], *, allow_different_start: bool = False
) -> Similarity:
    """cos(D_g, D_h) = ⟨D_g, D_h⟩ / (‖D_g‖·‖D_h‖) over all entries of all modules, for every pair of targets.

    D depends on the rule: A[R,g] − A[R,s] for LoRA, for A and for B (factor space); A[R,g] ⊘ A[R,s] − 1 for
    (IA)³, which is 0 without divergence, as for LoRA. All adapters are read in lockstep, chunk by chunk. Ours; the
    divergences are those of 2402.18913, Eq 6 and 8.

    Raises:
        ConfigError: no target language, or prefixes.
        AdapterFileError: files that cannot be read, or hold values that are not finite.
        IncompatibleAdaptersError: adapters that cannot be combined.
    """
    if not target_references:
        raise ConfigError("no divergence to compare", where="target_references", found="none", expected="one or more")
    spec = MergeSpec(modules="all", allow_different_start=allow_different_start)
    prepared = [
        prepare(spec, target_reference=path, source_reference=source_reference) for path in target_references.values()
    ]
    (_, source), _, rule, *_ = prepared[0]
    if source.layout.structure.whole:
        raise ConfigError(
            "the divergences of prefixes are matrices that multiply from the left, without a common scale for a cosine",
            where=source.layout.directory.path,
            found=source.layout.kind,
            expected="LoRA, (IA)³ or bottleneck adapters",
        )
    gram = np.zeros((len(prepared), len(prepared)))
    with ExitStack() as stack:
        adapters = [*(item.own for item in prepared), source]
        readers = [stack.enter_context(TensorReader(adapter.layout.directory)) for adapter in adapters]
        order = [info for site in source.layout.sites.values() for info in site.tensors.values()]
        for run in tensor_runs(source.layout, order, readers):
            for *targets, reference in lockstep(run, readers):
                divergences = [
                    reference_divergence(rule, [target, reference], Tally(), np.empty_like(reference.values))[0]
                    for target in targets
                ]
                gram += _products(divergences, rule.neutral or 0.0)
    norms = np.sqrt(np.diag(gram))
    return Similarity(tuple(target_references), _cosines(gram, norms), tuple(norms.tolist()), rule.name)


def _products(rows: list[Array], neutral: float) -> Array:
    """⟨row_i − neutral, row_j − neutral⟩ of every pair, in float64 and in blocks of bounded memory."""
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, len(rows[0]), _BLOCK):
        block = np.stack([row[start : start + _BLOCK] for row in rows]).astype(np.float64) - neutral
        total += block @ block.T
    return total


def _cosines(gram: Array, norms: Array) -> tuple[tuple[float | None, ...], ...]:
    def cosine(i: int, j: int) -> float | None:
        if i == j and norms[i]:
            return 1.0
        length = float(norms[i]) * float(norms[j])
        value = float(gram[i, j]) / length if length else math.nan
        return max(-1.0, min(1.0, value)) if math.isfinite(value) else None

    return tuple(tuple(cosine(i, j) for j in range(len(norms))) for i in range(len(norms)))
