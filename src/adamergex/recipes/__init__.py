"""The methods: each a few lines that say which adapters are trained and how they are combined.

A recipe returns a step (an adapter) that nothing has run yet, a stack of them, the lowest first, or None for the bare
base. A stack is no step of its own: nothing is computed for it, so an evaluation takes its adapters as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from adamergex.config import TransferConfig
from adamergex.errors import AdamergexError, ConfigError
from adamergex.graph import Step
from adamergex.recipes import weights
from adamergex.settings import (
    AnyRows,
    EvaluateJob,
    LanguageModeling,
    Optimisation,
    Structure,
    Target,
    Task,
    TrainJob,
)
from adamergex.tasks.catalogue import identity, own_module
from adamergex.tasks.cross_lingual_thought import asked_with_xlt

Stack = tuple[Step, ...]


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
    """The ablation of Table 10: what is added merged by the (IA)³ rule, all else by the LoRA rule."""
    added = x.config.structure.kind not in ("ia3", "prefix")
    return adamergex(x, rule="multiplicative" if added else "additive", space="factors")


def mad_x(x: Experiment) -> Stack:
    """A task adapter trained on the source's language adapter, put on the target's (2005.00052, section 4)."""
    return x.language(x.target), x.task_adapter(below=x.language(x.source))


def mad_x_no_invertible(x: Experiment) -> Stack:
    """The ablation −INV: the same without invertible adapters."""
    return (
        x.language(x.target, invertible=False),
        x.task_adapter(below=x.language(x.source, invertible=False)),
    )


def mad_x_task_only(x: Experiment) -> Step:
    """The ablation −LAD −INV: the task adapter alone, used in the target language as it is."""
    return x.task_adapter()


class Recipe(NamedTuple):
    """A method as a table shows it. ``asks``: another prompt for the task in a language."""

    label: str
    build: Build
    asks: Callable[[Target, str], Target] | None = None


Build = Callable[["Experiment"], Step | Stack | None]
RECIPES: dict[str, Recipe] = {
    "vanilla": Recipe("Vanilla", vanilla),
    "english_tuning": Recipe("Eng-FT", english_tuning),
    "average": Recipe("AriMerge", average),
    "adamergex": Recipe("AdaMergeX", adamergex),
    "adamergex_delta": Recipe("AdaMergeX (delta)", adamergex_delta),
    "adamergex_cross": Recipe("AdaMergeX (cross)", adamergex_cross),
    "mad_x": Recipe("MAD-X", mad_x),
    "mad_x_no_invertible": Recipe("MAD-X −INV", mad_x_no_invertible),
    "mad_x_task_only": Recipe("MAD-X −LAD −INV", mad_x_task_only),
    "full_fine_tuning": Recipe("Full-FT", weights.full_fine_tuning),
    "mlm_source": Recipe("MLM-SRC", weights.mlm_source),
    "mlm_target": Recipe("MLM-TRG", weights.mlm_target),
    "lf_sft": Recipe("LF-SFT", weights.lf_sft),
    "xlt": Recipe("XLT(Vanilla)", weights.xlt, asked_with_xlt),
    "xlt_english_tuning": Recipe("XLT(Eng-FT)", weights.xlt_english_tuning, asked_with_xlt),
}


def recipe(method: str) -> Recipe:
    """The recipe of a method's name, or of ``FILE.py:FUNCTION``, which is run like a task's file.

    Raises: ConfigError: there is no such file or function, or the file does not run.
    """
    file, _, name = method.rpartition(":")
    if not file:
        return RECIPES[method]
    found = getattr(own_module(Path(file), "recipe"), name, None)
    if isinstance(found, Recipe):
        return found
    if not callable(found):
        raise ConfigError(
            "the recipe file has no such function",
            where=file,
            found=f"no {name}",
            expected="a function of an Experiment, or a Recipe",
            fix="see docs/methods.md",
        )
    return Recipe(name.replace("_", " "), _checked(found, method))


def _checked(build: Callable[[Experiment], Any], method: str) -> Build:
    """A user's function whose mistakes are told as such."""

    @wraps(build)
    def checked(x: Experiment) -> Step | Stack | None:
        try:
            found = build(x)
        except AdamergexError:
            raise
        except Exception as error:  # whatever the user's own code raises
            problem = f"{type(error).__name__}: {error}"
            raise ConfigError("the recipe does not run", where=method, found=problem, fix="correct it") from error
        steps = found if isinstance(found, tuple) else () if found is None else (found,)
        if len(steps) > 2 or not all(isinstance(step, Step) for step in steps):
            raise ConfigError(
                "the recipe returns something else than adapters",
                where=method,
                found=repr(found)[:80],
                expected="a step, two steps (the lower one first), or None",
                fix="return what x.train, x.merge, … return",
            )
        return steps or None if isinstance(found, tuple) else found

    return checked


Content = Callable[[Task, AnyRows, str], str]
"""SHA-256 of the rows of a language, as a task reads them."""


