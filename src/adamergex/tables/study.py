"""``adamergex study``: plan, engine, and results and report of every table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adamergex.config.study import Study, load_study, parse_study
from adamergex.errors import AdamergexError
from adamergex.files.outputs import filled_directory, write_files
from adamergex.files.records import as_json
from adamergex.graph.engines import Work, engine_named
from adamergex.graph.inventory import record
from adamergex.graph.steps import Step, Store, in_order
from adamergex.graph.worker import Action
from adamergex.report.runs import StepCounts, StudyRecord, TableRecord
from adamergex.tables.actions import ACTIONS, backbone_group
from adamergex.tables.devices import DEVICES
from adamergex.tables.estimate import estimate
from adamergex.tables.study_plan import StudyPlan
from adamergex.tables.transfer import environment, summary, write_table

Say = Callable[[str], None]


@dataclass(frozen=True)
class Engine:
    """The engine that runs the steps: local, ray, or an installed package's engine.

    ``workers``: processes, or Ray workers; default: one per GPU, else one (Ray: as many as fit).
    Raises: ConfigError: there is no such engine."""

    name: str = "local"
    workers: int | None = None
    address: str | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        engine_named(self.name)


def run_study(
    study: Study,
    *,
    engine: Engine = Engine(),
    force: str | None = None,
    say: Say = print,
    command: str | None = None,
    actions: Mapping[str, Action] | None = None,
) -> StudyRecord:
    """Run the missing steps of all tables; write each table's results and report to ``OUTPUT/<table>/``, and
    study.json.

    ``force``: a kind, or (part of) a label; these steps, and those that depend on them, run again. Complete tables are
    written even if other steps fail.

    Returns:
        The content of study.json: title, tables, failures, environment.

    Raises:
        StepsFailedError: some steps failed; all steps that do not depend on them are done and written.
    """
    run = engine_named(engine.name).run
    plan, store, output = StudyPlan(study), Store(Path(study.store)), Path(study.output)
    again = {} if force is None else {step.key: step for step in plan.matching(force)}
    if actions is None:
        from adamergex.training.preflight import require_possible

        require_possible(step for step in in_order(plan.steps) if step.key in again or not store.has(step))
    with filled_directory(output):
        work = Work(
            plan.steps, store, ACTIONS if actions is None else actions, say, backbone_group,
            engine.workers, engine.address, engine.gpus,
        )  # fmt: skip
        return _run(plan, work, run, output, again, command)


def _run(
    plan: StudyPlan,
    work: Work,
    run: Callable[[Work], None],
    output: Path,
    again: Mapping[str, Step],
    command: str | None,
) -> StudyRecord:
    store, say = work.store, work.say
    reused = {step.key for step in plan.steps if store.has(step)} - again.keys()
    record(store, plan.study.title, output, plan.steps)
    for step in again.values():
        store.forget(step)
    began, failure = time.monotonic(), None
    try:
        run(work)
    except AdamergexError as error:
        failure = error
    for table in plan.tables.values():
        if any(store.has(step) for step in table.evaluations.values()):
            with filled_directory(table.config.output) as folder:
                results = write_table(table, store, folder, reused, command)
            say(summary(results, table.config.output))
        else:
            say(f"\n{table.config.title}: nothing of it is done, see the failed steps")
    result = _record_of(plan, store, reused, time.monotonic() - began, command)
    write_files(output, {"study.json": as_json(result.model_dump())})
    if failure is not None:
        say("\n".join(["\nnot done:", *(f"  {line}" for line in result.missing)]))
        raise failure
    return result


def _record_of(plan: StudyPlan, store: Store, reused: set[str], seconds: float, command: str | None) -> StudyRecord:
    missing = [step for step in plan.steps if not store.has(step)]
    tables = {
        name: TableRecord(
            output=table.config.output,
            methods=list(table.config.methods),
            targets=list(table.config.targets),
            complete=all(store.has(step) for step in table.wanted),
        )
        for name, table in plan.tables.items()
    }
    return StudyRecord(
        title=plan.study.title,
        tables=tables,
        steps=StepCounts(all=len(plan.steps), reused=len(reused), missing=len(missing)),
        missing=[f"{step.kind} {step.label} (for {', '.join(plan.users(step))})" for step in missing],
        seconds=round(seconds, 1),
        environment=environment(),
        commands=[command] if command else [],
    )


def study_of(settings: str | Path | Mapping[str, object], *, engine: Engine = Engine()) -> StudyRecord:
    """Run a study from a settings file or an equivalent mapping; returns the content of study.json. See ``run_study``.

    Raises: ConfigError: invalid settings; lists all problems.
    """
    study = parse_study(settings) if isinstance(settings, Mapping) else load_study(Path(settings))
    return run_study(study, engine=engine)


def dry_run(study: Study, *, device: str = "h200", workers: int = 1, tokens_per_second: float | None = None) -> str:
    """The plan as text: steps by kind, how many are in the store, tokens, FLOPs and hours on ``workers`` devices.

    Downloads and runs nothing; anything missing on this machine is assumed and listed. Raises: ConfigError.
    """
    plan, store = StudyPlan(study, assume=True), Store(Path(study.store))
    costs = estimate(plan.steps, store, study.assumed)
    speed = costs.speed(device, tokens_per_second) * workers
    lines = [
        f"{study.title}: {len(plan.tables)} tables, {sum(len(p.evaluations) for p in plan.tables.values())} cells",
        f"{'steps':10s}{'all':>8s}{'in store':>10s}{'to do':>8s}{'tokens':>10s}{'FLOPs':>10s}{'hours':>10s}",
    ]
    for kind, cost in sorted(costs.kinds.items()):
        counts = f"{cost.steps:8d}{cost.present:10d}{cost.steps - cost.present:8d}"
        lines.append(f"{kind:10s}{counts}{_cost_columns(cost.tokens, cost.flops, cost.flops / speed / 3600)}")
    by_kind = costs.kinds.values()
    steps, present = sum(cost.steps for cost in by_kind), sum(cost.present for cost in by_kind)
    total = f"{steps:8d}{present:10d}{steps - present:8d}"
    lines.append(f"{'together':10s}{total}{_cost_columns(costs.tokens, costs.flops, costs.hours(speed))}")
    lines.append(f"on {workers} × {_speed(device, costs.speed(device, tokens_per_second), tokens_per_second)}")
    lines += _notes("assumed, because it is not on this machine: ", plan.notes)
    lines += _notes("assumed: ", costs.notes)
    return "\n".join(lines)


def _cost_columns(tokens: float, flops: float, hours: float) -> str:
    return f"{tokens:10.2g}{flops:10.2g}{hours:10.3g}"


def _speed(device: str, flops: float, tokens_per_second: float | None) -> str:
    if tokens_per_second is not None:
        return f"{tokens_per_second:g} trained tokens a second, as given ({flops:.2g} FLOP/s)"
    chosen = DEVICES[device]
    return f"{chosen.about}: {chosen.peak:.3g} FLOP/s at the most, {chosen.share:.0%} of it reached (assumed)"


def _notes(title: str, notes: Sequence[str], shown: int = 8) -> list[str]:
    rest = [f"  and {len(notes) - shown} more"] if len(notes) > shown else []
    return [title.rstrip(), *(f"  {note}" for note in notes[:shown]), *rest] if notes else []
