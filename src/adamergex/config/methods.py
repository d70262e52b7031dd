"""What the methods of a table take from the settings: reference task, merge, MAD-X, and the rivals."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from adamergex.files.strict import (
    Count,
    Entries,
    Layers,
    Penalty,
    Positive,
    Rate,
    Reduction,
    Settings,
    Size,
    Weight,
    distinct,
    shown,
)
from adamergex.jobs.merge import RuleSettings, SwapConfig
from adamergex.jobs.settings import (
    Activation,
    Optimisation,
)

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def _with_zero(grid: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted({0.0, *grid}))


LANGUAGE = Optimisation(steps=50_000, learning_rate=1e-4, batch_size=64, schedule="linear", warmup=0, max_grad_norm=1.0)


def _like_a_language(value: object) -> object:
    return {**LANGUAGE.model_dump(), **value} if isinstance(value, dict) else value


LanguageOptimisation = Annotated[Optimisation, BeforeValidator(_like_a_language)]
"""``Optimisation`` with MAD-X's defaults: 50,000 steps (the paper's number for little text; 250,000 for much) of 64
segments at 1e-4, falling linearly, gradients cut at norm 1."""


def _several(value: object) -> object:
    """One value or several, as text: a paper's tables have numbers and names."""
    several = value if isinstance(value, list | tuple) else (value,)
    strange = [item for item in several if not isinstance(item, str | int) or isinstance(item, bool)]
    if strange:
        raise ValueError(f"{shown(strange[0])} is neither a text nor a whole number")
    return tuple(map(str, several))


Words = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""One value, or a list of them; empty: any."""


class PapersConfig(Settings):
    """Which of the papers' numbers a report sets beside a table: the lines whose columns hold one of these values."""

    paper: Words = ()
    table: Words = ()
    model: Words = ()
    structure: Words = ()
    source: Words = ()
    reference: Words = ()
    label: Words = ()

    @property
    def chosen(self) -> dict[str, tuple[str, ...]]:
        """Column -> its values, of the columns that matter."""
        return {name: values for name, values in self if values}


class CombineConfig(Settings):
    """What ties and dare keep and how they weigh; ``merge.rank`` cuts their ΔW, which else has full rank."""

    density: Annotated[float, Field(gt=0, le=1)] = Field(default=0.5, description="share of the entries that is kept")
    weights: tuple[Penalty, Penalty] | None = Field(
        default=None,
        description="of task and target reference; default: 1, 1 for ties, 0.5, 0.5 for dare",
    )


class Traits(NamedTuple):
    """What a method asks of a table's settings.

    Args:
        tunes: it merges with a λ that can be chosen.
        delta: it merges what adapters add to the weights.
        on_text: it trains on ``reference.text``, whatever the reference task is.
        needs: what its structure must be: a field of ``StructureKind``.
    """

    tunes: bool = False
    delta: bool = False
    on_text: bool = False
    needs: Literal["", "low_rank", "task_vectors"] = ""


METHODS: dict[str, Traits] = {
    "vanilla": Traits(),
    "english_tuning": Traits(),
    "average": Traits(),
    "adamergex": Traits(tunes=True),
    "adamergex_delta": Traits(tunes=True, delta=True, needs="low_rank"),
    "adamergex_cross": Traits(tunes=True),
    "mad_x": Traits(on_text=True),
    "mad_x_no_invertible": Traits(on_text=True),
    "mad_x_task_only": Traits(),
    "layer_swapping": Traits(),
    "language_arithmetic": Traits(on_text=True),
    "ties": Traits(delta=True, needs="task_vectors"),
    "dare": Traits(delta=True, needs="task_vectors"),
    "ties_factors": Traits(needs="low_rank"),
    "dare_factors": Traits(needs="low_rank"),
    "full_fine_tuning": Traits(),
    "mlm_source": Traits(on_text=True),
    "mlm_target": Traits(on_text=True),
    "lf_sft": Traits(on_text=True),
    "xlt": Traits(),
    "xlt_english_tuning": Traits(),
}
"""The shipped methods; ``methods.RECIPES`` holds their functions."""


