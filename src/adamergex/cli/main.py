"""The command line: one verb, one function. Heavy imports stay inside the verbs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence

from adamergex.cli.backbones import add as add_backbones
from adamergex.cli.ending import ended, say
from adamergex.errors import AdamergexError, ConfigError
from adamergex.tables.devices import DEVICES
from adamergex.training.processes import launched, leave, speaker

Verb = Callable[[argparse.Namespace], None]


def merge(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.files import hashing

    roles = (arguments.task, arguments.target_reference, arguments.source_reference, arguments.divergence)
    with hashing.ahead([Path(role) / "adapter_model.safetensors" for role in roles if role is not None]):
        from adamergex.merging import merge as merge_adapters

        report = merge_adapters(
            task=arguments.task,
            target_reference=arguments.target_reference,
            source_reference=arguments.source_reference,
            divergence=arguments.divergence,
            weight=arguments.weight,
            output=arguments.output,
            modules=arguments.modules,
            space=arguments.space,
            rank=arguments.rank,
            rule=arguments.rule,
            allow_different_start=arguments.allow_different_start,
            span=arguments.span,
            form=arguments.form,
        )
    say(report)
    say(f"written: {arguments.output}")


def divergence(arguments: argparse.Namespace) -> None:
    from adamergex.merging import divergence as save_divergence

    report = save_divergence(
        target_reference=arguments.target_reference,
        source_reference=arguments.source_reference,
        output=arguments.output,
        space=arguments.space,
        rule=arguments.rule,
        allow_different_start=arguments.allow_different_start,
        span=arguments.span,
    )
    say(report)
    say(f"written: {arguments.output}")


def inspect(arguments: argparse.Namespace) -> None:
    from adamergex.merging.inspection import inspect as describe

    say(describe(arguments.directory))


def convert(arguments: argparse.Namespace) -> None:
    from adamergex.adapters.formats.conversion import convert as convert_directory

    _quiet()
    say(
        convert_directory(
            arguments.source,
            arguments.output,
            arguments.to,
            base=arguments.base,
            safetensors=arguments.safetensors,
        )
    )
    say(f"written: {arguments.output}")


def transfer(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.config.transfer import load
    from adamergex.tables.transfer import summary
    from adamergex.tables.transfer import transfer as run

    changes = {"output": arguments.output} if arguments.output else {}
    config = load(Path(arguments.config)).model_copy(update=changes)
    _quiet()
    say(summary(run(config, say, command=_command()), config.output))


def train(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.config.train import load_training
    from adamergex.tables.transfer import outcome
    from adamergex.tables.transfer import train as run

    config = load_training(Path(arguments.config))
    _quiet()
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
    _quiet()
    if arguments.dry_run:
        speed = arguments.tokens_per_second
        say(dry_run(wanted, device=arguments.device, workers=arguments.workers or 1, tokens_per_second=speed))
        return
    engine = Engine(arguments.engine, arguments.workers, arguments.address, arguments.gpus)
    result = run_study(wanted, engine=engine, force=arguments.force, say=say, command=_command())
    say(f"{len(result['tables'])} tables, {result['steps']['all']} steps, {result['steps']['reused']} of them reused")
    say(f"written: {Path(wanted.output) / 'study.json'}")


def runs(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.graph.inventory import contents, describe
    from adamergex.graph.steps import Store

    store = Store(Path(arguments.store))
    say(describe(contents(store), store.root))


def gc(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.graph.inventory import collect, forget_study, garbage, listing, megabytes, studies
    from adamergex.graph.steps import Store

    store = Store(Path(arguments.store))
    if arguments.forget:
        forget_study(store, arguments.forget)
    elif not studies(store):
        raise AdamergexError(
            "no study has noted what it needs, so everything would go",
            where=store.root,
            fix="run the study or transfer once more (nothing is done again), or delete the folder yourself",
        )
    found = garbage(store)
    if not found.entries and not found.leftovers:
        say("nothing to remove: a study needs every result")
        return
    say(listing(found.entries))
    say(f"{len(found.leftovers)} leftovers of stopped runs or damaged results; {megabytes(found.bytes)} together")
    if not arguments.yes and not _agreed("remove these? [y/N] "):
        say("nothing removed")
        return
    gone = collect(store, found)
    say(f"removed: {len(gone.entries)} results, {len(gone.leftovers)} leftovers, {megabytes(found.bytes)}")


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # nobody is there to answer
        return False


def report(arguments: argparse.Namespace) -> None:
    from adamergex.report import report as write

    say(f"report: {write(arguments.runs, arguments.output, arguments.papers)}")


def evaluate(arguments: argparse.Namespace) -> None:
    from adamergex.evaluation import evaluate_directory

    _quiet()
    scores = evaluate_directory(
        base=arguments.base,
        adapter=arguments.adapter,
        test=arguments.test,
        language=arguments.language,
        output=arguments.output,
        columns=dict(arguments.column),
        task_file=arguments.task_file,
    )
    low, high = scores["interval"]
    say(f"{scores['metric']} {scores[scores['metric']]:.1f} % [{low:.1f}, {high:.1f}] on {scores['n']} items")
    say(f"written: {arguments.output}")


def demo(arguments: argparse.Namespace) -> None:
    from adamergex.tables.demo import demo as run_demo

    _quiet()
    say(run_demo(arguments.output, base=arguments.base, say=say, command=_command()))


def _command() -> str:
    return shlex.join(["adamergex", *sys.argv[1:]])


def _quiet() -> None:
    """The libraries' progress bars and advice would bury ours; their warnings stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)  # between PEFT and transformers; nothing a user can mend
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="adamergex",
        description="Give a model a skill in a language without labelled data, by merging small adapters.",
    )
    top.add_argument("--version", action="store_true", help="print the version and leave")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    _add_merging(verbs)

    verb = _verb(verbs, "transfer", transfer, "train, tune λ, merge, evaluate and report, from one settings file")
    verb.add_argument("config", metavar="CONFIG.yaml")
    verb.add_argument("--output", help="instead of the settings' output folder")

    verb = _verb(verbs, "train", train, "train one adapter, for a language or for a task, from a settings file")
    verb.add_argument("config", metavar="CONFIG.yaml")
    verb.add_argument("--output", metavar="DIR", help="instead of the settings' output folder")

    _add_studies(verbs)

    verb = _verb(verbs, "report", report, "one page, Markdown, CSV and LaTeX of one or more finished runs")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="output folder of transfer or study")
    verb.add_argument(
        "--output", required=True, metavar="DIR", help="where the report goes; an earlier one is replaced"
    )
    verb.add_argument("--papers", nargs="+", default=[], metavar="FILE", help="papers' numbers: studies/papers/*.csv")

    verb = _verb(verbs, "evaluate", evaluate, "score an adapter, or a stack of them, on a labelled file")
    verb.add_argument("--base", required=True, help="a name (see adamergex backbones), a folder or a hub id")
    verb.add_argument(
        "--adapter", required=True, action="append", metavar="DIR", help="again for a stack: the first is the lowest"
    )
    verb.add_argument("--test", required=True, metavar="FILE", help="jsonl, csv, tsv or parquet with text and label")
    verb.add_argument("--language", required=True, help="code of the file's language, for the records")
    verb.add_argument("--output", required=True, metavar="DIR")
    verb.add_argument(
        "--column", type=_pair, action="append", default=[], metavar="OURS=THEIRS", help="such as text=sentence"
    )

    verb.add_argument("--task-file", metavar="FILE.py", help="your own task, whose score measures the answers")

    add_backbones(verbs)
    verb = _verb(verbs, "demo", demo, "the whole method on the shipped corpus, offline")
    verb.add_argument("--output", default="runs/demo", metavar="DIR")
    verb.add_argument("--base", choices=["e5-small", "nano", "nano-causal"], help="default: e5-small if installed")
    return top


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: Verb, about: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=about, description=about)
    verb.set_defaults(run=run)
    return verb


