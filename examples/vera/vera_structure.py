"""VeRA: ΔW = diag(b)·B·diag(d)·A, where A and B are random, frozen and shared by all modules. Source: 2310.11454."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from adamergex.files.directory import AdapterDirectory
from adamergex.files.strict import Size
from adamergex.structures.kind import StructureKind
from adamergex.structures.layout import Layout, plain
from adamergex.structures.settings import OnProjections


class Vera(OnProjections):
    """VeRA. ``rank``: rows of the shared A, and columns of the shared B."""

    kind: Literal["vera"] = "vera"
    rank: Size = 256


def layout(directory: AdapterDirectory, kind: StructureKind) -> Layout:
    """b (out) and d (rank) of every module; only vectors on one shared pair can be combined."""
    shared = {name: directory.config.get(name) for name in ("r", "projection_prng_key")}
    return replace(plain(directory, kind), settings=shared)


KIND = StructureKind(
    "vera",
    settings="vera_structure:Vera",
    module="vera_model",
    peft_type="VERA",
    trained_on=("query", "value"),
    rule="additive",  # b and d each: A[T,s] + λ·(A[R,g] − A[R,s])
    pattern=re.compile(r"(?P<module>.+)\.vera_lambda_(?P<role>[bd])"),
    roles=frozenset("bd"),
    tensors="vera_lambda_b and vera_lambda_d",
    layout=layout,
    start="fixed",
    shape={"rank": "r"},
)
