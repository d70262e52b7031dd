"""``adamergex transfer``: plan -> engine -> results and report."""

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
    CellResult,
    Comparison,
    CurvePoint,
    Merge,
    Method,
    Missing,
    ModuleChange,
    Results,
    TrainedAdapter,
    Tuning,
)
from adamergex.report.results_file import as_dict, save
from adamergex.report.results_file import parse as parse_results
from adamergex.structures import kind_named
from adamergex.tables.actions import ACTIONS, backbone_group
from adamergex.tables.plan import CellKey, Plan, absolute, facts, head_settings, train_job
from adamergex.tables.weight_losses import ORACLE_LABEL, compared_choices
from adamergex.training.processes import launched

# The file of an adapter's tensors, or of the differences of a full fine-tuning.
WEIGHTS = (TENSORS, DIFFERENCE)


def transfer(config: TransferConfig, say: Callable[[str], None] = print, command: str | None = None) -> Results:
    """Train the missing adapters, tune λ, merge, evaluate, and write the results and the report to ``config.output``.

    Returns:
        The results, as in ``OUTPUT/results.json``.

    Raises:
        AdamergexError: bad data, a model that does not load, incompatible adapters; finished steps are kept, and the
            report shows the finished and the missing cells.
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
    """Write results and report of a plan with at least one finished cell to ``output``; returns the results.

    The caller locks the output (see ``outputs.filled_directory``)."""
    from adamergex.report import write_report

    collected = replace(collect_results(plan, store, output, reused), commands=(command,) if command else ())
    save(collected, output / "results.json")
    results = parse_results(as_dict(collected))  # the content of a store is not trusted
    write_report(results, output)
    return results


def collect_results(plan: Plan, store: Store, output: Path, reused: set[str]) -> Results:
    """The table's cells, λ curves and costs from the store; copies adapters and predictions to the output.

    Unfinished cells are listed under "missing", with their first missing step."""
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
        weights=compared_choices(plan, store, cells),
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
    """The row of a method, and of its oracle if it has one."""
    method = _method(config, name)
    oracle_name = method.name + ORACLE
    about = "The λ that is best on this very test set: what is lost by not knowing λ, no result of a method."
    oracle = replace(method, name=oracle_name, label=f"{method.label}, {ORACLE_LABEL}", about=about, oracle=True)
    return [method, oracle] if oracle_name in oracles else [method]


def _method(config: TransferConfig, name: str) -> Method:
    method_recipe = recipe(name)
    spaces = {"adamergex": config.merge.space, "adamergex_delta": "delta"}
    space = spaces.get(name) if kind_named(config.structure.kind).low_rank else None
    about = next(iter((method_recipe.build.__doc__ or "").strip().splitlines()), "")
    return Method(method_name(name), method_recipe.label, space, about)


def _cell(plan: Plan, store: Store, output: Path, cell: CellKey) -> CellResult:
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
        _copy({part: store.path(adapter) for part, adapter in parts}, output / "adapters" / name)
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


def _tuning(store: Store, key: CellKey, step: Step) -> Tuning:
    search = read_search(store.path(step))
    tuning = Tuning(*key, search.chosen, tuple(CurvePoint(**dict(point)) for point in search.curve))
    if search.languages:  # chosen from the searches of several languages
        return replace(tuning, languages=tuple(search.languages), best=search.best, error=search.error)
    layers = None if search.layers is None else tuple(search.layers)
    return replace(tuning, measure="entropy", layers=layers) if search.metric == "entropy" else tuning


def _adapter(store: Store, step: Step, output: Path, reused: bool) -> TrainedAdapter:
    directory = store.path(step)
    manifest, training = store.manifest(step), _lineage(directory).settings.get("training", {})
    weights = next((path for name in WEIGHTS if (path := directory / name).is_file()), None)
    assert isinstance(step.job, TrainJob)
    return TrainedAdapter(
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
    record = lineage.read(directory)
    if record is None or not isinstance(record.settings.get("training", {}), dict):
        raise AdapterFileError(
            "a stored adapter has no lineage, or one without its training",
            where=directory,
            fix="remove this folder and run the same command again, which recreates it",
        )
    return record


def environment() -> dict[str, str]:
    """Versions of Python, of the packages, and the machine."""
    return {"python": platform.python_version(), "machine": platform.machine(), **package_versions()}


def _copy(origins: dict[str, Path], target: Path) -> None:
    """Copy stored results to subfolders of ``target``; the old copy stays until the new one is complete."""
    with replaced_directory(target) as stage:
        for part, origin in origins.items():
            without = shutil.ignore_patterns(MANIFEST)
            shutil.copytree(origin, stage / part, ignore=without, dirs_exist_ok=True)


def run_transfer(settings: str | Path | Mapping[str, object], output: str | Path | None = None) -> Results:
    """Run a transfer from a settings file or an equivalent mapping; see ``transfer``.

    Raises:
        ConfigError: invalid settings; lists all problems.
    """
    config = parse(settings) if isinstance(settings, Mapping) else load(Path(settings))
    return transfer(config.model_copy(update={"output": str(output)}) if output else config)


def run_training(settings: str | Path | Mapping[str, object], output: str | Path | None = None) -> Path:
    """Train one adapter from a ``train`` file or an equivalent mapping; returns its directory. See ``train``.

    Raises:
        ConfigError: invalid settings; lists all problems.
    """
    config = parse_training(settings) if isinstance(settings, Mapping) else load_training(Path(settings))
    return train(config, output)


def train(config: Training, output: str | Path | None = None, progress: bool = False) -> Path:
    """Train the adapter of a ``train`` file into ``output`` (default: the file's, relative to its folder); for kind
    masked-lm-head, the base directory.

    Resumes an interrupted run next to the output: the same settings give the same bytes. Under torchrun or accelerate,
    several processes train one adapter together.

    Raises:
        AdamergexError: bad data, a model that does not load, incompatible adapters.
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
    """Steps, examples and losses of a directory that ``train`` wrote."""
    from adamergex.backbones.head_file import HEAD_RECORD

    if (directory / HEAD_RECORD).is_file():
        training = read_json_object(directory / HEAD_RECORD, what="the head's record", error=ModelError)["training"]
    else:
        record = lineage.read(directory)
        training = record.settings["training"] if record else {}
    return dict(training)


def summary(results: Results, output: str | Path) -> str:
    """The table as plain text: the report's scores with 95 % intervals, its flags, and the path of the report."""
    from adamergex.report.terminal import terminal_table

    tuned = [item for item in results.tuning if item.measure is None]
    alone = len({item.proxy for item in tuned}) <= 1
    chosen = ", ".join(f"{item.method}{'' if alone else ' on ' + item.proxy} λ={item.chosen:g}" for item in tuned)
    free = ", ".join(f"{item.method} {item.proxy} λ={item.chosen:.3g}" for item in results.tuning if item.measure)
    lines = [f"tuned on {results.proxy}: {chosen}"] if chosen else []
    lines += [f"least entropy: {free}"] if free else []
    return "\n".join([*terminal_table(results), "", *lines, f"report: {Path(output) / 'report.html'}"])
