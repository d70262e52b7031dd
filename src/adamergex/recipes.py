"""The methods: each a few lines that say which adapters are trained and how they are combined.

A recipe returns a step (an adapter) that nothing has run yet, or None for the bare base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from adamergex.config import TransferConfig
from adamergex.graph import Step
from adamergex.settings import AnyRows, EvaluateJob, LanguageModeling, Optimisation, Target, Task, TrainJob
from adamergex.tasks.catalogue import identity


def vanilla(x: Experiment) -> None:
    """The bare base, prompted."""
    return


def english_tuning(x: Experiment) -> Step:
    """A[T,s], used in the target language as it is."""
    return x.train(x.task, x.source)


def average(x: Experiment) -> Step:
    """(A[T,s] + A[R,g]) / 2 for every structure alike (Zhang et al. 2023, 2306.14870)."""
    return x.merge(
        task=x.train(x.task, x.source),
        target_reference=x.train(x.reference, x.target),
        rule="average",
        space="factors",
        modules="all",
        weight=0.5,
    )


def adamergex(x: Experiment, **choices: Any) -> Step:
    """The task in the source language, moved by the divergence of the languages (2402.18913, Eq 5)."""
    return x.merge(
        task=x.train(x.task, x.source),
        target_reference=x.train(x.reference, x.target),
        source_reference=x.train(x.reference, x.source),
        **choices,
    )  # the weight λ is tuned on the proxy language unless the settings fix it


def adamergex_delta(x: Experiment) -> Step:
    """The same on ΔW = (α/r)·B·A instead of on the factors: exact, of rank r_T + r_g + r_s."""
    return adamergex(x, space="delta")


def adamergex_cross(x: Experiment) -> Step:
    """The ablation of Table 10: LoRA merged by the (IA)³ rule, (IA)³ by the LoRA rule."""
    return adamergex(x, rule="multiplicative" if x.config.structure.kind == "lora" else "additive", space="factors")


class Recipe(NamedTuple):
    """A method as a table shows it."""

    label: str
    build: Callable[[Experiment], Step | None]


RECIPES: dict[str, Recipe] = {
    "vanilla": Recipe("Vanilla", vanilla),
    "english_tuning": Recipe("Eng-FT", english_tuning),
    "average": Recipe("AriMerge", average),
    "adamergex": Recipe("AdaMergeX", adamergex),
    "adamergex_delta": Recipe("AdaMergeX (delta)", adamergex_delta),
    "adamergex_cross": Recipe("AdaMergeX (cross)", adamergex_cross),
}


class Facts(NamedTuple):
    """What the settings leave to be found in the model and the data: hashes, the task's labels, the amount of text."""

    base_sha256: str
    task: Target
    segments: int | None
    content: Callable[[Task, AnyRows, str], str]  # SHA-256 of the rows of a language, as a task reads them


@dataclass(frozen=True)
class Experiment:
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
    def reference(self) -> LanguageModeling:
        reference = self.config.reference
        return LanguageModeling(
            segment=reference.segment,
            segments=self.facts.segments,
            mask_rate=reference.mask_rate,
            objective=reference.objective,
        )

    def train(self, task: Task, language: str) -> Step:
        """An adapter of the experiment's structure, trained on a task in a language."""
        rows, optimisation = self._training(task)
        job = TrainJob(
            base=self.config.base,
            structure=self.config.structure,
            task=task,
            language=language,
            rows=rows,
            optimisation=optimisation,
            seed=self.seed,
        ).model_dump(mode="json")
        name = "reference" if isinstance(task, LanguageModeling) else "task"
        return Step(
            "train", self._identity(job, task, rows, language), job, label=f"{name} · {language} · seed {self.seed}"
        )

    def _training(self, task: Task) -> tuple[AnyRows, Optimisation]:
        if isinstance(task, LanguageModeling):
            return self.config.reference.text, self.config.reference.optimisation
        rows = self.config.task.rows("train")
        assert rows is not None  # every task is trained on something
        return rows, self.config.task.optimisation

    def merge(
        self,
        *,
        task: Step,
        target_reference: Step,
        source_reference: Step | None = None,
        rule: str = "adaptive",
        space: str | None = None,
        modules: str | None = None,
        weight: float | None = None,
    ) -> Step:
        """A merge; what is not given comes from the settings. A weight of None is tuned (see ``adapter``)."""
        settings = self.config.merge
        chosen = space or settings.space
        if weight is None and settings.weight != "tuned":
            weight = float(settings.weight)
        job = {
            "rule": rule,
            "space": chosen,
            "modules": modules or settings.modules,
            "rank": settings.rank if chosen == "delta" else None,
            "weight": weight,
        }
        inputs = {"task": task, "target_reference": target_reference}
        if source_reference is not None:
            inputs["source_reference"] = source_reference
        label = f"{chosen if rule == 'adaptive' else rule} · {self.target} · seed {self.seed}"
        return Step("merge", job, job, inputs, label=label)

    def evaluate(self, adapter: Step | None, language: str) -> Step:
        """Predictions and scores on the test set of a language."""
        rows = self.config.task.rows("test")
        assert rows is not None  # every task is tested on something
        return self._evaluation(adapter, language, rows)

    def _evaluation(self, adapter: Step | None, language: str, rows: AnyRows) -> Step:
        job = self._evaluate_job(language, rows)
        inputs = {} if adapter is None else {"adapter": adapter}
        label = f"{language} · {adapter.kind if adapter else 'base'} · seed {self.seed}"
        return Step("evaluate", self._identity(job, self.task, rows, language), job, inputs, label=label)

    def _evaluate_job(self, language: str, rows: AnyRows) -> dict[str, Any]:
        return EvaluateJob(base=self.config.base, task=self.task, language=language, rows=rows).model_dump(mode="json")

    def adapter(self, recipe: Callable[[Experiment], Step | None]) -> Step | None:
        """The recipe's adapter; an untuned weight becomes an input that tunes it on the proxy language."""
        step = recipe(self)
        if step is None or step.kind != "merge" or step.job["weight"] is not None:
            return step
        return replace(step, inputs={**step.inputs, "weight": self.tuning(recipe)})

    def tuning(self, recipe: Callable[[Experiment], Step | None]) -> Step:
        """The search of λ for a recipe: its merge in the proxy language, scored on the proxy's validation set."""
        proxy, rows = self.config.proxy, self.config.task.rows("validation")
        assert proxy is not None and rows is not None  # the settings were checked for both
        merge = recipe(replace(self, target=proxy))
        assert merge is not None
        evaluation = self._evaluate_job(proxy, rows)
        shared = {"merge": merge.job, "grid": list(self.config.merge.grid)}
        identity = {**shared, "evaluate": self._identity(evaluation, self.task, rows, proxy)}
        label = f"{merge.label} (proxy)"
        return Step("tune", identity, {**shared, "evaluate": evaluation}, merge.inputs, label=label)

    def _identity(self, job: Mapping[str, Any], task: Task, rows: AnyRows, language: str) -> dict[str, Any]:
        """The job with contents in the place of names: the same base, text or task file elsewhere is the same step."""
        named = {key: value for key, value in job.items() if key not in ("base", "rows")}
        if not isinstance(task, LanguageModeling):
            named["task"] = {**job["task"], "measured_as": identity(task.measured_as)}
        return {**named, "base": self.facts.base_sha256, "rows": self.facts.content(task, rows, language)}
