"""The command line: one verb, one function. Heavy imports stay inside the verbs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence

from adamergex.errors import AdamergexError

Verb = Callable[[argparse.Namespace], None]


def merge(arguments: argparse.Namespace) -> None:
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
    )
    print(report)
    print(f"written: {arguments.output}")


def divergence(arguments: argparse.Namespace) -> None:
    from adamergex.merging import divergence as save_divergence

    report = save_divergence(
        target_reference=arguments.target_reference,
        source_reference=arguments.source_reference,
        output=arguments.output,
        space=arguments.space,
        rule=arguments.rule,
        allow_different_start=arguments.allow_different_start,
    )
    print(report)
    print(f"written: {arguments.output}")


def inspect(arguments: argparse.Namespace) -> None:
    from adamergex.inspection import inspect as describe

    print(describe(arguments.directory))


def transfer(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.config import load
    from adamergex.pipeline import summary
    from adamergex.pipeline import transfer as run

    changes = {"output": arguments.output} if arguments.output else {}
    config = load(Path(arguments.config)).model_copy(update=changes)
    _quiet()
    print(summary(run(config, command=_command()), config.output))


def report(arguments: argparse.Namespace) -> None:
    from adamergex.report import report as write

    print(f"report: {write(arguments.runs, arguments.output, arguments.papers)}")


def evaluate(arguments: argparse.Namespace) -> None:
    from adamergex.evaluation import evaluate_directory

    _quiet()
    scores = evaluate_directory(
        base=arguments.base,
        adapter=arguments.adapter,
        test=arguments.test,
        language=arguments.language,
        output=arguments.output,
        columns=dict(pair.split("=", 1) for pair in arguments.column),
    )
    low, high = scores["interval"]
    print(f"{scores['metric']} {scores[scores['metric']]:.1f} % [{low:.1f}, {high:.1f}] on {scores['n']} items")
    print(f"written: {arguments.output}")


def demo(arguments: argparse.Namespace) -> None:
    from adamergex.demo import demo as run_demo

    _quiet()
    print(run_demo(arguments.output, base=arguments.base, command=_command()))


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

    verb = _verb(verbs, "report", report, "one page, Markdown, CSV and LaTeX of one or more finished runs")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="output folder of transfer or study")
    verb.add_argument(
        "--output", required=True, metavar="DIR", help="where the report goes; an earlier one is replaced"
    )
    verb.add_argument("--papers", nargs="+", default=[], metavar="FILE", help="papers' numbers: studies/papers/*.csv")

    verb = _verb(verbs, "evaluate", evaluate, "score an adapter on a labelled file")
    verb.add_argument("--base", required=True, help="nano, nano-causal, a folder or a hub id")
    verb.add_argument("--adapter", required=True, metavar="DIR")
    verb.add_argument("--test", required=True, metavar="FILE", help="jsonl, csv, tsv or parquet with text and label")
    verb.add_argument("--language", required=True, help="code of the file's language, for the records")
    verb.add_argument("--output", required=True, metavar="DIR")
    verb.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="such as text=sentence")

    verb = _verb(verbs, "demo", demo, "the whole method on the shipped backbone and corpus, offline")
    verb.add_argument("--output", default="runs/demo", metavar="DIR")
    verb.add_argument("--base", default="nano", choices=["nano", "nano-causal"])
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
    _add_rule(verb, ["adaptive", "additive", "multiplicative", "average"])

    verb = _verb(verbs, "divergence", divergence, "save a language divergence as an adapter directory of its own")
    verb.add_argument("--target-reference", required=True, metavar="DIR")
    verb.add_argument("--source-reference", required=True, metavar="DIR")
    verb.add_argument("--output", required=True, metavar="DIR")
    _add_rule(verb, ["adaptive", "additive", "multiplicative"])

    verb = _verb(verbs, "inspect", inspect, "structure, rank, modules, norms and lineage of an adapter directory")
    verb.add_argument("directory", metavar="DIR")


def _add_rule(verb: argparse.ArgumentParser, rules: list[str]) -> None:
    verb.add_argument("--space", choices=["factors", "delta"], default="factors", help="LoRA: merge A and B, or ΔW")
    verb.add_argument("--rule", choices=rules, default="adaptive")
    verb.add_argument("--allow-different-start", action="store_true", help="merge factors of separate initialisations")


def main(argv: Sequence[str] | None = None) -> int:
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.version:
        from adamergex import __version__

        print(f"adamergex {__version__}")
        return 0
    if arguments.verb is None:
        top.print_help()
        return 2
    try:
        arguments.run(arguments)
    except AdamergexError as error:
        print(f"adamergex: {error}", file=sys.stderr)
        return 2
    return 0
