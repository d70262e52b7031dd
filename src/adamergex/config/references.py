"""The reference task in the settings of a table: unlabelled text, sentences, a labelled task, or existing adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from adamergex.config.task import TaskConfig, Where
from adamergex.files.strict import Count, Name, PathText, Positive, Settings, Share
from adamergex.jobs.settings import (
    LanguageModeling,
    Noise,
    Objective,
    Optimisation,
    SentenceAlignment,
    SentenceContrast,
    UnlabelledTask,
)

OBJECTIVE = "encoder-decoders only; auto: span corruption if the tokenizer has sentinels, else continuation"


class TextReference(Settings):
    """The reference task on unlabelled text, identical for the source and all targets."""

    kind: Literal["language-modeling"] = "language-modeling"
    text: Where = Field(description="raw text")
    segment: Count = Field(default=512, description="tokens per segment")
    segments: Count | None = Field(
        default=None, description="number of segments per language; default: that of the shortest text"
    )
    mask_rate: Share = 0.15
    objective: Objective = Field(default="auto", description=OBJECTIVE)
    optimisation: Optimisation = Optimisation()

    def unlabelled(self, segments: int | None, source: str) -> UnlabelledTask:
        """The task that references are trained on; ``segments``: number of segments per language."""
        return LanguageModeling(
            segment=self.segment, segments=segments, mask_rate=self.mask_rate, objective=self.objective
        )


class _OfSentences(Settings):
    """Common settings of the reference tasks of sentence encoders."""

    text: Where = Field(description="raw text, or parallel text for alignment")
    max_length: Count = Field(default=128, description="maximum tokens of a text; longer texts are cut")
    mask_rate: Share = Field(default=0.15, description="for MAD-X's language adapters")
    objective: Objective = Field(default="auto", description="for MAD-X's language adapters")
    optimisation: Optimisation = Optimisation()

    @field_validator("optimisation")
    @classmethod
    def _of_several(cls, value: Optimisation) -> Optimisation:
        if value.batch_size < 2:
            raise ValueError("each text is contrasted with the others of its batch: batch_size must be 2 or more")
        return value


class ContrastReference(_OfSentences):
    """Contrast of noisy views (2104.08821, with the noise of 2104.06979), for bases with mean pooling."""

    kind: Literal["sentence-contrast"]
    noise: Noise = Field(default=0.6, description="share of tokens deleted from the noisy copy")
    temperature: Positive = Field(default=0.05, description="temperature of InfoNCE")

    def unlabelled(self, segments: int | None, source: str) -> UnlabelledTask:
        """The task that references are trained on."""
        return SentenceContrast(max_length=self.max_length, noise=self.noise, temperature=self.temperature)


class AlignmentReference(_OfSentences):
    """Alignment with the base's vectors of a parallel text (2004.09813), for bases with mean pooling."""

    kind: Literal["sentence-alignment"]
    temperature: Positive = Field(default=0.07, description="temperature of InfoNCE")
    pivot: Where | None = Field(
        default=None,
        description="translations of the text of every language; default: the column pivot of the same rows",
    )
    pivot_language: Name | None = Field(default=None, description="language of the translations; default: source")

    def unlabelled(self, segments: int | None, source: str) -> UnlabelledTask:
        """The task that references are trained on."""
        return SentenceAlignment(
            max_length=self.max_length,
            temperature=self.temperature,
            pivot=self.pivot,
            pivot_language=(self.pivot_language or source) if self.pivot else None,
        )


def _train_is_enough(value: Any) -> Any:
    """Allow a labelled reference task without ``test``: only its training rows are read."""
    if isinstance(value, dict) and "data" not in value and "train" in value:
        return {"test": value["train"], **value}
    return value


class TaskReference(Settings):
    """A task with labels in the source and all targets as the reference task (2402.18913, Table 5): the references are
    trained on its training rows in each language."""

    kind: Literal["task"] = "task"
    task: Annotated[TaskConfig, BeforeValidator(_train_is_enough)] = Field(description="``test`` is optional")
    text: Where | None = Field(default=None, description="unlabelled text for MAD-X's language adapters")
    mask_rate: Share = 0.15
    objective: Objective = Field(default="auto", description=OBJECTIVE)

    @property
    def optimisation(self) -> Optimisation:
        return self.task.optimisation


class AdapterReference(Settings):
    """Existing adapters as references: one adapter directory for the source and each target, such as published language
    vectors. Their base and structure are checked, and their lineage is kept."""

    kind: Literal["adapters"] = "adapters"
    adapters: PathText = Field(
        description="a path with {language}, or the name of a base with shipped language vectors"
    )
    text: Where | None = Field(default=None, description="unlabelled text for methods that train on it (mad_x, …)")
    mask_rate: Share = 0.15
    objective: Objective = Field(default="auto", description=OBJECTIVE)


def _kind_of_reference(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("kind", "adapters" if "adapters" in value else "language-modeling"))
    return str(getattr(value, "kind", ""))


ReferenceConfig = Annotated[
    Annotated[TextReference, Tag("language-modeling")]
    | Annotated[TaskReference, Tag("task")]
    | Annotated[ContrastReference, Tag("sentence-contrast")]
    | Annotated[AlignmentReference, Tag("sentence-alignment")]
    | Annotated[AdapterReference, Tag("adapters")],
    Discriminator(_kind_of_reference),
]
REFERENCES: dict[str, type[Settings]] = {
    "language-modeling": TextReference,
    "task": TaskReference,
    "sentence-contrast": ContrastReference,
    "sentence-alignment": AlignmentReference,
    "adapters": AdapterReference,
}
"""Kind of reference -> its settings."""
