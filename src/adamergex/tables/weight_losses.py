"""The λ of each way of choosing it, and its test score: how much is lost by not knowing λ.

The oracle scores every λ of the grid on the target's own test set, so the score of any other choice is a point of its
curve. None of this is a method.
"""

from __future__ import annotations

from collections.abc import Iterable

from adamergex.files.records import Search, read_search
from adamergex.graph.steps import Step, Store
from adamergex.report.results import CellResult, WeightChoice, Weights
from adamergex.search.weight_choice import best, within
from adamergex.tables.plan import CellKey, Plan

ORACLE_LABEL = "oracle (upper bound, not a method)"
STANDARD_ERROR = ", one standard error"
ZERO = "λ = 0 (Eng-FT)"
Choices = dict[str, float]
"""Way of choosing λ -> its λ."""


def compared_choices(plan: Plan, store: Store, cells: Iterable[CellResult]) -> tuple[Weights, ...]:
    """For every cell with a finished oracle: the λ and score of the oracle and of all other ways."""
    scored = {(cell.method, cell.language, cell.seed): cell for cell in cells}
    compared = []
    for cell, search in plan.oracles.items():
        if not store.has(search):
            continue
        curve = _read(store, search).curve
        scores = {point.weight: point.score for point in curve}
        top = best(curve)
        weights = _choices(plan, store, cell).items()
        choices = [WeightChoice(way, weight, scores[weight]) for way, weight in weights if weight in scores]
        own, name = scored.get(cell), own_way(plan, cell)
        if own is not None and own.weight is not None:  # the measured score takes precedence over the curve
            table_choice = WeightChoice(name, own.weight, own.score, own=True)
            choices = [table_choice, *(choice for choice in choices if choice.way != name)]
        compared.append(Weights(*cell, WeightChoice(ORACLE_LABEL, top, scores[top]), tuple(choices)))
    return tuple(compared)


def own_way(plan: Plan, cell: CellKey) -> str:
    """The way in which the table chooses the λ of a cell."""
    settings = plan.config.merge
    if isinstance(settings.weight, int | float):
        return "fixed"
    if settings.weight == "entropy":
        return "entropy"
    name = "leave one out" if settings.leave_one_out else _languages(plan.config.proxy)
    return name + (STANDARD_ERROR if settings.one_standard_error else "")


def _languages(languages: tuple[str, ...]) -> str:
    return ("mean of " if len(languages) > 1 else "") + ", ".join(languages)


def _choices(plan: Plan, store: Store, cell: CellKey) -> Choices:
    """The choices of finished searches, the table's own first, and λ = 0."""
    config, choices = plan.config, Choices()
    for way, step in plan.searches_by_way[cell].items():
        if not store.has(step):
            continue
        if way == "entropy":
            choices["entropy"] = _read(store, step).chosen
        else:
            name = "leave one out" if way == "leave_one_out" else _languages(config.proxy)
            choices |= _scored_choices(store, name, step)
    return choices | {ZERO: 0.0}


def _scored_choices(store: Store, name: str, step: Step) -> Choices:
    """The choice of one search; for several languages with and without the rule, and for each proxy alone."""
    search = _read(store, step)
    if step.kind != "choose":
        return {name: search.chosen}
    assert search.best is not None and search.error is not None  # set in every choice
    choices = {name: search.best, name + STANDARD_ERROR: within(search.curve, search.error)}
    if name != "leave one out" and len(step.inputs) > 1:
        for language in search.languages:
            choices[language] = _read(store, step.inputs[language]).chosen
    return choices


def _read(store: Store, step: Step) -> Search:
    return read_search(store.path(step))
