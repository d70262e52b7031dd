"""What λ each way of choosing it takes, and what the test set says there: how much is lost by not knowing λ.

The oracle has scored every λ of the grid on the target's own test set, so what any other way would have scored is read
off its curve; nothing of this is a method.
"""

from __future__ import annotations

from collections.abc import Iterable

from adamergex.files.records import Search, read_search
from adamergex.graph.steps import Step, Store
from adamergex.report.results import CellResult, Way, Weights
from adamergex.search.weight_choice import best, within
from adamergex.tables.plan import Place, Plan

ORACLE_LABEL = "oracle (upper bound, not a method)"
STANDARD_ERROR = ", one standard error"
ZERO = "λ = 0 (Eng-FT)"
Ways = dict[str, float]
"""A way's name -> its λ."""


def compared_ways(plan: Plan, store: Store, cells: Iterable[CellResult]) -> tuple[Weights, ...]:
    """For every cell with an oracle that is done: the oracle's λ and score, and those of all other ways."""
    scored = {(cell.method, cell.language, cell.seed): cell for cell in cells}
    found = []
    for cell, search in plan.oracles.items():
        if not store.has(search):
            continue
        curve = _read(store, search).curve
        scores = {point.weight: point.score for point in curve}
        top = best(curve)
        ways = [
            Way(way, weight, scores[weight]) for way, weight in _ways(plan, store, cell).items() if weight in scores
        ]
        own, name = scored.get(cell), own_way(plan, cell)
        if own is not None and own.weight is not None:  # what was measured goes before what the curve says
            ways = [Way(name, own.weight, own.score, own=True), *(item for item in ways if item.way != name)]
        found.append(Weights(*cell, Way(ORACLE_LABEL, top, scores[top]), tuple(ways)))
    return tuple(found)


def own_way(plan: Plan, cell: Place) -> str:
    """How the table itself chooses the λ of a cell."""
    settings = plan.config.merge
    if isinstance(settings.weight, int | float):
        return "fixed"
    if settings.weight == "entropy":
        return "entropy"
    name = "leave one out" if settings.leave_one_out else _languages(plan.config.proxy)
    return name + (STANDARD_ERROR if settings.one_standard_error else "")


def _languages(languages: tuple[str, ...]) -> str:
    return ("mean of " if len(languages) > 1 else "") + ", ".join(languages)


def _ways(plan: Plan, store: Store, cell: Place) -> Ways:
    """The ways whose searches are done, the table's own first, and λ = 0."""
    config, found = plan.config, Ways()
    for way, step in plan.ways[cell].items():
        if not store.has(step):
            continue
        if way == "entropy":
            found["entropy"] = _read(store, step).chosen
        else:
            name = "leave one out" if way == "leave_one_out" else _languages(config.proxy)
            found |= _of_scores(store, name, step)
    return found | {ZERO: 0.0}


def _of_scores(store: Store, name: str, step: Step) -> Ways:
    """What one search chose; of several languages with and without the rule, and each proxy alone."""
    own = _read(store, step)
    if step.kind != "choose":
        return {name: own.chosen}
    assert own.best is not None and own.error is not None  # a choice has both
    found = {name: own.best, name + STANDARD_ERROR: within(own.curve, own.error)}
    if name != "leave one out" and len(step.inputs) > 1:
        for language in own.languages:
            found[language] = _read(store, step.inputs[language]).chosen
    return found


def _read(store: Store, step: Step) -> Search:
    return read_search(store.path(step))