def _add_merging(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = _verb(verbs, "merge", merge, "merge a task adapter with a language divergence; no base model needed")
    verb.add_argument("--task", required=True, metavar="DIR", help="A[T,s]: the task in the source language")
    verb.add_argument("--target-reference", metavar="DIR", help="A[R,g]: the reference task in the target language")
    verb.add_argument("--source-reference", metavar="DIR", help="A[R,s]: the reference task in the source language")
    verb.add_argument("--divergence", metavar="DIR", help="a saved divergence, instead of the two references")
    verb.add_argument("--weight", type=float, required=True, metavar="λ")
    verb.add_argument("--output", required=True, metavar="DIR")
    verb.add_argument("--modules", metavar="attention-qv|all|REGEX")
    verb.add_argument("--rank", type=int, metavar="R", help="truncate a delta merge to this rank")
    verb.add_argument("--form", choices=["left", "literal"], help="prefix: (I + λ(D − I))·P (default), or λ·D·P")
    _add_rule(verb, ["adaptive", "additive", "multiplicative", "average"])

    verb = _verb(verbs, "divergence", divergence, "save a language divergence as an adapter directory of its own")
    verb.add_argument("--target-reference", required=True, metavar="DIR")
    verb.add_argument("--source-reference", required=True, metavar="DIR")
    verb.add_argument("--output", required=True, metavar="DIR")
    _add_rule(verb, ["adaptive", "additive", "multiplicative"])

    verb = _verb(verbs, "inspect", inspect, "structure, rank, modules, norms and lineage of an adapter directory")
    verb.add_argument("directory", metavar="DIR")

    verb = _verb(verbs, "convert", convert, "import AdapterHub and composable-sft directories, or export ours to them")
    verb.add_argument("source", metavar="SOURCE", help="a directory, a zip archive, or the file of a sparse difference")
    verb.add_argument("--output", required=True, metavar="DIR")
    verb.add_argument("--to", choices=["adamergex", "adapterhub", "composable-sft"], default="adamergex")
    verb.add_argument("--base", help="for adapterhub: the model whose layers name the tensors (its config is enough)")
    verb.add_argument("--safetensors", action="store_true", help="for adapterhub: safetensors instead of a pickle")


def _add_studies(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = _verb(verbs, "study", study, "many tables over one store: each adapter is trained once for all of them")
    verb.add_argument("config", metavar="CONFIG.yaml")
    verb.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting: task.optimisation.steps=3"
    )
    verb.add_argument("--dry-run", action="store_true", help="print steps, tokens, FLOPs and hours; do nothing")
    verb.add_argument("--device", choices=list(DEVICES), default="h200", help="of the estimate")
    verb.add_argument("--tokens-per-second", type=float, metavar="X", help="of training, measured; for the estimate")
    verb.add_argument("--engine", choices=["local", "ray"], default="local")
    verb.add_argument(
        "--workers", type=_count, metavar="N", help="processes or Ray workers; default: one a GPU, else one"
    )
    verb.add_argument("--address", help="of the Ray cluster: auto, HOST:PORT or ray://…; default: this machine")
    verb.add_argument("--gpus", type=float, metavar="X", help="that a Ray worker holds; default: one if there are any")
    verb.add_argument(
        "--force", nargs="?", const="*", metavar="STEPS", help="do all steps again, or those of a kind or label"
    )

    verb = _verb(verbs, "runs", runs, "list a store: kind, label, size, date, and the studies that need it")
    verb.add_argument("store", metavar="STORE")

    verb = _verb(verbs, "gc", gc, "remove from a store what no study needs, asking first")
    verb.add_argument("store", metavar="STORE")
    verb.add_argument("--forget", metavar="STUDY", help="first forget this study: its title or output folder")
    verb.add_argument("--yes", action="store_true", help="do not ask")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers: 1 or more")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    ours, _, theirs = text.partition("=")
    if not ours or not theirs:
        raise argparse.ArgumentTypeError(f"{text!r} is no OURS=THEIRS, such as text=sentence")
    return ours, theirs


def _add_rule(verb: argparse.ArgumentParser, rules: list[str]) -> None:
    verb.add_argument("--space", choices=["factors", "delta"], default="factors", help="LoRA: merge A and B, or ΔW")
    told = f"{', '.join(rules)}, or one of an installed package"
    verb.add_argument("--rule", default="adaptive", metavar="NAME", help=f"{told} (default: adaptive)")
    verb.add_argument(
        "--span", choices=["per_layer", "per_kv", "whole"], help="prefix: what shares one D (default: per_layer)"
    )
    verb.add_argument("--allow-different-start", action="store_true", help="merge factors of separate initialisations")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code (see ``ending``)."""
    return ended(lambda: _run(argv), speaker())


def _run(argv: Sequence[str] | None) -> int:
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.version:
        from adamergex import __version__

        print(f"adamergex {__version__}")
        return 0
    if arguments.verb is None:
        top.print_help()
        return 2
    if launched().size > 1:
        _require_alone(arguments.verb)
    arguments.run(arguments)
    return 0


def _require_alone(verb: str) -> None:
    """Raises: ConfigError: what the launcher started more than once would be done more than once."""
    if verb != "train":
        raise ConfigError(
            f"only train works in several processes that share one adapter, {verb} does not",
            where="the launcher (torchrun, accelerate)",
            expected="one process",
            fix="start adamergex itself; study --workers N keeps N GPUs busy, with a step each"
            if verb in ("study", "transfer")
            else "start adamergex itself",
        )
