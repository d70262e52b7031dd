"""``adamergex merge``, ``divergence``, ``inspect`` and ``convert``."""

from __future__ import annotations

import argparse
from typing import Any

from adamergex.cli.arguments import add_verb, silence_libraries
from adamergex.cli.ending import say


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
            settings=_settings(arguments.set),
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

    silence_libraries()
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


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verbs and their arguments."""
    verb = add_verb(verbs, "merge", merge, "merge a task adapter with a language divergence; no base model needed")
    verb.add_argument("--task", required=True, metavar="DIR", help="A[T,s]: the task in the source language")
    verb.add_argument("--target-reference", metavar="DIR", help="A[R,g]: the reference task in the target language")
    verb.add_argument("--source-reference", metavar="DIR", help="A[R,s]: the reference task in the source language")
    verb.add_argument("--divergence", metavar="DIR", help="a saved divergence, instead of the two references")
    verb.add_argument("--weight", type=float, required=True, metavar="λ", help="0 gives the task adapter back")
    verb.add_argument("--output", required=True, metavar="DIR", help="a directory that does not exist yet")
    verb.add_argument("--modules", metavar="attention-qv|all|REGEX", help="default: attention-qv for LoRA, else all")
    verb.add_argument("--rank", type=int, metavar="R", help="truncate a delta merge to this rank")
    verb.add_argument("--form", choices=["left", "literal"], help="prefix: (I + λ(D − I))·P (default), or λ·D·P")
    verb.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="a setting of the rule's own")
    _add_rule(verb, ["adaptive", "additive", "multiplicative", "average"])

    verb = add_verb(verbs, "divergence", divergence, "save a language divergence as an adapter directory of its own")
    verb.add_argument("--target-reference", required=True, metavar="DIR", help="A[R,g]: in the target language")
    verb.add_argument("--source-reference", required=True, metavar="DIR", help="A[R,s]: in the source language")
    verb.add_argument("--output", required=True, metavar="DIR", help="a directory that does not exist yet")
    _add_rule(verb, ["adaptive", "additive", "multiplicative"])

    verb = add_verb(verbs, "inspect", inspect, "structure, rank, modules, norms and lineage of an adapter directory")
    verb.add_argument("directory", metavar="DIR", help="an adapter directory")

    verb = add_verb(
        verbs, "convert", convert, "import AdapterHub and composable-sft directories, or export ours to them"
    )
    verb.add_argument("source", metavar="SOURCE", help="a directory, a zip archive, or the file of a sparse difference")
    verb.add_argument("--output", required=True, metavar="DIR", help="a directory that does not exist yet")
    verb.add_argument(
        "--to", choices=["adamergex", "adapterhub", "composable-sft"], default="adamergex", help="the form to write"
    )
    verb.add_argument("--base", help="for adapterhub: the model whose layers name the tensors (its config is enough)")
    verb.add_argument("--safetensors", action="store_true", help="for adapterhub: safetensors instead of a pickle")


def _settings(given: list[str]) -> dict[str, Any]:
    """A rule's own settings, their values read as YAML; the rule checks them."""
    if not given:
        return {}
    from adamergex.config.changes import parse_change

    return {".".join(change.place): change.value for change in map(parse_change, given)}


def _add_rule(verb: argparse.ArgumentParser, rules: list[str]) -> None:
    verb.add_argument("--space", choices=["factors", "delta"], default="factors", help="LoRA: merge A and B, or ΔW")
    about = f"{', '.join(rules)}, or one of an installed package (default: adaptive)"
    verb.add_argument("--rule", default="adaptive", metavar="NAME", help=about)
    verb.add_argument(
        "--span", choices=["per_layer", "per_kv", "whole"], help="prefix: what shares one D (default: per_layer)"
    )
    verb.add_argument("--allow-different-start", action="store_true", help="merge factors of separate initialisations")
