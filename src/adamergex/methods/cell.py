"""One cell of a table, through which recipes build their steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from adamergex.config.methods import CombineConfig
from adamergex.config.references import AdapterReference, TaskReference
from adamergex.config.transfer import TransferConfig
from adamergex.errors import ConfigError
from adamergex.files.inputs import Json
from adamergex.graph.steps import Step
from adamergex.jobs.merge import ChooseJob, MergeJob, RuleSettings, SwapConfig, TuneJob
from adamergex.jobs.settings import (
    AnyRows,
    Bottleneck,
    EvaluateJob,
    LabelledTask,
    LanguageModeling,
    Optimisation,
    SentenceAlignment,
    Structure,
    Target,
    Task,
    TrainJob,
)
from adamergex.merging.rules.registry import rule_for, with_settings
from adamergex.methods.given import GivenAdapter, require_factors
from adamergex.structures import kind_named
from adamergex.tasks.catalogue import identity

_NOT_TUNABLE = "the weight λ of a merge is to be tuned, and no validation set is named"
_FIX_TUNING = "set proxy and task.validation, or merge.weight, or give the recipe's merge a weight"
Stack = tuple[Step, ...]
Build = Callable[["Cell"], Step | Stack | None]


class Content(Protocol):
    """SHA-256 of the rows of a language, as a task reads them; with or without their labels."""

    def __call__(self, task: Task, rows: AnyRows, language: str, labelled: bool = True) -> str: ...


class Facts(NamedTuple):
    """What the settings leave to be found in the model and the data: hashes, the task's labels, the amount of text."""

    base_sha256: str
    task: Target
    segments: int | None
    content: Content
    reference: Target | None = None  # where the reference task is a labelled one
    given: Callable[[str], GivenAdapter] | None = None  # where the references are given