class MergeConfig(Settings):
    """How the three adapters become one. ``weight: tuned`` searches ``grid`` on the validation sets of the proxy
    languages, or of the other targets; ``weight: entropy`` takes, for each target, the λ whose predictions for its
    unlabelled inputs are most certain (2310.02575)."""

    space: Literal["factors", "delta"] = Field(default="factors", description="LoRA: merge A and B, or ΔW")
    modules: str | None = Field(default=None, description="attention-qv (for LoRA), all, or a regular expression")
    rank: Size | None = Field(default=None, description="truncate delta merges, ties and dare to this rank")
    span: Literal["per_layer", "per_kv", "whole"] = Field(default="per_layer", description="prefix: what shares one D")
    form: Literal["left", "literal"] = Field(default="left", description="prefix: (I + λ(D − I))·P, or λ·D·P")
    weight: Literal["tuned", "entropy"] | Weight = "tuned"
    grid: Annotated[tuple[Weight, ...], Field(max_length=1000), AfterValidator(_with_zero)] = GRID
    granularity: Literal["all", "layer"] = Field(default="all", description="entropy: one λ, or one a layer")
    unlabelled: Literal["test", "validation"] = Field(
        default="test", description="entropy: whose inputs in the target language; files need no labels"
    )
    unlabelled_rows: Count = Field(default=256, description="entropy: at most so many of them, the first")
    leave_one_out: bool = Field(
        default=False, description="tuned: each target's λ on the validation sets of the other targets, not of proxies"
    )
    one_standard_error: bool = Field(
        default=False,
        description="tuned: the smallest |λ| whose mean score is within one standard error of the best, not the best",
    )
    oracle: bool = Field(
        default=False,
        description="show beside each method the λ that is best on the target's own test set: an upper bound, not a "
        "method; and what every other way of choosing λ loses against it",
    )
    compare: Annotated[tuple[Literal["proxy", "leave_one_out", "entropy"], ...], AfterValidator(distinct)] = Field(
        default=(),
        description="oracle: further ways of choosing λ that its picture shows, each with searches of its own",
    )
    rules: dict[str, RuleSettings] = Field(
        default_factory=dict, description="rule -> its own settings: the keyword-only parameters of its function"
    )
    swap: SwapConfig = SwapConfig()
    combine: CombineConfig = CombineConfig()


LONG = Optimisation(steps=100_000, learning_rate=5e-5, batch_size=8, schedule="linear", warmup=0, max_grad_norm=1.0)


class OnText(Settings):
    """A training on the text of one language after the other."""

    segment: Count = 256
    segments: Count | None = Field(default=None, description="default: all that the language has")
    optimisation: Optimisation = LONG
    steps_by_language: dict[str, Count] = Field(
        default_factory=dict, description="language -> steps, in place of optimisation.steps: of those with little text"
    )

    def optimisation_of(self, language: str) -> Optimisation:
        """How long and how fast this language is learned."""
        steps = self.steps_by_language.get(language)
        return self.optimisation if steps is None else self.optimisation.model_copy(update={"steps": steps})


class LanguageAdapters(OnText):
    """MAD-X's language adapters: trained on ``reference.text``, with its ``mask_rate`` and ``objective``, once a
    language for all tasks and methods."""

    reduction: Reduction = 2.0
    invertible: bool = Field(default=True, description="with a NICE block at the embeddings")
    optimisation: LanguageOptimisation = LANGUAGE


class TaskAdapters(Settings):
    """MAD-X's task adapter, which stands on the source's language adapter."""

    reduction: Reduction = 16.0
    optimisation: Optimisation | None = Field(default=None, description="default: task.optimisation")


NER = LONG.model_copy(update={"steps": None, "epochs": 10.0})


class FullLanguage(OnText):
    """MLM-SRC and MLM-TRG: all weights trained on ``reference.text`` before the task."""


class FullConfig(Settings):
    """Methods that train all weights: full_fine_tuning, mlm_source, mlm_target."""

    language: FullLanguage = FullLanguage()
    task: Optimisation | None = Field(default=None, description="default: task.optimisation at ``learning_rate``")
    learning_rate: Rate = 2e-5


class SparseLanguage(OnText):
    """LF-SFT's difference of a language. The default K is 7.67 of XLM-R base's 278 million."""

    entries: Entries = Field(default=0.0276, description="how many weights change, or which share of them")
    l1: Penalty = Field(default=0.1, description="of the mean absolute difference")
    first_steps: Count | None = Field(default=None, description="of the phase that chooses; default: as many")


class SparseTask(Settings):
    """LF-SFT's difference of the task. The default K is 14.2 of XLM-R base's 278 million."""

    entries: Entries = Field(default=0.0511, description="how many weights change, or which share of them")
    l1: Penalty = 0.0
    freeze_norms: bool = Field(
        default=True, description="layer norms stay as they are, as in its authors' task scripts"
    )
    first_epochs: Positive | None = Field(default=3.0, description="of the phase that chooses; default: as many")
    first_steps: Count | None = Field(default=None, description="the same in steps")
    optimisation: Optimisation = NER


class LfSftConfig(Settings):
    """The sparse differences of lf_sft (2110.07560)."""

    language: SparseLanguage = SparseLanguage()
    task: SparseTask = SparseTask()


class MadXConfig(Settings):
    """The adapters of mad_x and its ablations (2005.00052); ``structure`` is for the other methods."""

    layout: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    activation: Activation | None = Field(default=None, description="default: relu (pfeiffer), swish (houlsby)")
    leave_out: Layers = Field(
        default=(), description="layers without an adapter, from 0; MAD-X 2.0 leaves out the last one"
    )
    language: LanguageAdapters = LanguageAdapters()
    task: TaskAdapters = TaskAdapters()
    arithmetic: Weight = Field(default=0.5, description="language_arithmetic: share of the target's language adapter")
