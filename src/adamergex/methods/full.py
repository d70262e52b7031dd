"""Rivals that train weights instead of an adapter, and XLT, which trains nothing of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamergex.config.methods import OnText
from adamergex.graph.steps import Step
from adamergex.jobs.settings import Full, LanguageModeling, Sparse, Structure

if TYPE_CHECKING:
    from adamergex.methods.cell import Experiment, Stack


def full_fine_tuning(x: Experiment) -> Step:
    """All weights trained on the task in the source language (2005.00052, section 5.2)."""
    return full_task(x)


def mlm_source(x: Experiment) -> Step:
    """MLM-SRC: all weights trained on text of the source language first, then on the task (2005.00052, section 5.2)."""
    return full_task(x, below=full_language(x, x.source))


def mlm_target(x: Experiment) -> Step:
    """MLM-TRG: all weights trained on text of the target language first, then on the task (2005.00052, section 5.2)."""
    return full_task(x, below=full_language(x, x.target))


def lf_sft(x: Experiment) -> Stack:
    """θ + φ[g] + φ[T]: sparse differences, the task's learned on the source's (2110.07560, algorithm 1)."""
    return sparse_language(x, x.target), sparse_task(x, below=sparse_language(x, x.source))


def xlt(x: Experiment) -> None:
    """XLT(Vanilla): the bare base, asked to retell in English and to answer step by step (2305.07004)."""
    return


def xlt_english_tuning(x: Experiment) -> Step:
    """XLT(Eng-FT): A[T,s], asked to retell in English and to answer step by step (2305.07004)."""
    return x.train(x.task, x.source)


def full_language(x: Experiment, language: str) -> Step:
    """All weights trained on all the text of a language: the same step for every task."""
    return _language(x, Full(), x.config.full.language, language)


def full_task(x: Experiment, below: Step | None = None) -> Step:
    """All weights trained on the task in the source language, from the base or from other weights."""
    settings, (rows, optimisation) = x.config.full, x.learned_from(x.task)
    optimisation = settings.task or optimisation.model_copy(update={"learning_rate": settings.learning_rate})
    name = "full task" + (f" on {below.label.rpartition(' · ')[0]}" if below else "")
    return x.train_as(name, Full(), x.task, x.source, rows, optimisation, below)


def sparse_language(x: Experiment, language: str) -> Step:
    """LF-SFT's difference of a language, from all its text: the same step for every task."""
    settings = x.config.lf_sft.language
    shape = settings.model_dump(include={"entries", "l1", "first_steps"})
    return _language(x, Sparse(freeze_norms=True, **shape), settings, language)


def sparse_task(x: Experiment, below: Step | None = None) -> Step:
    """LF-SFT's difference of the task in the source language, learned on the source's own difference."""
    settings, (rows, _) = x.config.lf_sft.task, x.learned_from(x.task)
    structure = Sparse(**settings.model_dump(exclude={"optimisation"}))
    return x.train_as("sparse task", structure, x.task, x.source, rows, settings.optimisation, below)


def _language(x: Experiment, structure: Structure, settings: OnText, language: str) -> Step:
    reference = x.config.reference
    task = LanguageModeling(
        segment=settings.segment,
        segments=settings.segments,
        mask_rate=reference.mask_rate,
        objective=reference.objective,
    )
    assert reference.text is not None  # the settings were checked for it
    name = f"{structure.kind} language"
    return x.train_as(name, structure, task, language, reference.text, settings.optimisation_of(language))
