"""Intervals and paired tests of scores, for evaluation, tables, reports and CSV files. numpy only.

A ``Sample`` is one system's answers to one labelled set. ``compare`` and ``pooled_interval`` take samples of one or
several seeds and languages; ``comparisons`` and ``pooled`` do so for all methods of a table, adjusted by Holm.
"""

from __future__ import annotations

from adamergex.statistics.comparisons import Comparison, agreeing, compare
from adamergex.statistics.holm import holm
from adamergex.statistics.intervals import interval, pooled_interval, standard_error, wilson
from adamergex.statistics.samples import Sample
from adamergex.statistics.sign_flips import mcnemar
from adamergex.statistics.table import comparisons, pooled

__all__ = [
    "Comparison",
    "Sample",
    "agreeing",
    "compare",
    "comparisons",
    "holm",
    "interval",
    "mcnemar",
    "pooled",
    "pooled_interval",
    "standard_error",
    "wilson",
]