@dataclass(frozen=True)
class Cell:
    """One cell of the table: the settings, a target language and a seed. Recipes build their steps through it."""

    config: TransferConfig
    facts: Facts
    target: str
    seed: int

    @property
    def source(self) -> str:
        return self.config.source

    @property
    def task(self) -> Target:
        return self.facts.task

    @property
    def reference(self) -> Task | AdapterReference:
        reference = self.config.reference
        if isinstance(reference, AdapterReference):
            return reference
        if isinstance(reference, TaskReference):
            assert self.facts.reference is not None  # facts() read it
            return self.facts.reference
        return reference.unlabelled(self.facts.segments, self.source)

    def train(self, task: Task | AdapterReference, language: str) -> Step:
        """An adapter of the cell's structure, trained on a task in a language; a given reference as it is."""
        if isinstance(task, AdapterReference):
            return self._given(language)
        rows, optimisation = self.learned_from(task)
        name = "task" if task is self.task else "reference"
        return self.train_as(name, self.config.structure, task, language, rows, optimisation)

    def _given(self, language: str) -> Step:
        assert self.facts.given is not None  # facts() made it
        given = self.facts.given(language)
        return Step("import", {"files": {**given.files}}, given, label=f"reference · {language} · given")

    def language(self, language: str, *, invertible: bool = True) -> Step:
        """MAD-X's language adapter, on all the text of a language: the same step for every task and method."""
        settings, reference = self.config.mad_x.language, self.config.reference
        structure = self._bottleneck(settings.reduction, invertible=invertible and settings.invertible)
        task = LanguageModeling(
            segment=settings.segment,
            segments=settings.segments,
            mask_rate=reference.mask_rate,
            objective=reference.objective,
        )
        assert reference.text is not None  # the settings were checked for it
        name = "language" if structure.invertible else "language −INV"
        return self.train_as(name, structure, task, language, reference.text, settings.optimisation_of(language))

    def task_adapter(self, base_adapter: Step | None = None) -> Step:
        """MAD-X's task adapter in the source language, on a frozen language adapter or alone."""
        settings, (rows, optimisation) = self.config.mad_x.task, self.learned_from(self.task)
        structure = self._bottleneck(settings.reduction)
        name = "MAD-X task" + (f" on {base_adapter.label.partition(' ·')[0]}" if base_adapter else "")
        return self.train_as(
            name, structure, self.task, self.source, rows, settings.optimisation or optimisation, base_adapter
        )

    def _bottleneck(self, reduction: float, *, invertible: bool = False) -> Bottleneck:
        settings = self.config.mad_x
        return Bottleneck(
            layout=settings.layout,
            reduction=reduction,
            activation=settings.activation,
            leave_out=settings.leave_out,
            invertible=invertible,
        )

    def train_as(
        self,
        name: str,
        structure: Structure,
        task: Task,
        language: str,
        rows: AnyRows,
        optimisation: Optimisation,
        base_adapter: Step | None = None,
    ) -> Step:
        """A training of any structure, alone or on ``base_adapter``; ``name`` goes into the label."""
        job = TrainJob(
            base=self.config.base,
            structure=structure,
            task=task,
            language=language,
            rows=rows,
            optimisation=optimisation.of(structure),
            seed=self.seed,
        )
        inputs = {} if base_adapter is None else {"base_adapter": base_adapter}
        label = f"{name} · {language} · seed {self.seed}"
        return Step("train", self._identity(job), job, inputs, label=label)

    def learned_from(self, task: Task) -> tuple[AnyRows, Optimisation]:
        """The rows that teach a task, and how they are learned from."""
        reference = self.config.reference
        if not isinstance(task, LabelledTask):
            assert (
                not isinstance(reference, AdapterReference) and reference.text is not None
            )  # the settings were checked
            return reference.text, reference.optimisation
        other = isinstance(reference, TaskReference) and task is not self.task
        labelled = reference.task if isinstance(reference, TaskReference) and other else self.config.task
        rows = labelled.rows("train")
        assert rows is not None  # every task is trained on something
        return rows, labelled.optimisation

    def merge(
        self,
        *,
        task: Step,
        target_reference: Step,
        source_reference: Step | None = None,
        rule: str = "adaptive",
        space: str | None = None,
        modules: str | None = None,
        weight: float | dict[str, int] | SwapConfig | None = None,
        combine: CombineConfig | None = None,
        settings: RuleSettings | None = None,
    ) -> Step:
        """A merge; what is not given comes from the settings. A weight of None is tuned (see ``adapter``), one of
        ``bottom``, ``top`` and ``transition`` swaps layers. ``combine``: of TIES and DARE. ``settings``: of the rule's
        own; those of ``merge.rules`` come first."""
        config = self.config.merge
        chosen = space or config.space
        if chosen == "factors":
            for step in (target_reference, source_reference):
                if step is not None and isinstance(step.job, GivenAdapter):
                    require_factors(step.job.shapes, self.config.structure, step.label)
        if weight is None and isinstance(config.weight, int | float):
            weight = float(config.weight)
        own = config.model_dump(include={"span", "form"}, exclude_defaults=True) if rule == "adaptive" else {}
        if combine is not None:
            own = {**combine.model_dump(), "seed": self.seed if rule.startswith("dare") else None}
        job = MergeJob(
            rule=rule,
            space=chosen,
            modules=modules or config.modules,
            rank=config.rank if chosen == "delta" else None,
            weight=SwapConfig(**weight) if isinstance(weight, dict) else weight,
            settings={} if combine else self._rule_settings(rule, settings or {}),
            **own,
        )
        inputs = {"task": task, "target_reference": target_reference}
        if source_reference is not None:
            inputs["source_reference"] = source_reference
        label = f"{chosen if rule == 'adaptive' else rule} · {self.target} · seed {self.seed}"
        return Step("merge", job.model_dump(mode="json"), job, inputs, label=label)

    def _rule_settings(self, rule: str, given: RuleSettings) -> RuleSettings:
        """All that the rule takes, so that a changed default is another step. Raises: ConfigError."""
        chosen = rule_for(rule, self.config.structure.kind)
        return dict(with_settings(chosen, {**given, **self.config.merge.rules.get(chosen.name, {})}).settings)

    def combine(self, method: str) -> Step:
        """A[T,s] and A[R,g] combined by TIES or DARE, on task vectors or (``_factors``) on A and B."""
        low_rank = kind_named(self.config.structure.kind).low_rank
        return self.merge(
            task=self.train(self.task, self.source),
            target_reference=self.train(self.reference, self.target),
            rule=method,
            space="delta" if low_rank and not method.endswith("_factors") else "factors",
            modules="all",
            weight=1.0,
            combine=self.config.merge.combine,
        )

    def evaluate(self, stack: Stack, language: str, asks: Callable[[Target, str], Target] | None = None) -> Step:
        """Predictions and scores of an adapter, of a stack, or of the bare base, on the test set of a language.

        ``asks``: what the task becomes where it is asked otherwise than it was learned."""
        if asks is not None:
            asked = replace(self, facts=self.facts._replace(task=asks(self.task, language)))
            return asked.evaluate(stack, language)
        rows = self.config.task.rows("test")
        assert rows is not None  # every task is tested on something
        job = self._evaluate_job(language, rows)
        names = ["base_adapter", "adapter"][-len(stack) :] if stack else []
        what = "base" if not stack else "stack" if len(stack) > 1 else stack[-1].kind
        label = f"{language} · {what} · seed {self.seed}"
        inputs = dict(zip(names, stack, strict=True))
        return Step("evaluate", self._identity(job), job, inputs, label=label)

    def _evaluate_job(self, language: str, rows: AnyRows) -> EvaluateJob:
        return EvaluateJob(base=self.config.base, task=self.task, language=language, rows=rows)

    def adapter(self, recipe: Build) -> Stack:
        """The recipe's adapters; an untuned weight becomes an input that tunes it, as the settings say."""
        adapters = recipe(self)
        if adapters is None or isinstance(adapters, tuple):
            return adapters or ()
        if not _untuned(adapters):
            return (adapters,)
        search = self.most_certain(adapters) if self.config.merge.weight == "entropy" else self.tuning(recipe)
        return (replace(adapters, inputs={**adapters.inputs, "weight": search}),)

    def oracle(self, recipe: Build) -> Step | None:
        """The recipe's merge with the λ that is best on the target's own test set: an upper bound, not a method. None
        for a recipe without a λ to choose."""
        free = self._free()
        merge = recipe(free)
        if not isinstance(merge, Step) or not _untuned(merge):
            return None
        return replace(merge, inputs={**merge.inputs, "weight": free.search(recipe, self.target, "test")})

    def compared(self, recipe: Build) -> dict[str, Step]:
        """The searches of ``merge.compare``: ways of choosing λ that the table does not take."""
        free = self._free()
        merge = recipe(free)
        assert isinstance(merge, Step)  # it has an oracle
        config = self.config
        makers: dict[str, Callable[[], Step]] = {
            "proxy": lambda: free.chosen_on(recipe, config.proxy),
            "leave_one_out": lambda: free.chosen_on(recipe, config.others(self.target)),
            "entropy": lambda: free.most_certain(merge, "all"),
        }
        return {way: makers[way]() for way in config.merge.compare}

    def _free(self) -> Cell:
        """The same cell with a λ that is searched for."""
        merge = self.config.merge.model_copy(update={"weight": "tuned"})
        return replace(self, config=self.config.model_copy(update={"merge": merge}))

    def most_certain(self, merge: Step, granularity: str | None = None) -> Step:
        """The search of λ without labels: the entropy of a merge's predictions for inputs of its own language."""
        settings = self.config.merge
        rows = self.config.task.rows(settings.unlabelled)
        assert rows is not None  # the settings were checked for them
        most = "limit" if rows.sample is None else "sample"
        kept = min(getattr(rows, most) or settings.unlabelled_rows, settings.unlabelled_rows)
        rows = rows.model_copy(update={most: kept})
        job = self._tune_job(merge, self.target, rows)
        job = job.model_copy(update={"granularity": granularity or settings.granularity})
        return self._search(merge, job, "unlabelled")

    def tuning(self, recipe: Build) -> Step:
        """The search of λ for a recipe, on the validation sets of the proxies or of the other targets."""
        return self.chosen_on(recipe, self.config.tuned_on(self.target))

    def chosen_on(self, recipe: Build, languages: tuple[str, ...]) -> Step:
        """The λ that several languages' validation sets choose together; one alone chooses in its own search."""
        if not languages:  # of the shipped methods the settings were checked for it
            raise ConfigError(_NOT_TUNABLE, where="proxy", fix=_FIX_TUNING)
        settings = self.config.merge
        if len(languages) == 1 and not settings.one_standard_error:
            return self.search(recipe, languages[0], "validation")
        searches = {name: self.search(recipe, name, "validation", answers=True) for name in languages}
        job = ChooseJob(languages=languages, one_standard_error=settings.one_standard_error)
        first = next(iter(searches.values())).job
        assert isinstance(first, TuneJob)
        label = f"{first.merge.space} · seed {self.seed} (λ of {', '.join(languages)})"
        return Step("choose", job.model_dump(mode="json"), job, searches, label=label)

    def search(self, recipe: Build, language: str, role: Literal["validation", "test"], answers: bool = False) -> Step:
        """The scores of the recipe's merge in a language over the grid, on the language's own rows."""
        rows = self.config.task.rows(role)
        if rows is None:  # of the shipped methods the settings were checked for them
            raise ConfigError(_NOT_TUNABLE, where=f"task.{role}", fix=_FIX_TUNING)
        merge = recipe(replace(self, target=language))
        assert isinstance(merge, Step)
        job = self._tune_job(merge, language, rows).model_copy(update={"answers": answers})
        return self._search(merge, job, "oracle" if role == "test" else "proxy")

    def _tune_job(self, merge: Step, language: str, rows: AnyRows) -> TuneJob:
        assert isinstance(merge.job, MergeJob)
        return TuneJob(merge=merge.job, grid=self.config.merge.grid, evaluate=self._evaluate_job(language, rows))

    def _search(self, merge: Step, job: TuneJob, what: str) -> Step:
        evaluation = self._identity(job.evaluate, labelled=job.granularity is None)
        identity = {**job.model_dump(mode="json"), "evaluate": evaluation}
        return Step("tune", identity, job, merge.inputs, label=f"{merge.label} ({what})")

    def _identity(self, job: TrainJob | EvaluateJob, *, labelled: bool = True) -> dict[str, Json]:
        """The job with contents in the place of names: the same base, text or task file elsewhere is the same step;
        adapters below are inputs."""
        named: dict[str, Json] = job.model_dump(mode="json", exclude={"base", "rows", "base_adapters"})
        task = job.task
        if isinstance(task, SentenceAlignment):  # its rows hold the translations
            named["task"] = task.model_dump(mode="json", exclude={"pivot", "pivot_language"})
        elif isinstance(task, LabelledTask):
            named["task"] = {**task.model_dump(mode="json"), "measured_as": identity(task.measured_as)}
        content = self.facts.content(task, job.rows, job.language, labelled)
        return {**named, "base": self.facts.base_sha256, "rows": content}


def _untuned(step: Step) -> bool:
    """Whether it is a merge whose λ is to be searched for."""
    return isinstance(step.job, MergeJob) and step.job.weight is None
