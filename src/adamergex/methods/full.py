"""Rivals that train weights instead of an adapter, and XLT, which trains nothing of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamergex.config.methods import OnText
from adamergex.graph.steps import Step
from adamergex.jobs.settings import Full, LanguageModeling, Sparse, Structure

if TYPE_CHECKING:
    from adamergex.methods.cell import Cell, Stack


def full_fine_tuning(cell: Cell) -> Step:
    """All weights trained on the task in the source language (2005.00052, section 5.2)."""
    return full_task(cell)


def mlm_source(cell: Cell) -> Step:
    """MLM-SRC: all weights trained on text of the source language first, then on the task (2005.00052, section 5.2)."""
    return full_task(cell, base_adapter=full_language(cell, cell.source))


def mlm_target(cell: Cell) -> Step:
    """MLM-TRG: all weights trained on text of the target language first, then on the task (2005.00052, section 5.2)."""
    return full_task(cell, base_adapter=full_language(cell, cell.target))


def lf_sft(cell: Cell) -> Stack:
    """θ + φ[g] + φ[T]: sparse differences, the task's learned on the source's (2110.07560, algorithm 1)."""
    return sparse_language(cell, cell.target), sparse_task(cell, base_adapter=sparse_language(cell, cell.source))


def xlt(cell: Cell) -> None:
    """XLT(Vanilla): the bare base, asked to retell in English and to answer step by step (2305.07004)."""
    return


def xlt_english_tuning(cell: Cell) -> Step:
    """XLT(Eng-FT): A[T,s], asked to retell in English and to answer step by step (2305.07004)."""
    return cell.train(cell.task, cell.source)


def full_language(cell: Cell, language: str) -> Step:
    """All weights trained on all the text of a language: the same step for every task."""
    return _language(cell, Full(), cell.config.full.language, language)


def full_task(cell: Cell, base_adapter: Step | None = None) -> Step:
    """All weights trained on the task in the source language, from the base or from other weights."""
    settings, (rows, optimisation) = cell.config.full, cell.learned_from(cell.task)
    optimisation = settings.task or optimisation.model_copy(update={"learning_rate": settings.learning_rate})
    name = "full task" + (f" on {base_adapter.label.rpartition(' · ')[0]}" if base_adapter else "")
    return cell.train_as(name, Full(), cell.task, cell.source, rows, optimisation, base_adapter)


def sparse_language(cell: Cell, language: str) -> Step:
    """LF-SFT's difference of a language, from all its text: the same step for every task."""
    settings = cell.config.lf_sft.language
    shape = settings.model_dump(include={"entries", "l1", "first_steps"})
    return _language(cell, Sparse(freeze_norms=True, **shape), settings, language)


def sparse_task(cell: Cell, base_adapter: Step | None = None) -> Step:
    """LF-SFT's difference of the task in the source language, learned on the source's own difference."""
    settings, (rows, _) = cell.config.lf_sft.task, cell.learned_from(cell.task)
    structure = Sparse(**settings.model_dump(exclude={"optimisation"}))
    return cell.train_as("sparse task", structure, cell.task, cell.source, rows, settings.optimisation, base_adapter)


def _language(cell: Cell, structure: Structure, settings: OnText, language: str) -> Step:
    reference = cell.config.reference
    task = LanguageModeling(
        segment=settings.segment,
        segments=settings.segments,
        mask_rate=reference.mask_rate,
        objective=reference.objective,
    )
    assert reference.text is not None  # the settings were checked for it
    name = f"{structure.kind} language"
    return cell.train_as(name, structure, task, language, reference.text, settings.optimisation_of(language))
