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
from adamergex.methods.cell import Build, Experiment, Stack
from adamergex.structures import kind_named
from adamergex.tasks.answering.cross_lingual_thought import asked_with_xlt
from adamergex.tasks.catalogue import own_module


def vanilla(x: Experiment) -> None:
    """The bare base: prompted, or (a sentence encoder without a masked-LM head) by the label whose name is nearest."""
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


def adamergex(x: Experiment, *, rule: str = "adaptive", space: str | None = None) -> Step:
    """The task in the source language, moved by the divergence of the languages (2402.18913, Eq 5)."""
    return x.merge(
        task=x.train(x.task, x.source),
        target_reference=x.train(x.reference, x.target),
        source_reference=x.train(x.reference, x.source),
        rule=rule,
        space=space,
    )  # the weight λ is tuned on the proxy language unless the settings fix it


def adamergex_delta(x: Experiment) -> Step:
    """The same on ΔW = (α/r)·B·A instead of on the factors: exact, of rank r_T + r_g + r_s."""
    return adamergex(x, space="delta")


def adamergex_cross(x: Experiment) -> Step:
    """The ablation of Table 10: what is added merged by the (IA)³ rule, all else by the LoRA rule."""
    added = kind_named(x.config.structure.kind).rule == "additive"
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


def layer_swapping(x: Experiment) -> Step:
    """The bottom and top layers of A[R,g] around the middle ones of A[T,s] (2410.01335)."""
    return x.merge(
        task=x.train(x.task, x.source),
        target_reference=x.train(x.reference, x.target),
        rule="average",
        space="factors",
        modules="all",
        weight=x.config.merge.swap,
    )


def language_arithmetic(x: Experiment) -> Stack:
    """MAD-X on λ·target + (1 − λ)·source of the language adapters (2404.15737)."""
    language = x.merge(
        task=x.language(x.source),
        target_reference=x.language(x.target),
        rule="average",
        space="factors",
        modules="all",
        weight=x.config.mad_x.arithmetic,
    )
    return language, x.task_adapter(below=x.language(x.source))


def ties(x: Experiment) -> Step:
    """What A[T,s] and A[R,g] add to the weights trimmed, signs elected, what agrees averaged (2306.01708)."""
    return x.combine("ties")


def dare(x: Experiment) -> Step:
    """Random entries of what A[T,s] and A[R,g] add to the weights dropped, the rest scaled up, summed (2311.03099)."""
    return x.combine("dare")


def ties_factors(x: Experiment) -> Step:
    """TIES on A and on B, as PEFT does: not the mixture of what they add to the weights."""
    return x.combine("ties_factors")


def dare_factors(x: Experiment) -> Step:
    """DARE on A and on B, as PEFT does: not the mixture of what they add to the weights."""
    return x.combine("dare_factors")


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


def _checked(build: Build, method: str) -> Build:
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
