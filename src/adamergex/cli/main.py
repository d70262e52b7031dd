"""The command line: one function per verb. Heavy imports stay inside the verbs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from adamergex.cli.backbones import add as add_backbones
from adamergex.cli.ending import ended
from adamergex.cli.merging import add as add_merging
from adamergex.cli.store import add as add_stores
from adamergex.cli.tables import add as add_tables
from adamergex.errors import ConfigError
from adamergex.training.processes import launched, speaker


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="adamergex",
        description="Give a model a skill in a language without labelled data, by merging small adapters.",
    )
    top.add_argument("--version", action="store_true", help="print the version and leave")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    for add in (add_merging, add_tables, add_stores, add_backbones):
        add(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see ``ending``)."""
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
    """Raises: ConfigError: the launcher started several processes, and each would run the whole command."""
    if verb != "train":
        raise ConfigError(
            f"{verb} does not run in several processes; only train does",
            where="the launcher (torchrun, accelerate)",
            expected="one process",
            fix="start adamergex itself; study --workers N keeps N GPUs busy, with a step each"
            if verb in ("study", "transfer")
            else "start adamergex itself",
        )
