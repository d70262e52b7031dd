"""``adamergex backbones``: list backbones, trim a vocabulary, add a masked-LM head, rebase an adapter."""

from __future__ import annotations

import argparse

from adamergex.cli.ending import say


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its subcommands."""
    about = "list the named backbones; trim a vocabulary; add a masked-LM head"
    verb = verbs.add_parser("backbones", help=about, description=about)
    verb.add_argument("--json", action="store_true", help="the list as JSON")
    verb.set_defaults(run=_list)
    inner = verb.add_subparsers(metavar="VERB")

    about = "a base with the tokens that texts use, and the same predictions on them"
    trim = inner.add_parser("trim", help=about, description=about)
    trim.add_argument("--base", required=True, help="a name (see adamergex backbones), a folder or a hub id")
    trim.add_argument(
        "--text", required=True, nargs="+", metavar="FILE", help="texts to cover: txt, jsonl, csv, tsv (.gz), parquet"
    )
    trim.add_argument(
        "--column", nargs="+", default=["text"], metavar="NAME", help="of files with columns, those that hold text"
    )
    trim.add_argument("--output", required=True, metavar="DIR", help="a directory that does not exist yet")
    trim.set_defaults(run=_trim)

    about = "a base with a masked-LM head from its small file"
    head = inner.add_parser("head", help=about, description=about)
    head.add_argument("--base", required=True, help="the base that the head was trained on, or was trimmed from")
    head.add_argument(
        "--head",
        metavar="FILE",
        help="masked_lm_head.safetensors, or its folder; default: the one that ships for the base",
    )
    head.add_argument("--output", required=True, metavar="DIR", help="a directory that does not exist yet")
    head.set_defaults(run=_head)

    about = "move an adapter from a trimmed base to the full base, or back"
    rebase = inner.add_parser("rebase", help=about, description=about)
    rebase.add_argument("--adapter", required=True, metavar="DIR", help="an adapter directory")
    rebase.add_argument("--from", required=True, dest="source", metavar="BASE", help="the base it was trained on")
    rebase.add_argument("--to", required=True, dest="target", metavar="BASE", help="trimmed from it, or its full one")
    rebase.add_argument("--output", required=True, metavar="DIR", help="a directory that does not exist yet")
    rebase.set_defaults(run=_rebase)


def _list(arguments: argparse.Namespace) -> None:
    import json

    from adamergex.backbones.listing import as_records, as_table, named_backbones

    backbones = named_backbones()
    say(json.dumps(as_records(backbones), indent=1, ensure_ascii=False) if arguments.json else as_table(backbones))


def _trim(arguments: argparse.Namespace) -> None:
    from adamergex.backbones.trimming import trim

    say(trim(arguments.base, arguments.text, arguments.output, columns=arguments.column))
    say(f"written: {arguments.output}")


def _head(arguments: argparse.Namespace) -> None:
    from adamergex.backbones.head_file import compose

    compose(arguments.base, arguments.head, arguments.output)
    say(f"written: {arguments.output}")


def _rebase(arguments: argparse.Namespace) -> None:
    from adamergex.backbones.rebasing import rebase

    rebase(arguments.adapter, arguments.source, arguments.target, arguments.output)
    say(f"written: {arguments.output}")
