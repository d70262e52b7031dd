"""The methods: each a few lines that say which adapters are trained and how they are combined.

A recipe returns a step (an adapter) that nothing has run yet, a stack of them, the lowest first, or None for the bare
base. A stack is no step of its own: nothing is computed for it, so an evaluation takes its adapters as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import NamedTuple

from adamergex.errors import AdamergexError, ConfigError
from adamergex.graph.steps import Step
from adamergex.jobs.settings import Target
from adamergex.methods import full
from adamergex.methods.cell import Build, Cell, Stack
from adamergex.structures import kind_named
from adamergex.tasks.answering.cross_lingual_thought import asked_with_xlt
from adamergex.tasks.catalogue import own_module


def vanilla(cell: Cell) -> None:
    """The bare base: prompted, or (a sentence encoder without a masked-LM head) by the label whose name is nearest."""
    return


def english_tuning(cell: Cell) -> Step:
    """A[T,s], used in the target language as it is."""
    return cell.train(cell.task, cell.source)


def average(cell: Cell) -> Step:
    """(A[T,s] + A[R,g]) / 2 for every structure alike (Zhang et al. 2023, 2306.14870)."""
    return cell.merge(
        task=cell.train(cell.task, cell.source),
        target_reference=cell.train(cell.reference, cell.target),
        rule="average",
        space="factors",
        modules="all",
        weight=0.5,
    )


def adamergex(cell: Cell, *, rule: str = "adaptive", space: str | None = None) -> Step:
    """The task in the source language, moved by the divergence of the languages (2402.18913, Eq 5)."""
    return cell.merge(
        task=cell.train(cell.task, cell.source),
        target_reference=cell.train(cell.reference, cell.target),
        source_reference=cell.train(cell.reference, cell.source),
        rule=rule,
        space=space,
    )  # the weight λ is tuned on the proxy language unless the settings fix it


def adamergex_delta(cell: Cell) -> Step:
    """The same on ΔW = (α/r)·B·A instead of on the factors: exact, of rank r_T + r_g + r_s."""
    return adamergex(cell, space="delta")


def adamergex_cross(cell: Cell) -> Step:
    """The ablation of Table 10: what is added merged by the (IA)³ rule, all else by the LoRA rule."""
    added = kind_named(cell.config.structure.kind).rule == "additive"
    return adamergex(cell, rule="multiplicative" if added else "additive", space="factors")


def mad_x(cell: Cell) -> Stack:
    """A task adapter trained on the source's language adapter, put on the target's (2005.00052, section 4)."""
    return cell.language(cell.target), cell.task_adapter(base_adapter=cell.language(cell.source))


def mad_x_no_invertible(cell: Cell) -> Stack:
    """The ablation −INV: the same without invertible adapters."""
    return (
        cell.language(cell.target, invertible=False),
        cell.task_adapter(base_adapter=cell.language(cell.source, invertible=False)),
    )


def mad_x_task_only(cell: Cell) -> Step:
    """The ablation −LAD −INV: the task adapter alone, used in the target language as it is."""
    return cell.task_adapter()


def layer_swapping(cell: Cell) -> Step:
    """The bottom and top layers of A[R,g] around the middle ones of A[T,s] (2410.01335)."""
    return cell.merge(
        task=cell.train(cell.task, cell.source),
        target_reference=cell.train(cell.reference, cell.target),
        rule="average",
        space="factors",
        modules="all",
        weight=cell.config.merge.swap,
    )


def language_arithmetic(cell: Cell) -> Stack:
    """MAD-X on λ·target + (1 − λ)·source of the language adapters (2404.15737)."""
    language = cell.merge(
        task=cell.language(cell.source),
        target_reference=cell.language(cell.target),
        rule="average",
        space="factors",
        modules="all",
        weight=cell.config.mad_x.arithmetic,
    )
    return language, cell.task_adapter(base_adapter=cell.language(cell.source))


def ties(cell: Cell) -> Step:
    """What A[T,s] and A[R,g] add to the weights trimmed, signs elected, what agrees averaged (2306.01708)."""
    return cell.combine("ties")


def dare(cell: Cell) -> Step:
    """Random entries of what A[T,s] and A[R,g] add to the weights dropped, the rest scaled up, summed (2311.03099)."""
    return cell.combine("dare")


def ties_factors(cell: Cell) -> Step:
    """TIES on A and on B, as PEFT does: not the mixture of what they add to the weights."""
    return cell.combine("ties_factors")


def dare_factors(cell: Cell) -> Step:
    """DARE on A and on B, as PEFT does: not the mixture of what they add to the weights."""
    return cell.combine("dare_factors")


class Recipe(NamedTuple):
    """A method as a table shows it. ``asks``: another prompt for the task in a language."""

    label: str
    build: Build
    asks: Callable[[Target, str], Target] | None = None


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
    "layer_swapping": Recipe("Layer swapping", layer_swapping),
    "language_arithmetic": Recipe("Language arithmetic", language_arithmetic),
    "ties": Recipe("TIES", ties),
    "dare": Recipe("DARE", dare),
    "ties_factors": Recipe("TIES (factors)", ties_factors),
    "dare_factors": Recipe("DARE (factors)", dare_factors),
    "full_fine_tuning": Recipe("Full-FT", full.full_fine_tuning),
    "mlm_source": Recipe("MLM-SRC", full.mlm_source),
    "mlm_target": Recipe("MLM-TRG", full.mlm_target),
    "lf_sft": Recipe("LF-SFT", full.lf_sft),
    "xlt": Recipe("XLT(Vanilla)", full.xlt, asked_with_xlt),
    "xlt_english_tuning": Recipe("XLT(Eng-FT)", full.xlt_english_tuning, asked_with_xlt),
}


def recipe(method: str) -> Recipe:
    """The recipe of a method's name, or of ``FILE.py:FUNCTION``, which is run like a task's file.

    Raises: ConfigError: there is no such file or function, or the file does not run.
    """
    file, _, name = method.rpartition(":")
    if not file:
        return RECIPES[method]
    member = getattr(own_module(Path(file), "recipe"), name, None)
    if isinstance(member, Recipe):
        return member
    if not callable(member):
        raise ConfigError(
            "the recipe file has no such function",
            where=file,
            found=f"no {name}",
            expected="a function of a Cell, or a Recipe",
            fix="see docs/methods.md",
        )
    return Recipe(name.replace("_", " "), _checked(member, method))


def _checked(build: Build, method: str) -> Build:
    """A user's function whose mistakes are told as such."""

    @wraps(build)
    def checked(cell: Cell) -> Step | Stack | None:
        try:
            adapters = build(cell)
        except AdamergexError:
            raise
        except Exception as error:  # whatever the user's own code raises
            problem = f"{type(error).__name__}: {error}"
            raise ConfigError("the recipe does not run", where=method, found=problem, fix="correct it") from error
        steps = adapters if isinstance(adapters, tuple) else () if adapters is None else (adapters,)
        if len(steps) > 2 or not all(isinstance(step, Step) for step in steps):
            raise ConfigError(
                "the recipe returns something else than adapters",
                where=method,
                found=repr(adapters)[:80],
                expected="a step, two steps (the lower one first), or None",
                fix="return what cell.train, cell.merge, … return",
            )
        return steps or None if isinstance(adapters, tuple) else adapters

    return checked
