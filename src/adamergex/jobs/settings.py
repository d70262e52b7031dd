"""Settings of jobs: validated, frozen, serialised as JSON in steps of the graph and in lineages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import Field, model_serializer, model_validator

from adamergex.data.sources import Limit as Limit
from adamergex.data.sources import Rows as Rows
from adamergex.data.sources import Sample as Sample
from adamergex.data.sources import SampleSeed as SampleSeed
from adamergex.data.sources import TaskRows as TaskRows
from adamergex.files.strict import Count, Name, Names, PathText, Positive, Seed, Settings, Share, shown
from adamergex.jobs.kinds import BUILT_IN, by_kind, known_settings, settings_of
from adamergex.jobs.optimisation import Optimisation as Optimisation
from adamergex.jobs.optimisation import decaying as decaying
from adamergex.jobs.optimisation import first_phase as first_phase
from adamergex.structures import kind_named
from adamergex.structures.settings import Activation as Activation
from adamergex.structures.settings import Bottleneck as Bottleneck
from adamergex.structures.settings import Full as Full
from adamergex.structures.settings import Sparse as Sparse
from adamergex.structures.settings import Structure as Structure


class LabelledTask(Settings):
    """Common settings of target tasks. ``measured_as``: the task (or .py file) whose ``score`` function is used;
    ``metric``: the main one of its scores; ``prompt``: for generative models, with columns in braces.

    ``probed``: the head predicts one label per text with a linear last layer, so it can start from a probe."""

    if TYPE_CHECKING:
        kind: str
    probed: ClassVar[bool] = False
    name: PathText
    prompt: str
    max_length: Count = Field(default=256, description="maximum tokens of an input")
    metric: str
    measured_as: PathText | None = None
    chat: bool = Field(
        default=False,
        description="put prompts into the tokenizer's chat template, in training too; generative models only",
    )
    too_long: Literal["reject", "leave-out"] = Field(
        default="reject", description="reject or omit training rows whose answer leaves no room for the prompt"
    )
    answer_after: str | None = Field(
        default=None, description="marker in a generated answer; the line after it is read"
    )

    @model_serializer(mode="wrap")
    def _without_unused(self, write: Callable[[LabelledTask], dict[str, object]]) -> dict[str, object]:
        # Omitted if unused, so that earlier steps keep their keys.
        unused = (("answer_after", None), ("chat", False), ("too_long", "reject"))
        return {name: value for name, value in write(self).items() if (name, value) not in unused}


Stops = tuple[Annotated[str, Field(min_length=1)], ...]
AnswerBy = Literal["likelihood", "generate"]
HeadInput = Literal["auto", "cls", "mean"]
WithWords = TypeVar("WithWords", "Classification", "PairClassification")
HEAD = "encoders: input of the head, the first token or the mean over the text; auto: mean for sentence encoders"
Objective = Literal["auto", "span-corruption", "continuation"]


def _check_words(task: WithWords) -> WithWords:
    """The task, if all labels have different words. Raises: ValueError."""
    unknown = sorted(set(task.words) - set(task.labels)) if task.labels else []
    if unknown:
        raise ValueError(f"words: {shown(unknown[0])} is not one of the labels, {shown(list(task.labels), 300)}")
    words = [task.words.get(label, label) for label in task.labels or ()] or [*task.words.values()]
    if any(not word.strip() for word in words):
        raise ValueError("words: a label's word is blank")
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise ValueError(f"words: two labels have the same word, {shown(twice)}")
    return task


class Classification(LabelledTask):
    """One label per text. Encoders: a head. Decoders and encoder-decoders: a prompt, with label words scored by
    log-likelihood."""

    probed: ClassVar[bool] = True
    head: HeadInput = Field(default="auto", description=HEAD)
    kind: Literal["classification"] = "classification"
    name: str = "classification"
    labels: Names
    words: dict[str, str] = Field(
        default_factory=dict, description="label -> its word in prompts and answers of generative models"
    )
    prompt: str = "{text}\nTopic:"
    metric: str = "accuracy"
    normalised: bool = Field(
        default=False, description="divide the log-likelihood by the number of characters of the label's word"
    )

    _words = model_validator(mode="after")(_check_words)


class PairClassification(LabelledTask):
    """One label for a premise and a hypothesis; long inputs are cut in the premise."""

    probed: ClassVar[bool] = True
    head: HeadInput = Field(default="auto", description=HEAD)
    kind: Literal["pair-classification"] = "pair-classification"
    name: str = "pair-classification"
    labels: Names
    words: dict[str, str] = Field(
        default_factory=dict, description="label -> its word in prompts and answers of generative models"
    )
    prompt: str = "Premise: {premise}\nHypothesis: {hypothesis}\nRelationship:"
    metric: str = "accuracy"
    answer_by: AnswerBy = "likelihood"
    normalised: bool = Field(
        default=False, description="divide the log-likelihood by the number of characters of the label's word"
    )

    _words = model_validator(mode="after")(_check_words)


class MultipleChoice(LabelledTask):
    """One of several continuations. Encoders read ``context`` and each choice; decoders the prompt, then a choice.

    ``label`` is the position of the correct choice in ``choices`` (names of columns), from 0."""

    head: HeadInput = Field(default="auto", description=HEAD)
    kind: Literal["multiple-choice"] = "multiple-choice"
    name: str = "multiple-choice"
    choices: Annotated[Names, Field(min_length=2)] = ("choice1", "choice2")
    context: str = "{premise}"
    cut: str = Field(default="premise", description="the column that is cut if context or prompt is too long")
    prompt: str = "{premise}"
    metric: str = "accuracy"
    answer_by: AnswerBy = "likelihood"
    normalised: bool = Field(
        default=False, description="divide the log-likelihood by the number of characters of the choice"
    )


class SpanAnswering(LabelledTask):
    """A span of a context that answers a question. Encoders read long contexts in windows that overlap by ``stride``
    tokens; an answer has at most ``longest_answer`` tokens. Decoders generate it, with at most ``max_new_tokens``."""

    kind: Literal["span"] = "span"
    name: str = "span"
    max_length: Count = 384
    stride: Count = Field(default=128, description="tokens that neighbouring windows share")
    longest_answer: Count = Field(default=30, description="maximum tokens of a predicted span")
    max_new_tokens: Count = Field(default=32, description="maximum tokens of a generated answer")
    prompt: str = "{context} Question: {question}"
    metric: str = "f1"
    measured_as: str | None = "xquad"


class Tagging(LabelledTask):
    """Entities (IOB2) in a tokenised sentence. Encoders label the first token of each word; decoders generate
    ``TYPE: words; …``.

    ``other_types``: for tags whose type is not in ``types``; "ignore" makes them O and counts them."""

    kind: Literal["tagging"] = "tagging"
    name: str = "tagging"
    types: Names
    other_types: Literal["reject", "ignore"] = Field(
        default="reject", description="reject tags of types outside ``types``, or read them as O"
    )
    broken: Literal["reject", "repair"] = Field(
        default="reject", description="reject or repair tags that are not valid IOB2"
    )
    max_new_tokens: Count = Field(default=96, description="maximum tokens of a generated answer")
    prompt: str = "Sentence: {text}\nEntities:"
    metric: str = "f1"
    measured_as: str | None = "ner"


class Generation(LabelledTask):
    """A free answer, generated by greedy decoding and scored against ``reference`` (a column with one or several
    texts).

    Models are trained on ``target`` (a template; default: one example per reference)."""

    kind: Literal["generation"] = "generation"
    name: str = "generation"
    cut: str = Field(default="text", description="the column that is cut if the prompt is too long")
    reference: str = Field(default="target", description="column of the reference answers")
    target: str | None = Field(default=None, description="template of the training answer; default: every reference")
    max_length: Count = 512
    max_new_tokens: Count = Field(default=64, description="maximum tokens of a generated answer")
    stop: Stops = Field(default=("\n",), description="strings that end a generated answer")
    prompt: str = "{text}"
    metric: str = "rougeL"
    measured_as: str | None = "xlsum"


class UnlabelledTask(Settings):
    """Common settings of reference tasks without labels and predictions."""

    if TYPE_CHECKING:
        kind: str
    probed: ClassVar[bool] = False


class LanguageModeling(UnlabelledTask):
    """The reference task on unlabelled text: masked LM on encoders, causal LM on decoders; on encoder-decoders
    ``objective``, by default span corruption if the tokenizer has sentinels (T5), else continuation.

    The text is cut into ``segments`` segments of ``segment`` tokens."""

    kind: Literal["language-modeling"] = "language-modeling"
    segment: Count = 512
    segments: Count | None = None
    mask_rate: Share = 0.15
    objective: Objective = "auto"


Noise = Annotated[float, Field(ge=0, lt=1)]


class SentenceContrast(UnlabelledTask):
    """A reference task of sentence encoders on unlabelled text: match a text's vector with that of a copy without a
    share ``noise`` of its tokens (SimCSE with TSDAE's noise)."""

    kind: Literal["sentence-contrast"] = "sentence-contrast"
    max_length: Count = 128
    noise: Noise = Field(default=0.6, description="share of tokens deleted from the noisy copy")
    temperature: Positive = 0.05


class SentenceAlignment(UnlabelledTask):
    """A reference task of sentence encoders on parallel text: a text's target is the base's vector of its translation
    in the pivot language. ``pivot``: rows of the translations, matched by id, else line by line; without it every row
    has a column ``pivot``."""

    kind: Literal["sentence-alignment"] = "sentence-alignment"
    max_length: Count = 128
    temperature: Positive = 0.07
    pivot: Rows | None = None
    pivot_language: Name | None = None

    @model_validator(mode="after")
    def _of_a_language(self) -> SentenceAlignment:
        if self.pivot is not None and self.pivot_language is None:
            raise ValueError("pivot needs pivot_language, the language of its rows")
        return self


BUILT_IN |= {
    settings.model_fields["kind"].default: settings
    for settings in (
        Classification, PairClassification, MultipleChoice, SpanAnswering, Tagging, Generation,
        LanguageModeling, SentenceContrast, SentenceAlignment,
    )
}  # fmt: skip

Target: TypeAlias = Annotated[LabelledTask, by_kind(LabelledTask)]
"""A task of any labelled kind."""
Task: TypeAlias = Annotated[LabelledTask | UnlabelledTask, by_kind(Settings)]
"""A task of any kind."""
AnyRows = Rows | TaskRows


class TrainJob(Settings):
    """Train one adapter on one task in one language.

    ``base_adapters``: directories of frozen adapters under it, from the base up (MAD-X: the language's); for full or
    sparse fine-tuning: differences to start from."""

    base: PathText
    structure: Structure
    task: Task
    language: Name
    rows: AnyRows
    optimisation: Optimisation
    seed: Seed = 0
    base_adapters: tuple[PathText, ...] = ()

    @model_validator(mode="after")
    def _stackable(self) -> TrainJob:
        problem = unstackable(self.structure, self.base_adapters) or decaying(self.structure, self.optimisation)
        if problem := problem or unprobed(self.task.kind, self.optimisation):
            raise ValueError(problem)
        return self


def unprobed(kind: str, optimisation: Optimisation) -> str | None:
    """A problem of starting the head of a kind of task from a probe, or None."""
    if optimisation.head_start != "probe" or getattr(settings_of(kind), "probed", False):
        return None
    heads = [settings for settings in known_settings(LabelledTask) if getattr(settings, "probed", False)]
    probed = [settings.model_fields["kind"].default for settings in heads]
    return f"optimisation.head_start: 'probe' is for {' and '.join(probed)}, this is {kind}"


def unstackable(structure: Structure, base_adapters: Sequence[str]) -> str | None:
    """A problem of training a structure on frozen adapters, or None."""
    if base_adapters and not kind_named(structure.kind).stackable:
        return f"base_adapters: only a bottleneck adapter can have them; structure.kind is {structure.kind}"
    if base_adapters and isinstance(structure, Bottleneck) and structure.invertible:
        return "structure.invertible: only the lowest adapter's is used, and 'base_adapters' names a lower one"
    return None


class EvaluateJob(Settings):
    """Predict and score one labelled set in one language. ``vanilla`` prompts the bare base."""

    base: PathText
    task: Target
    language: Name
    rows: AnyRows
    batch_tokens: Count = 8192
