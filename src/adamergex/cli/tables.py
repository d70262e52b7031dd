"""``adamergex transfer``, ``train``, ``study``, ``report``, ``evaluate`` and ``demo``."""

from __future__ import annotations

import argparse
import os

from adamergex.cli.arguments import add_verb, column_pair, command, count, silence_libraries
from adamergex.cli.ending import say
from adamergex.tables.devices import DEVICES
from adamergex.training.processes import launched, leave


def transfer(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.config.transfer import load
    from adamergex.tables.transfer import summary
    from adamergex.tables.transfer import transfer as run

    changes = {"output": arguments.output} if arguments.output else {}
    config = load(Path(arguments.config)).model_copy(update=changes)
    silence_libraries()
    say(summary(run(config, say, command=command()), config.output))


def train(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.config.train import load_training
    from adamergex.tables.transfer import outcome
    from adamergex.tables.transfer import train as run

    config = load_training(Path(arguments.config))
    silence_libraries()
    written = run(config, arguments.output, progress=True)
    leave()
    if not launched().first:
        return
    done = outcome(written)
    say(
        f"{done['parameters']:,} parameters, {done['examples']} examples, {done['steps']} steps: "
        f"loss {done['first_loss']:.3f} at first, {done['loss']:.3f} at last"
    )
    say(f"written: {written}")


def study(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    if arguments.dry_run:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a plan downloads nothing; read when the libraries load
    from adamergex.config.study import load_study
    from adamergex.tables.study import Engine, dry_run, run_study

    wanted = load_study(Path(arguments.config), arguments.set)
    engine = Engine(arguments.engine, arguments.workers, arguments.address, arguments.gpus)
    silence_libraries()
    if arguments.dry_run:
        speed = arguments.tokens_per_second
        say(dry_run(wanted, device=arguments.device, workers=arguments.workers or 1, tokens_per_second=speed))
        return
    result = run_study(wanted, engine=engine, force=arguments.force, say=say, command=command())
    say(f"{len(result.tables)} tables, {result.steps.all} steps, {result.steps.reused} of them reused")
    say(f"written: {Path(wanted.output) / 'study.json'}")


def report(arguments: argparse.Namespace) -> None:
    from adamergex.report import report as write

    say(f"report: {write(arguments.runs, arguments.output, arguments.papers)}")


def evaluate(arguments: argparse.Namespace) -> None:
    from adamergex.evaluation import evaluate_directory

    silence_libraries()
    scores = evaluate_directory(
        base=arguments.base,
        adapter=arguments.adapter,
        test=arguments.test,
        language=arguments.language,
        output=arguments.output,
        columns=dict(arguments.column),
        task_file=arguments.task_file,
    )
    low, high = scores.interval
    say(f"{scores.metric} {scores.score:.1f} % [{low:.1f}, {high:.1f}] on {scores.n} items")
    say(f"written: {arguments.output}")


def demo(arguments: argparse.Namespace) -> None:
    from adamergex.tables.demo import demo as run_demo

    silence_libraries()
    say(run_demo(arguments.output, base=arguments.base, say=say, command=command()))


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verbs and their arguments."""
    verb = add_verb(verbs, "transfer", transfer, "train, tune λ, merge, evaluate and report, from one settings file")
    verb.add_argument("config", metavar="CONFIG.yaml", help="settings of one table")
    verb.add_argument("--output", help="instead of the settings' output folder")

    verb = add_verb(verbs, "train", train, "train one adapter, for a language or for a task, from a settings file")
    verb.add_argument("config", metavar="CONFIG.yaml", help="settings of one training")
    verb.add_argument("--output", metavar="DIR", help="instead of the settings' output folder")

    verb = add_verb(verbs, "study", study, "many tables over one store: each adapter is trained once for all of them")
    verb.add_argument("config", metavar="CONFIG.yaml", help="settings of a study")
    verb.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting: task.optimisation.steps=3"
    )
    verb.add_argument("--dry-run", action="store_true", help="print steps, tokens, FLOPs and hours; do nothing")
    verb.add_argument("--device", choices=list(DEVICES), default="h200", help="of the estimate")
    verb.add_argument("--tokens-per-second", type=float, metavar="X", help="of training, measured; for the estimate")
    verb.add_argument(
        "--engine", default="local", metavar="NAME", help="local (this machine), ray, or one of an installed package"
    )
    verb.add_argument(
        "--workers", type=count, metavar="N", help="processes or Ray workers; default: one per GPU, else one"
    )
    verb.add_argument("--address", help="of the Ray cluster: auto, HOST:PORT or ray://…; default: this machine")
    verb.add_argument("--gpus", type=float, metavar="X", help="that a Ray worker holds; default: one if there are any")
    verb.add_argument(
        "--force", nargs="?", const="*", metavar="STEPS", help="do all steps again, or those of a kind or label"
    )

    verb = add_verb(verbs, "report", report, "one page, Markdown, CSV and LaTeX of one or more finished runs")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="output folder of transfer or study")
    verb.add_argument(
        "--output", required=True, metavar="DIR", help="where the report goes; an earlier one is replaced"
    )
    verb.add_argument("--papers", nargs="+", default=[], metavar="FILE", help="papers' numbers: studies/papers/*.csv")

    verb = add_verb(verbs, "evaluate", evaluate, "score an adapter, or a stack of them, on a labelled file")
    verb.add_argument("--base", required=True, help="a name (see adamergex backbones), a folder or a hub id")
    verb.add_argument(
        "--adapter", required=True, action="append", metavar="DIR", help="again for a stack: the first is the lowest"
    )
    verb.add_argument("--test", required=True, metavar="FILE", help="jsonl, csv, tsv or parquet with text and label")
    verb.add_argument("--language", required=True, help="code of the file's language, for the records")
    verb.add_argument("--output", required=True, metavar="DIR", help="where predictions and scores go")
    verb.add_argument(
        "--column", type=column_pair, action="append", default=[], metavar="OURS=THEIRS", help="such as text=sentence"
    )
    verb.add_argument("--task-file", metavar="FILE.py", help="your own task, whose score measures the answers")

    verb = add_verb(verbs, "demo", demo, "the whole method on the shipped corpus, offline")
    verb.add_argument("--output", default="runs/demo", metavar="DIR", help="where results and report go")
    verb.add_argument("--base", choices=["e5-small", "nano", "nano-causal"], help="default: e5-small if installed")
