"""Merging adapters: rules, checks and streams over adapter directories. Needs numpy, but no torch and no base model."""

from __future__ import annotations

from adamergex.merging.in_memory import merged_tensors
from adamergex.merging.merge import divergence, merge
from adamergex.merging.prepare import MergeSpec
from adamergex.merging.report import MergeReport, ModuleChange
from adamergex.merging.rules.registry import RULES, register, rule, rule_for
from adamergex.merging.rules.rule import Rule
from adamergex.merging.select import select
from adamergex.merging.similarity import Similarity, similarity

__all__ = [
    "RULES",
    "MergeReport",
    "MergeSpec",
    "ModuleChange",
    "Rule",
    "Similarity",
    "divergence",
    "merge",
    "merged_tensors",
    "register",
    "rule",
    "rule_for",
    "select",
    "similarity",
]