class Facts(NamedTuple):
    """What the settings leave to be found in the model and the data: hashes, the task's labels, the amount of text."""

    base_sha256: str
    task: Target
    segments: int | None
    content: Content


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
        rows, optimisation = self.learned_from(task)
        name = "reference" if isinstance(task, LanguageModeling) else "task"
        return self.train_as(name, self.config.structure, task, language, rows, optimisation)

    def language(self, language: str, *, invertible: bool = True) -> Step:
        """MAD-X's language adapter, on all the text of a language: the same step for every task and method."""
        settings, reference = self.config.mad_x.language, self.config.reference
        structure = self._bottleneck(settings.reduction, invertible=invertible and settings.invertible)
        task = LanguageModeling(segment=settings.segment, segments=settings.segments, mask_rate=reference.mask_rate)
        name = "language" if structure.invertible else "language −INV"
        return self.train_as(name, structure, task, language, reference.text, settings.optimisation)

    def task_adapter(self, below: Step | None = None) -> Step:
        """MAD-X's task adapter in the source language, on a frozen language adapter or alone."""
        settings, (rows, optimisation) = self.config.mad_x.task, self.learned_from(self.task)
        structure = self._bottleneck(settings.reduction)
        name = "MAD-X task" + (f" on {below.label.partition(' ·')[0]}" if below else "")
        return self.train_as(
            name, structure, self.task, self.source, rows, settings.optimisation or optimisation, below
        )

    def _bottleneck(self, reduction: float, *, invertible: bool = False) -> Structure:
        settings = self.config.mad_x
        return Structure(
            kind="bottleneck",
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
        below: Step | None = None,
    ) -> Step:
        """A training of any structure, alone or on what is ``below``; ``name`` goes into the label."""
        job = TrainJob(
            base=self.config.base,
            structure=structure,
            task=task,
            language=language,
            rows=rows,
            optimisation=optimisation,
            seed=self.seed,
        ).model_dump(mode="json")
        inputs = {} if below is None else {"below": below}
        label = f"{name} · {language} · seed {self.seed}"
        return Step("train", self._identity(job, task, rows, language), job, inputs, label=label)

    def learned_from(self, task: Task) -> tuple[AnyRows, Optimisation]:
        """The rows that teach a task, and how they are learned from."""
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

    def evaluate(self, stack: Stack, language: str, asks: Callable[[Target, str], Target] | None = None) -> Step:
        """Predictions and scores of an adapter, of a stack, or of the bare base, on the test set of a language.

        ``asks``: what the task becomes where it is asked otherwise than it was learned."""
        if asks is not None:
            asked = replace(self, facts=self.facts._replace(task=asks(self.task, language)))
            return asked.evaluate(stack, language)
        rows = self.config.task.rows("test")
        assert rows is not None  # every task is tested on something
        job = self._evaluate_job(language, rows)
        names = ["below", "adapter"][-len(stack) :] if stack else []
        what = "base" if not stack else "stack" if len(stack) > 1 else stack[-1].kind
        label = f"{language} · {what} · seed {self.seed}"
        inputs = dict(zip(names, stack, strict=True))
        return Step("evaluate", self._identity(job, self.task, rows, language), job, inputs, label=label)

    def _evaluate_job(self, language: str, rows: AnyRows) -> dict[str, Any]:
        return EvaluateJob(base=self.config.base, task=self.task, language=language, rows=rows).model_dump(mode="json")

    def adapter(self, recipe: Build) -> Stack:
        """The recipe's adapters; an untuned weight becomes an input that tunes it on the proxy language."""
        found = recipe(self)
        if found is None or isinstance(found, tuple):
            return found or ()
        if found.kind != "merge" or found.job["weight"] is not None:
            return (found,)
        return (replace(found, inputs={**found.inputs, "weight": self.tuning(recipe)}),)

    def tuning(self, recipe: Build) -> Step:
        """The search of λ for a recipe: its merge in the proxy language, scored on the proxy's validation set."""
        proxy, rows = self.config.proxy, self.config.task.rows("validation")
        if proxy is None or rows is None:  # of the shipped methods the settings were checked for both
            raise ConfigError(
                "the weight λ of a merge is to be tuned, and nothing says on what",
                where="proxy" if proxy is None else "task.validation",
                fix="set proxy and task.validation, or merge.weight, or give the recipe's merge a weight",
            )
        merge = recipe(replace(self, target=proxy))
        assert isinstance(merge, Step)
        evaluation = self._evaluate_job(proxy, rows)
        shared = {"merge": merge.job, "grid": list(self.config.merge.grid)}
        identity = {**shared, "evaluate": self._identity(evaluation, self.task, rows, proxy)}
        label = f"{merge.label} (proxy)"
        return Step("tune", identity, {**shared, "evaluate": evaluation}, merge.inputs, label=label)

    def _identity(self, job: Mapping[str, Any], task: Task, rows: AnyRows, language: str) -> dict[str, Any]:
        """The job with contents in the place of names: the same base, text or task file elsewhere is the same step;
        adapters below are inputs."""
        named = {key: value for key, value in job.items() if key not in ("base", "rows", "below")}
        if not isinstance(task, LanguageModeling):
            named["task"] = {**job["task"], "measured_as": identity(task.measured_as)}
        return {**named, "base": self.facts.base_sha256, "rows": self.facts.content(task, rows, language)}
