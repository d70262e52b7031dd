"""Sources of rows: a local file, a hub dataset, or a task with its own data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field, model_serializer, model_validator

from adamergex.files.strict import Count, PathText, Seed, Settings

Limit = Annotated[Count | None, Field(description="keeps the first rows")]
Sample = Annotated[
    Count | None,
    Field(description="draws so many rows at random (of those that limit keeps), the same ids in every language"),
]
SampleSeed = Annotated[Seed, Field(description="seed of the sample")]


class _Sampled(Settings):
    """Settings of rows with an optional sample, whose settings are serialized only if used, so that step keys stay."""

    @model_serializer(mode="wrap")
    def _without_unused(self, write: Callable[[_Sampled], dict[str, object]]) -> dict[str, object]:
        written = write(self)
        drawn = written.get("sample") is not None
        return {name: value for name, value in written.items() if drawn or name not in ("sample", "seed")}


class Rows(_Sampled):
    """A source of rows: one local file (jsonl, csv, tsv, parquet, txt; ``.gz`` too) or a hub dataset.

    ``columns`` maps our names (text, label) to the file's."""

    path: PathText | None = Field(default=None, description="a local file")
    hub: PathText | None = Field(default=None, description="a hub dataset")
    config: PathText | None = Field(default=None, description="configuration of the hub dataset")
    revision: PathText | None = Field(default=None, description="revision of the hub dataset")
    split: PathText = Field(default="train", description="split of the hub dataset")
    columns: dict[str, str] = Field(default_factory=dict, description="our column names -> those of the file")
    limit: Limit = None
    sample: Sample = None
    seed: SampleSeed = 0

    @model_validator(mode="after")
    def _one_origin(self) -> Rows:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either 'path' (a local file) or 'hub' (a dataset id)")
        return self


class TaskRows(_Sampled):
    """Rows of a task with its own data (``tasks.catalogue``): ``data`` is a folder, or "hub".

    ``options`` are further arguments of its ``rows`` function."""

    task: PathText
    data: PathText
    split: PathText = "test"
    options: dict[str, str] = Field(default_factory=dict)
    limit: Limit = None
    sample: Sample = None
    seed: SampleSeed = 0
