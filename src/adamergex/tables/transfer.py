"""Plan -> engine -> results and report: what ``adamergex transfer`` does."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from adamergex import statistics
from adamergex.config.table_checks import ORACLE
from adamergex.config.train import MaskedLmHeadTraining, Training, load_training, parse_training
from adamergex.config.transfer import TransferConfig, load, method_name, parse
from adamergex.errors import AdamergexError, AdapterFileError, ModelError
from adamergex.files import lineage
from adamergex.files.directory import DIFFERENCE, TENSORS
from adamergex.files.inputs import read_json_object
from adamergex.files.lineage import Lineage, package_versions
from adamergex.files.outputs import filled_directory, replaced_directory, write_files
from adamergex.files.records import PREDICTIONS, read_merged, read_scores, read_search
from adamergex.graph.inventory import record
from adamergex.graph.local import run
from adamergex.graph.steps import MANIFEST, Step, Store, in_order
from adamergex.jobs.settings import TrainJob
from adamergex.methods import recipe
from adamergex.methods.cell import Stack
from adamergex.report.results import (
    BASELINE,
    Adapter,
    CellResult,
    Comparison,
    CurvePoint,
    Merge,
    Method,
    Missing,
    ModuleChange,
    Results,
    Tuning,
)
from adamergex.report.results_file import parse as parse_results
from adamergex.report.results_file import plain, save
from adamergex.structures import kind_named
from adamergex.tables.actions import ACTIONS, backbone_group
from adamergex.tables.plan import Place, Plan, absolute, facts, head_settings, train_job
from adamergex.tables.weight_ways import ORACLE_LABEL, compared_ways
from adamergex.training.processes import launched

# What an adapter is stored in, and what a fine-tuning of the weights is.
WEIGHTS = (TENSORS, DIFFERENCE)


def transfer(config: TransferConfig, say: Callable[[str], None] = print, command: str | None = None) -> Results:
    """Train what the store lacks, tune λ, merge, evaluate, and write the results and the report to ``config.output``.

    Returns:
        The results, as in ``OUTPUT/results.json``.

    Raises:
        AdamergexError: bad data, a model that does not load, adapters that do not fit; what was done is kept, and the
            report shows the cells that are done beside those that are not.
    """
    config = absolute(config)
    output = Path(config.output)
    store = Store(Path(config.store) if config.store else output / "store")
    plan = Plan(config, facts(config))
    from adamergex.training.preflight import require_possible

    require_possible(step for step in in_order(plan.wanted) if not store.has(step))
    with filled_directory(output):
        reused = {step.key for step in plan.trainings if store.has(step)}
        record(store, config.title, output, plan.wanted)
        failure = None
        try:
            run(plan.wanted, store, ACTIONS, say, group=backbone_group)
        except AdamergexError as error:
            failure = error
            if not any(store.has(step) for step in plan.evaluations.values()):
                raise
        results = write_table(plan, store, output, reused, command)
    if failure is not None:
        raise failure
    return results


def write_table(plan: Plan, store: Store, output: Path, reused: set[str], command: str | None = None) -> Results:
    """Results and report of a plan, written to ``output``, of which at least one cell is done; returns the results.

    The caller holds the output (see ``outputs.filled_directory``)."""
    from adamergex.report import write_report

    found = replace(collect(plan, store, output, reused), commands=(command,) if command else ())
    save(found, output / "results.json")
    results = parse_results(plain(found))  # what a store says is not trusted
    write_report(results, output)
    return results


def collect(plan: Plan, store: Store, output: Path, reused: set[str]) -> Results:
    """The table's cells, λ curves and costs, read from the store; adapters and predictions copied to the output.

    Cells whose steps are not all done stand under "missing", with the first step that is not."""
    from adamergex.evaluation import sample

    config = plan.config
    done = {cell: step for cell, step in plan.evaluations.items() if store.has(step)}
    cells = tuple(_cell(plan, store, output, cell) for cell in done)
    answers = {cell: sample(_predictions(store, step)) for cell, step in done.items()}
    oracles = {name + ORACLE for name, _, _ in plan.oracles}
    methods = {cell: answer for cell, answer in answers.items() if cell[0] not in oracles}
    return Results(
        title=config.title,
        base=Path(config.base).name,
        task=config.task.name,
        metric=plan.metric,
        structure=config.structure.kind,
        source=config.source,
        proxy="the other targets" if config.merge.leave_one_out else ", ".join(config.proxy) or None,
        targets=config.targets,
        seeds=config.seeds,
        methods=tuple(row for name in config.methods for row in _methods(config, name, oracles)),
        cells=cells,
        pooled=statistics.pooled(answers, config.targets),
        comparisons=statistics.comparisons(methods, config.targets, BASELINE),
        weights=compared_ways(plan, store, cells),
        tuning=tuple(_tuning(store, *item) for item in plan.tunings.items() if store.has(item[1])),
        adapters=tuple(_adapter(store, step, output, step.key in reused) for step in plan.trainings if store.has(step)),
        merges=tuple(_merges(plan, store)),
        missing=tuple(_missing(plan, store)),
        environment=environment(),
        papers=config.papers.chosen,
    )


def _missing(plan: Plan, store: Store) -> Iterable[Missing]:
    for cell, step in plan.evaluations.items():
        if not store.has(step):
            first = next(item for item in in_order([step]) if not store.has(item))
            yield Missing(*cell, f"{first.kind} {first.label} is not done")


def _methods(config: TransferConfig, name: str, oracles: set[str]) -> list[Method]:
    """The row of a method, and of its oracle where there is one."""
    own = _method(config, name)
    bound = own.name + ORACLE
    about = "The λ that is best on this very test set: what is lost by not knowing λ, no result of a method."
    oracle = replace(own, name=bound, label=f"{own.label}, {ORACLE_LABEL}", about=about, oracle=True)
    return [own, oracle] if bound in oracles else [own]


def _method(config: TransferConfig, name: str) -> Method:
    way = recipe(name)
    spaces = {"adamergex": config.merge.space, "adamergex_delta": "delta"}
    space = spaces.get(name) if kind_named(config.structure.kind).low_rank else None
    about = next(iter((way.build.__doc__ or "").strip().splitlines()), "")
    return Method(method_name(name), way.label, space, about)


def _cell(plan: Plan, store: Store, output: Path, cell: Place) -> CellResult:
    from adamergex.evaluation import paired_difference

    method, language, seed = cell
    directory = store.path(plan.evaluations[cell])
    scores = read_scores(directory)
    name = f"{method}-{language}-seed{seed}"
    predictions = f"predictions/{name}.jsonl"
    write_files(output, {predictions: directory / PREDICTIONS})
    stack, weight = plan.adapters[cell], None
    if len(stack) == 1 and stack[-1].kind == "merge":
        merged = store.path(stack[-1])
        _copy({"": merged}, output / "adapters" / name)
        weight = (_lineage(merged).merge or {}).get("weight")
    if len(stack) > 1:
        parts = zip(("language", "task"), stack, strict=False)
        _copy({place: store.path(adapter) for place, adapter in parts}, output / "adapters" / name)
    base = plan.evaluations.get((BASELINE, language, seed))
    against = None
    oracle = method.removesuffix(ORACLE) != method and (method.removesuffix(ORACLE), language, seed) in plan.oracles
    if base is not None and store.has(base) and method != BASELINE and not oracle:
        difference = paired_difference(_predictions(store, plan.evaluations[cell]), _predictions(store, base))
        against = Comparison(method=BASELINE, **difference)
    return CellResult(
        method=method,
        language=language,
        seed=seed,
        **scores.model_dump(include={"score", "scores", "n", "interval", "truncated", "unparsable"}),
        weight=weight,
        predictions=predictions,
        adapter=f"adapters/{name}" if weight is not None or len(stack) > 1 else _relative(stack, store, output),
        against=against,
    )


def _predictions(store: Store, step: Step) -> Path:
    return store.path(step) / PREDICTIONS


def _relative(stack: Stack, store: Store, output: Path) -> str | None:
    return os.path.relpath(store.path(stack[-1]), output) if stack else None


def _tuning(store: Store, place: Place, step: Step) -> Tuning:
    found = read_search(store.path(step))
    own = Tuning(*place, found.chosen, tuple(CurvePoint(**dict(point)) for point in found.curve))
    if found.languages:  # chosen from the searches of several
        return replace(own, languages=tuple(found.languages), best=found.best, error=found.error)
    layers = None if found.layers is None else tuple(found.layers)
    return replace(own, measure="entropy", layers=layers) if found.metric == "entropy" else own


def _adapter(store: Store, step: Step, output: Path, reused: bool) -> Adapter:
    directory = store.path(step)
    own, manifest = _lineage(directory), store.manifest(step)
    weights = next((path for name in WEIGHTS if (path := directory / name).is_file()), None)
    training = own.settings.get("training", {})
    assert isinstance(step.job, TrainJob)
    return Adapter(
        name=step.label,
        language=step.job.language,
        task=step.job.task.kind,
        parameters=training.get("parameters"),
        bytes=weights.stat().st_size if weights else 0,
        tokens=training.get("tokens"),
        seconds=manifest.seconds if manifest else None,
        loss=training.get("loss"),
        reused=reused,
        path=os.path.relpath(directory, output),
    )


def _merges(plan: Plan, store: Store) -> Iterable[Merge]:
    for cell, stack in plan.adapters.items():
        if stack and stack[-1].kind == "merge" and store.has(stack[-1]):
            report = read_merged(store.path(stack[-1]))
            merged = (item for item in report.modules if item.merged)
            modules = (ModuleChange(item.module, item.task, item.divergence, item.change) for item in merged)
            yield Merge(*cell, report.weight, tuple(modules))


def _lineage(directory: Path) -> Lineage:
    """The lineage that a step wrote. Raises: AdapterFileError."""
    found = lineage.read(directory)
    if found is None or not isinstance(found.settings.get("training", {}), dict):
        raise AdapterFileError(
            "a stored adapter has no lineage, or one without its training",
            where=directory,
            fix="remove this folder and run the same command again: it is made again",
        )
    return found


def environment() -> dict[str, str]:
    """Versions of what computed the numbers."""
    return {"python": platform.python_version(), "machine": platform.machine(), **package_versions()}


def _copy(origins: dict[str, Path], target: Path) -> None:
    """Copy stored results to ``target``, each into its part of it; the old copy is there until the new one is whole."""
    with replaced_directory(target) as stage:
        for part, origin in origins.items():
            without = shutil.ignore_patterns(MANIFEST)
            shutil.copytree(origin, stage / part, ignore=without, dirs_exist_ok=True)


def run_transfer(settings: str | Path | Mapping[str, object], output: str | Path | None = None) -> Results:
    """Run a transfer from a settings file or a mapping of the same shape; see ``transfer``.

    Raises:
        ConfigError: the settings have problems; all are named at once.
    """
    config = parse(settings) if isinstance(settings, Mapping) else load(Path(settings))
    return transfer(config.model_copy(update={"output": str(output)}) if output else config)


def run_training(settings: str | Path | Mapping[str, object], output: str | Path | None = None) -> Path:
    """Train one adapter from a ``train`` file or a mapping of the same shape; its directory. See ``train``.

    Raises:
        ConfigError: the settings have problems; all are named at once.
    """
    config = parse_training(settings) if isinstance(settings, Mapping) else load_training(Path(settings))
    return train(config, output)


def train(config: Training, output: str | Path | None = None, progress: bool = False) -> Path:
    """Train the adapter of a ``train`` file into ``output`` (default: the file's, relative to its folder); of kind
    masked-lm-head: the base directory.

    What a stopped run left beside it is gone on with: the same settings end in the same bytes. Started by torchrun or
    accelerate, several processes train an adapter together.

    Raises:
        AdamergexError: bad data, a model that does not load, adapters that do not fit.
    """
    target = Path(output) if output else Path(config.folder) / config.output
    workdir = target.parent / f".{target.name}.unfinished"
    if isinstance(config, MaskedLmHeadTraining):
        from adamergex.training.masked_lm_head import train_head

        train_head(head_settings(config), target, workdir=workdir, progress=progress)
        return target
    from adamergex.training.train import train as train_adapter

    train_adapter(train_job(config), target, workdir=workdir, progress=progress)
    if launched().first:
        shutil.rmtree(workdir, ignore_errors=True)
    return target


def outcome(directory: Path) -> dict[str, object]:
    """Steps, examples and losses of what ``train`` wrote."""
    from adamergex.backbones.head_file import HEAD_RECORD

    if (directory / HEAD_RECORD).is_file():
        found = read_json_object(directory / HEAD_RECORD, what="the head's record", error=ModelError)["training"]
    else:
        made = lineage.read(directory)
        found = made.settings["training"] if made else {}
    return dict(found)


def summary(results: Results, output: str | Path) -> str:
    """The table as plain text: the report's scores with their 95 % intervals, its flags, and the path of the report."""
    from adamergex.report.terminal import table

    tuned = [item for item in results.tuning if item.measure is None]
    alone = len({item.proxy for item in tuned}) <= 1
    chosen = ", ".join(f"{item.method}{'' if alone else ' on ' + item.proxy} λ={item.chosen:g}" for item in tuned)
    free = ", ".join(f"{item.method} {item.proxy} λ={item.chosen:.3g}" for item in results.tuning if item.measure)
    lines = [f"tuned on {results.proxy}: {chosen}"] if chosen else []
    lines += [f"least entropy: {free}"] if free else []
    return "\n".join([*table(results), "", *lines, f"report: {Path(output) / 'report.html'}"])
